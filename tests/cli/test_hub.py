"""Heads of models of Transformers are seen and scored from the shell, whatever the model is made for."""

import json

import pytest
import torch
from torch.nn import functional as F

from headwise import recipes
from headwise.cli import main
from headwise.heads import HeadTable
from headwise.training import start
from tests.cli.test_report import data_of
from tests.cli.theirs import KINDS, written

HEADS = {"gpt2": 4, "gpt2, classifier": 4, "t5": 6}
"""All others have two layers of four."""


def given(data, *more):
    return ["--data", str(data), "--quiet", "--threads", "1", *map(str, more)]


@pytest.fixture
def data(kind, table, tmp_path):
    """Give the table, or pairs for what reads pairs."""
    if kind != "t5":
        return table
    path = tmp_path / "pairs.tsv"
    path.write_text("source\ttarget\n" + "".join(f"the thing {i} was fine\tfine {i}\n" for i in range(20)))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_observe_shows_every_head(kind, data, tmp_path, capsys):
    written(kind, tmp_path / "theirs")
    page = tmp_path / "heads.html"
    assert main(["observe", str(tmp_path / "theirs"), *given(data, "--page", page, "--texts", 1, "--json")]) == 0
    rows = list(HeadTable.from_json(capsys.readouterr().out).rows())
    assert len(rows) == HEADS.get(kind, 8)
    shown = data_of(page)
    assert [len(each["rows"]) for each in shown["tables"]] == [len(rows)]
    (drawing,) = shown["drawings"]
    assert "thing" in "".join(drawing["texts"]["source"])


def test_what_is_seen_is_what_the_model_does(tmp_path, table):
    theirs, tokenizer = written("bert", tmp_path)
    texts = [line.split("\t")[1] for line in table.read_text().splitlines()[1:]]
    theirs.set_attn_implementation("eager")
    total = count = 0
    for text in texts:
        encoded = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            weights_HTT = theirs(**encoded, output_attentions=True).attentions[1][0].double()
        total = total + weights_HTT.amax(-1).sum(1)
        count += weights_HTT.shape[1]
    with start("cpu", "float32", threads=1) as runtime:
        seen = recipes.look(recipes.open_subject(str(tmp_path)), table, runtime)
    rows = [row for row in seen.rows() if row["layer"] == 1]
    assert {row["queries"] for row in rows} == {count}
    torch.testing.assert_close(torch.tensor([row["peak"] for row in rows]).double(), total / count, rtol=1e-5, atol=0)


def test_observe_prints_a_row_a_head_beside_those_of_before(tmp_path, table, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("bert, classifier", tmp_path / "theirs")
    assert main(["prune", "theirs", *given(table, "--keep", 0.5, "--out", "cut")]) == 0
    capsys.readouterr()
    assert main(["observe", "cut", *given(table, "--before", "theirs", "--texts", 0)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4
    assert [len(each["rows"]) for each in data_of(tmp_path / "heads.html")["tables"]] == [8, 4]


@pytest.mark.parametrize("kind", ["bert, classifier", "gpt2", "gpt2, classifier", "llama"])
def test_losses_are_those_of_the_model_itself(kind, table, tmp_path):
    theirs, tokenizer = written(kind, tmp_path)
    subject, found = recipes.open_subject(str(tmp_path)), {}
    with start("cpu", "float32", threads=1) as runtime, torch.no_grad():
        for batch in subject.batches(table, runtime):
            found |= dict(zip(batch.row_B.tolist(), subject.losses(subject.model, batch).tolist(), strict=True))
    for i, line in enumerate(table.read_text().splitlines()[1:]):
        label, text = line.split("\t")
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            if "classifier" in kind:
                wanted = F.cross_entropy(theirs(ids).logits, torch.tensor([("good", "bad").index(label)]))
            else:
                wanted = theirs(ids, labels=ids).loss
        assert found[i] == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt2, classifier", "t5"])
def test_heads_are_scored_and_cut(kind, data, tmp_path, capsys):
    written(kind, tmp_path / "theirs")
    out = tmp_path / "cut"
    assert main(["score", str(tmp_path / "theirs"), *given(data)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == HEADS.get(kind, 8)
    assert main(["prune", str(tmp_path / "theirs"), *given(data, "--keep", 0.5, "--out", out)]) == 0
    capsys.readouterr()
    assert main(["observe", str(out), *given(data, "--page", tmp_path / "x.html", "--texts", 0, "--json")]) == 0
    assert len(list(HeadTable.from_json(capsys.readouterr().out).rows())) == HEADS.get(kind, 8) // 2


def test_an_encoder_decoder_is_written_as_a_run_and_trained_on(tmp_path, capsys):
    written("t5", tmp_path / "theirs")
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("text\tsummary\n" + "".join(f"the thing {i} was fine\tfine {i}\n" for i in range(20)))
    columns = ("--source-column", "text", "--target-column", "summary", "--out", tmp_path / "cut", "--train", pairs)
    assert main(["prune", str(tmp_path / "theirs"), *given(pairs, "--keep", 0.5, *columns)]) == 0
    capsys.readouterr()
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["init"] == "pretrained"
    assert main(["predict", str(tmp_path / "cut"), "--text", "the thing was fine", "--quiet"]) == 0


@pytest.mark.parametrize("by", ["gradient", "random"])
def test_a_model_without_a_loss_is_not_cut_by_one(tmp_path, table, capsys, by):
    written("bert", tmp_path / "theirs")
    words = [str(tmp_path / "theirs"), *given(table, "--by", by, "--out", tmp_path / "cut")]
    assert main(["prune", *words]) == 2
    assert "must classify texts or be a model of language" in capsys.readouterr().err
    assert not (tmp_path / "cut").exists()


def test_what_cannot_be_opened_is_told(tmp_path, table, capsys):
    folder = tmp_path / "theirs"
    written("bert, classifier", folder)
    other = tmp_path / "labels.tsv"
    other.write_text("label\ttext\nmiddling\tthe thing\n")
    assert main(["score", str(folder), *given(other)]) == 2
    assert "labels must be those of the model; got 'middling'" in capsys.readouterr().err
    described = json.loads((folder / "config.json").read_text())
    for change, told in (
        ({"architectures": ["NoSuchModel"]}, "must name an architecture of transformers; got 'NoSuchModel'"),
        ({"architectures": None}, "must name an architecture of transformers; got none"),
        ({"intermediate_size": 17}, "must hold weights that fit its config.json"),
    ):
        (folder / "config.json").write_text(json.dumps(described | change))
        assert main(["score", str(folder), *given(table)]) == 2
        assert told in capsys.readouterr().err
    written("bert, numbers", folder)
    assert main(["score", str(folder), *given(table)]) == 2
    assert "must give each text one label to be scored; got numbers" in capsys.readouterr().err
    (folder / "tokenizer.json").unlink()
    assert main(["observe", str(folder), *given(table, "--page", tmp_path / "x.html")]) == 2
    assert "must hold the tokenizer of its model" in capsys.readouterr().err
