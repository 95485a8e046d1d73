"""Every command and flag, by its door: `headwise.cli.main`."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from headwise import __version__, load
from headwise.cli import main
from headwise.tasks.tokenizer import Tokenizer
from tests.cli.conftest import TINY, rows_of, trained

ROWS = rows_of(60)


def said(capsys, *arguments):
    """Run a command that must succeed, and give the lines that it printed."""
    assert main([str(each) for each in arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_holds_all_that_it_takes(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "run.json", "metrics.json", "README.md"}
    assert not any(path.suffix in (".pt", ".pkl", ".bin") for path in run.rglob("*"))
    assert json.loads((run / "metrics.json").read_text())["dev"]["accuracy"] == 1
    assert "| classes | bad, good |" in (run / "README.md").read_text()


def write_csv(path):
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for label, text in ROWS))


def write_jsonl(path):
    path.write_text("".join(json.dumps({"review": text, "stars": label}) + "\n" for label, text in ROWS))


def write_gzip(path):
    with gzip.open(path, "wt") as file:
        file.write("label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in ROWS))


def write_parquet(path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels, texts = zip(*ROWS, strict=True)
    parquet.write_table(pyarrow.table({"label": labels, "text": texts}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.csv", write_csv), ("a.jsonl", write_jsonl), ("a.tsv.gz", write_gzip), ("a.parquet", write_parquet)],
)
def test_training_reads_every_kind_of_table(tmp_path, name, write):
    write(tmp_path / name)
    assert trained(tmp_path / name, tmp_path / "out", "--set", "training.passes=1") == 0
    assert load(tmp_path / "out").config.classes == ("bad", "good")


@pytest.mark.parametrize("kind", ["words", "subwords", "characters"])
def test_training_cuts_texts_into_tokens_of_each_kind(table, tmp_path, kind):
    more = ("--tokenizer", kind, "--dev", table, "--set", "training.passes=1", "--size", "tiny", "--seed", "3")
    assert trained(table, tmp_path / "out", *more) == 0
    config = json.loads((tmp_path / "out" / "run.json").read_text())
    assert config["data"]["tokenizer"]["kind"] == kind
    assert config["training"]["seed"] == 3


@pytest.mark.parametrize("several", [False, True])
def test_rdrop_asks_for_equal_answers_under_dropout(several, tmp_path):
    path = tmp_path / "rows.tsv"
    rows = [(f"{label}|any" if several else label, text) for label, text in ROWS]
    path.write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows), encoding="utf-8")
    split = ("--set", "data.label_separator=|") if several else ()

    def first_loss(dropout, weight):
        out = tmp_path / f"{dropout}-{weight}"
        given = (f"training.rdrop={weight}", f"model.dropout={dropout}", "training.steps=1", "training.log_every=1")
        assert trained(path, out, *split, *(word for each in given for word in ("--set", each))) == 0
        return json.loads((out / "training" / "log.jsonl").read_text().splitlines()[0])["loss"]

    assert first_loss(0, 5) == pytest.approx(first_loss(0, 0), rel=1e-5)  # without dropout both readings are equal
    assert first_loss(0.5, 500) > first_loss(0.5, 1e-9)


def test_training_begins_from_vectors(table, tmp_path):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("".join(f"{word} {i} 0.5 -1\n" for i, word in enumerate(("fine", "dull", "thing"))))
    frozen = ("--vectors", vectors, "--set", "frozen_passes=-1", "--set", "training.passes=1")
    assert trained(table, tmp_path / "out", *frozen) == 0
    table_VN = load(tmp_path / "out").encoder.tokens.table.weight
    assert table_VN.shape[1] == 3
    assert [1.0, 0.5, -1.0] in table_VN.tolist()
    later = ("--vectors", vectors, "--set", "frozen_passes=1", "--set", "training.keep_best=loss")
    assert trained(table, tmp_path / "still", *later, "--set", "training.passes=1") == 0
    assert [1.0, 0.5, -1.0] in load(tmp_path / "still").encoder.tokens.table.weight.tolist()
    assert trained(table, tmp_path / "tuned", *later) == 0
    assert [1.0, 0.5, -1.0] not in load(tmp_path / "tuned").encoder.tokens.table.weight.tolist()


def test_words_of_the_vectors_are_known_beside_those_of_the_texts(table, tmp_path):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("fine 1 0.5 -1\nexquisite 2 0.5 -1\nwretched 3 0.5 -1\n")
    assert trained(table, tmp_path / "all", "--vectors", vectors, "--set", "training.passes=1") == 0
    tokenizer = Tokenizer.load(tmp_path / "all" / "tokenizer.json")
    ids = tokenizer.encode(["wretched exquisite"], max_tokens=9).ids[0]
    assert load(tmp_path / "all").encoder.tokens.table.weight[ids].tolist() == [[3.0, 0.5, -1.0], [2.0, 0.5, -1.0]]
    room = ("--set", f"data.tokenizer.vocabulary={tokenizer.size - 1}", "--set", "training.passes=1")
    assert trained(table, tmp_path / "one", "--vectors", vectors, *room) == 0
    known = set(Tokenizer.load(tmp_path / "one" / "tokenizer.json").vocabulary)
    assert {"exquisite", "wretched"} & known == {"exquisite"}


def test_training_takes_several_labels(tmp_path):
    path = tmp_path / "several.tsv"
    lines = [f"{'a,b' if i % 3 == 0 else 'ab'[i % 2]}\ttext {i} {'aa bb'[: 2 + i % 4]}" for i in range(40)]
    path.write_text("label\ttext\n" + "\n".join(lines) + "\n")
    assert trained(path, tmp_path / "out", "--set", "data.label_separator=,", "--set", "training.passes=1") == 0
    assert load(tmp_path / "out").config.multi_label


def test_settings_come_from_a_file_and_flags_win(table, tmp_path):
    settings = tmp_path / "run.toml"
    settings.write_text('[training]\npasses = 2\nlearning_rate = 0.02\n[model]\npooling = "first"\n')
    assert trained(table, tmp_path / "out", "--config", settings) == 0
    held = json.loads((tmp_path / "out" / "run.json").read_text())
    assert held["model"]["pooling"] == "first"
    assert held["training"]["passes"] == 6


def test_the_same_seed_gives_the_same_bits(table, run, tmp_path):
    assert trained(table, tmp_path / "again") == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_dry_run_shows_settings_and_memory(table, tmp_path, capsys):
    assert trained(table, tmp_path / "out", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert '"d_model": 16' in printed
    assert "memory of parameters" in printed
    assert not (tmp_path / "out").exists()


def test_evaluate_prints_figures(run, table, capsys):
    assert said(capsys, "evaluate", run, "--data", table, "--quiet")[0] == "accuracy 1.0000"
    (line,) = said(capsys, "evaluate", run, "--data", table, "--quiet", "--json")
    assert json.loads(line)["count"] == 60


def test_predict_answers_in_the_input_order(run, tmp_path, capsys):
    path, output = tmp_path / "new.tsv", tmp_path / "answers.tsv"
    texts = [text + " and more" * (i % 5) for i, (_, text) in enumerate(ROWS)]
    path.write_text("text\n" + "".join(f"{text}\n" for text in texts))
    assert said(capsys, "predict", run, "--data", path, "--output", output, "--quiet") == []
    answers = [line.split("\t")[0] for line in output.read_text().splitlines()]
    assert answers == [label for label, _ in ROWS]


def test_predict_answers_texts_and_lines(run, capsys, monkeypatch):
    lines = said(capsys, "predict", run, "--text", "a fine, warm thing", "--text", "dull and cold", "--quiet")
    assert [line.split("\t")[0] for line in lines] == ["good", "bad"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"dull and cold\n\nlovely bright thing\r\n")))
    lines = said(capsys, "predict", run, "--json", "--quiet")
    answers = [json.loads(line) for line in lines]
    assert [answer["label"] for answer in answers[::2]] == ["bad", "good"]
    assert sum(answers[1]["probabilities"].values()) == pytest.approx(1)


def test_observe_shows_every_head(run, table, tmp_path, capsys):
    lines = said(capsys, "observe", run, "--data", table, "--page", tmp_path / "heads.html", "--quiet")
    assert len(lines) == 1 + 2
    assert "entropy" in lines[0]
    assert (tmp_path / "heads.html").stat().st_size > 1_000
    (line,) = said(capsys, "observe", run, "--data", table, "--page", tmp_path / "heads.html", "--quiet", "--json")
    rows = json.loads(line)["rows"]
    assert [row["head"] for row in rows] == [0, 1]
    assert all(row["role"] and {"separator", "rare", "same"} <= row.keys() for row in rows)


def test_doctor_tells_backends_and_extras(capsys):
    printed = "\n".join(said(capsys, "doctor"))
    for told in ("headwise", "threads", "attention of 512 tokens in bfloat16", "text:", "minilm:", "cache:"):
        assert told in printed


def test_help_fits_a_screen_and_has_an_example(capsys):
    told = "train evaluate predict align export observe score prune share tune doctor demo"
    for command in told.split():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 36
        assert any(line.startswith(f"example: headwise {command}") for line in lines)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"headwise {__version__}"


def start(table, out, *more):
    given = [word for each in TINY for word in ("--set", each)]
    command = [sys.executable, "-m", "headwise", "train", "sentiment", "--data", str(table), "--out", str(out)]
    return subprocess.Popen([*command, *given, *more], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(path, process):
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "nothing was written in a minute"
        time.sleep(0.02)


LONG = ("--set", "training.passes=60", "--set", "training.save_every=5")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_same_result(table, tmp_path, kind):
    whole = start(table, tmp_path / "whole", *LONG)
    whole.communicate(timeout=120)
    assert whole.returncode == 0
    stopped = start(table, tmp_path / "stopped", *LONG)
    wait_for(tmp_path / "stopped" / "training" / "state-000020", stopped)
    os.kill(stopped.pid, kind)
    _, told = stopped.communicate(timeout=60)
    assert stopped.returncode == (130 if kind == signal.SIGINT else -kind)
    if kind == signal.SIGINT:
        assert "--resume" in told
    again = start(table, tmp_path / "stopped", *LONG, "--resume")
    again.communicate(timeout=120)
    assert again.returncode == 0
    for name in ("model.safetensors", "metrics.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
