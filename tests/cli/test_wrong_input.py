"""What goes wrong is told in a line a problem, ends with the right code, and harms nothing."""

import json
import os
import shutil

import pyarrow as pa
import pytest
from pyarrow import parquet

from headwise.cli import main
from tests.cli.conftest import rows_of, trained


def refused(capsys, code, *arguments):
    """Run a command that must fail, and give what it told."""
    assert main([str(each) for each in arguments]) == code
    told = capsys.readouterr().err
    assert "Traceback" not in told
    lines = [line for line in told.splitlines() if line.startswith("headwise: ")]
    assert lines
    return "\n".join(lines)


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


GOOD = "".join(f"{label}\t{text}\n" for label, text in rows_of(20))
TABLES = {
    "no label column": ("a\ttext\n1\tx\n", "--label-column"),
    "one class only": ("label\ttext\n" + "good\tx y\n" * 20, "at least two classes"),
    "an empty text": ("label\ttext\n" + GOOD + "good\t\n", "row 22"),
    "a NUL byte": ("label\ttext\n" + GOOD + "good\ta\0b\n", "row 22"),
    "another encoding": (b"label\ttext\n" + GOOD.encode() + "good\tcaf\xe9\n".encode("latin-1"), "row 22"),
    "a missing field": ("label\ttext\n" + GOOD + "good\n", "row 22"),
    "nothing": ("", "empty file"),
    "a header alone": ("label\ttext\n", "at least one"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_broken_table_is_told_with_its_place(tmp_path, capsys, name):
    text, told = TABLES[name]
    path = written(tmp_path / "broken.tsv", text)
    assert trained(path, tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "broken.tsv" in shown or name == "one class only"
    assert told in shown
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_broken_rows_are_skipped_where_asked(tmp_path):
    path = written(tmp_path / "broken.tsv", "label\ttext\n" + GOOD + "good\t\nbad\n")
    assert trained(path, tmp_path / "out", "--on-error", "skip", "--set", "training.passes=1") == 0


def test_a_skipped_row_keeps_its_line_among_the_answers(run, tmp_path, capsys):
    texts = ["", "a fine, warm thing", "", "", "dull and cold", "lovely bright thing", ""]
    path = written(tmp_path / "broken.tsv", "text\tnote\n" + "".join(f"{text}\tx\n" for text in texts))
    given = ["predict", str(run), "--data", str(path), "--on-error", "skip", "--quiet"]
    for more, read in (
        ((), lambda line: line.split("\t")[0] if line != "\tskipped" else None),
        (("--json",), lambda line: None if json.loads(line).get("skipped") else json.loads(line)["label"]),
    ):
        assert main([*given, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [read(line) for line in lines] == [None, "good", None, None, "bad", "good", None]


def test_a_row_of_a_megabyte_is_read(tmp_path):
    path = written(tmp_path / "long.tsv", "label\ttext\n" + GOOD + "good\t" + "long " * 200_000 + "\n")
    assert trained(path, tmp_path / "out", "--set", "training.passes=1") == 0


def test_labels_that_training_has_not_seen_are_refused(run, tmp_path, capsys):
    path = written(tmp_path / "test.tsv", "label\ttext\nmiddling\tso so\n")
    told = refused(capsys, 2, "evaluate", run, "--data", path)
    assert "'middling'" in told
    assert "row 2" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--set", "training.setps=5"), "did you mean `training.steps`"),
        (("--set", "training"), "section.name=value"),
        (("--init", "pretrained"), "pretrained:minilm"),
        (("--vectors", "none.txt"), "none.txt"),
        (("--config", "none.toml"), "none.toml"),
        (("--dev", "none.tsv"), "none.tsv"),
        (("--device", "warp"), "`device` must be one that PyTorch knows"),
        (("--set", "training.keep_best=bleu"), "`keep_best`"),
        (("--set", "model.encoder.vocabulary=7"), "`model.encoder.vocabulary` must be what the data gives"),
        (("--set", 'model.classes=["a", "b"]'), "`model.classes` must be what the data gives, ('bad', 'good')"),
        (("--seed", str(2**64)), "`seed` must be at most 9223372036854775807"),
        (("--set", "training.threads=100000"), "`threads` must be at most 1024"),
        (("--set", "training.warmup=inf"), "`warmup` must be at most"),
        (("--set", "training.learning_rate=inf"), "`learning_rate` must be above 0 and finite"),
        (("--set", f"training.passes={'9' * 5000}"), "`training.passes` must be a whole number"),
        (("--set", "training.shard=true"), "`shard` must have processes to spread over"),
        (("--dev", "hub:"), "must name a data set"),
    ],
)
def test_wrong_flags_are_told(table, tmp_path, capsys, flags, told):
    assert trained(table, tmp_path / "out", *flags) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--init", "pretrained:minilm")], ids=["new", "pretrained"])
@pytest.mark.parametrize(
    "settings", ["[[training]]\npasses=1\n", 'training = "x"\n', "data = 5\n", "model = 3\n", "[model]\nencoder = 5\n"]
)
def test_a_section_that_is_no_table_is_told(table, tmp_path, capsys, settings, more):
    path = written(tmp_path / "run.toml", settings)
    line = ["train", "sentiment", "--data", table, "--out", tmp_path / "out", "--config", path, "--seed", 1, *more]
    assert "must be a table of" in refused(capsys, 2, *line)


def test_a_model_beyond_the_memory_is_told(table, tmp_path, capsys):
    assert trained(table, tmp_path / "out", "--dry-run", "--set", "model.encoder.d_model=1000000000000") == 1
    assert "headwise: the model and its batches must fit the memory" in capsys.readouterr().err


def test_what_is_read_is_not_written_over(run, table, tmp_path, capsys):
    own = shutil.copy(table, tmp_path / "own.tsv")
    before = own.read_bytes()
    for line in (
        ("predict", run, "--data", own, "--output", own),
        ("observe", run, "--data", own, "--page", own),
        ("score", run, "--data", own, "--output", own),
        ("predict", run, "--data", tmp_path, "--output", own),
    ):
        assert "which is read: it would be lost" in refused(capsys, 2, *line)
    assert own.read_bytes() == before


def test_files_that_are_no_runs_are_not_written_over(table, tmp_path, capsys):
    mine = written(tmp_path / "README.md", "mine")
    assert trained(table, tmp_path) == 2
    assert "which holds README.md and no run" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    written(tmp_path / "notes.txt", "mine")
    mine.unlink()
    assert trained(table, tmp_path, "--set", "training.passes=1") == 0, "names that a run has not are left alone"


@pytest.mark.parametrize("flag", ["--out", "--data", "--dev"])
def test_a_name_that_is_empty_is_refused(table, tmp_path, capsys, flag):
    given = {"--data": table, "--out": tmp_path / "out", "--dev": table} | {flag: ""}
    with pytest.raises(SystemExit) as ended:
        main(["train", "sentiment", *(str(word) for pair in given.items() for word in pair)])
    assert ended.value.code == 2
    assert "must be a name; got an empty one" in capsys.readouterr().err


def test_rows_of_another_split_are_no_part_of_the_one_they_are_named_for(table, run, tmp_path, capsys):
    rows = rows_of(60)
    words = ["train"] * 40 + ["test"] * 12 + ["validation"] * 8
    lines = "".join(f"{label}\t{text}\t{word}\n" for (label, text), word in zip(rows, words, strict=True))
    path = written(tmp_path / "all.tsv", "label\ttext\tsplit\n" + lines)
    assert main(["train", "sentiment", "--data", str(path), "--dev", str(table), "--dry-run", "--out", "x"]) == 0
    told = capsys.readouterr()
    assert "left out 20 rows whose column `split` names another split" in told.err
    assert "40 train, 60 dev rows" in told.err
    for word in ("dev", "validation"):
        assert main(["predict", str(run), "--data", str(path), "--split", word]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 8


def test_labels_of_several_lines_stay_on_one(tmp_path, capsys):
    rows = [{"label": {"good": "a\nb\tc", "bad": "<script>|"}[label], "text": text} for label, text in rows_of(60)]
    path = written(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert trained(path, tmp_path / "out") == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "out"), "--text", rows[0]["text"], "--text", rows[1]["text"]]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split("\t")[0] == r"a\nb\tc"
    assert [second.split("\t")[0], len(second.split("\t"))] == ["<script>|", 3]
    card = (tmp_path / "out" / "README.md").read_text()
    assert r"| classes | &lt;script&gt;\|, a\nb\tc |" in card


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda held: held[:20] + b"\xff" * 60 + held[80:], "must be a whole Parquet file"),
        (lambda held: held[len(held) // 2 :], "must be a whole Parquet file"),
    ],
)
def test_a_damaged_parquet_file_is_told(run, tmp_path, capsys, spoil, told):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"text": [text for _, text in rows_of(60)]}), path, compression="none")
    path.write_bytes(spoil(path.read_bytes()))
    assert told in refused(capsys, 2, "predict", run, "--data", path)


def test_a_column_of_parquet_that_stands_twice_is_told(run, tmp_path, capsys):
    path, texts = tmp_path / "rows.parquet", pa.array(["a", "b"])
    parquet.write_table(pa.Table.from_arrays([texts, texts], names=["text", "text"]), path)
    assert "got ['text'] twice" in refused(capsys, 2, "predict", run, "--data", path, "--text-column", "text")


def test_texts_that_parquet_holds_as_bytes_are_read(run, tmp_path, capsys):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"text": [b"a fine, warm thing", b"dull and cold"]}), path)
    assert main(["predict", str(run), "--data", str(path)]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["good", "bad"]


@pytest.mark.parametrize("vectors", ["fine 1 2 3\ndull 1 2\n", "3 4\nfine 1 2 3 4\ndull 1"])
def test_torn_vectors_are_told(table, tmp_path, capsys, vectors):
    path = written(tmp_path / "vectors.txt", vectors)
    assert trained(table, tmp_path / "out", "--vectors", path) == 2
    assert "vectors.txt" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "run.json"])
@pytest.mark.parametrize("way", ["missing", "cut short", "empty"])
def test_a_torn_run_is_told_with_the_file(run, tmp_path, capsys, name, way):
    torn = shutil.copytree(run, tmp_path / "torn")
    path = torn / name
    held = path.read_bytes()
    path.unlink()
    if way != "missing":
        path.write_bytes(held[: len(held) // 2] if way == "cut short" else b"")
    assert name in refused(capsys, 2, "predict", torn, "--text", "a fine thing")


@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_run_of_another_version_is_told(run, tmp_path, capsys, name):
    other = shutil.copytree(run, tmp_path / "other")
    path = other / name
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    assert name in refused(capsys, 2, "predict", other, "--text", "a fine thing")


def test_a_folder_with_a_run_is_not_trained_over(table, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    before = (copy / "model.safetensors").read_bytes()
    assert trained(table, copy) == 2
    assert "--resume" in capsys.readouterr().err
    assert (copy / "model.safetensors").read_bytes() == before
    assert trained(written(tmp_path / "other.tsv", "label\ttext\n" + GOOD), copy, "--resume") == 2
    assert "other data" in capsys.readouterr().err


def test_out_must_be_a_folder(table, tmp_path, capsys):
    path = written(tmp_path / "file", "x")
    assert trained(table, path) == 2
    assert "must be a folder" in capsys.readouterr().err
    assert "is not a folder" in refused(capsys, 2, "demo", "--out", path)


def test_what_cannot_be_written_is_told(run, table, tmp_path, capsys):
    told = refused(capsys, 2, "predict", run, "--data", table, "--output", tmp_path / "none" / "answers.tsv")
    assert "answers.tsv" in told
    assert "is a folder" in refused(capsys, 2, "observe", run, "--data", table, "--page", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    told = refused(capsys, 2, "predict", run, "--data", table, "--output", tmp_path / "pipe")
    assert "is no ordinary file" in told


def test_debug_shows_where(tmp_path, capsys):
    assert main(["predict", str(tmp_path), "--text", "x", "--debug"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-1].startswith("headwise: ")


@pytest.mark.parametrize("flags", [("--threads", "-1"), ("--threads", "many"), ("--size", "huge"), ("--nonsense",)])
def test_what_the_grammar_does_not_know_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "sentiment", "--data", "x", "--out", "y", *flags])
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err
