"""`observe` and `tour` from the shell: the page holds what a run's heads do, on texts that it was given."""

import json
import re

import pytest
import torch

from headwise import EncoderConfig, Seq2Seq, Seq2SeqConfig, recipes
from headwise.cli import main
from headwise.heads import sharpness
from headwise.recipes.run import Run
from headwise.tasks.pieces import TokenizerSettings
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import start


def data_of(path):
    (held,) = re.findall(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(held)


def texts_of(table):
    return [line.split("\t")[1] for line in table.read_text(encoding="utf-8").splitlines()[1:]]


def observed(run, table, tmp_path, *more):
    page = tmp_path / "heads.html"
    assert main(["observe", str(run), "--data", str(table), "--page", str(page), "--quiet", *map(str, more)]) == 0
    return data_of(page)


def test_observe_draws_texts_of_the_data(run, table, tmp_path):
    data = observed(run, table, tmp_path, "--texts", 2)
    assert len(data["drawings"]) == 2
    for drawing in data["drawings"]:
        assert re.fullmatch(r"the \w+ thing number \S+ was \w+", " ".join(drawing["texts"]["source"]))
        assert drawing["pictures"][0]["rows"] == "source"
    assert observed(run, table, tmp_path, "--texts", 0)["drawings"] == []


def test_observe_sets_an_older_run_beside(run, table, tmp_path):
    data = observed(run, table, tmp_path, "--texts", 0, "--before", run)
    assert [each["name"] for each in data["tables"]] == ["before", "now"]
    assert data["tables"][0]["rows"] == data["tables"][1]["rows"]


def test_the_texts_shown_are_those_where_heads_are_sharpest(run, table):
    opened = recipes.open_run(run)
    with start("cpu", threads=1) as runtime:
        report = recipes.report(recipes.Own(opened), str(table), runtime, texts=60)
    sharp = {}
    ids_N = list(opened.tokenizer.encode(texts_of(table), max_tokens=99).ids)
    for ids in ids_N:
        with sharpness(opened.model) as found:
            opened.model(torch.tensor([ids]), torch.tensor([len(ids)]))
        for place, sharp_BH in found.items():
            for head, value in enumerate(sharp_BH[0].tolist()):
                sharp.setdefault((place, head), {})[tuple(opened.tokenizer.tokens(ids))] = value
    drawn = [drawing.source for drawing in report.drawings]
    assert 1 <= len(drawn) <= len(sharp)
    for values in sharp.values():
        best = max(values.values())
        assert any(values[source] == pytest.approx(best, abs=1e-5) for source in drawn)


def test_a_model_that_writes_is_drawn_on_what_it_wrote(tmp_path):
    rows = [(f"the cat number {i} sleeps", f"le chat numero {i} dort") for i in range(6)]
    path = tmp_path / "pairs.tsv"
    path.write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in rows), encoding="utf-8")
    tokenizer = Tokenizer.train([text for row in rows for text in row], TokenizerSettings(min_frequency=1))
    encoder = EncoderConfig(vocabulary=tokenizer.size, d_model=16, heads=2, layers=1, d_ff=16)
    model = Seq2Seq(Seq2SeqConfig(encoder, pad=0, begin=2, end=3)).eval()
    run = Run(recipes.resolve("translation", overrides=["decoding.max_length=5"]), model, tokenizer)
    with start("cpu", threads=1) as runtime:
        report = recipes.report(recipes.Own(run), str(path), runtime, texts=1)
    (drawing,) = report.drawings
    assert drawing.written == 1
    assert 2 <= len(drawing.target) <= 6
    assert {(picture.queries, picture.keys) for picture in drawing.pictures} == {
        (len(drawing.source), len(drawing.source)),
        (len(drawing.target), len(drawing.target)),
        (len(drawing.target), len(drawing.source)),
    }
    assert "cross" in str(report.table)


def test_tour_writes_a_page_and_tells_the_steps(run, tmp_path, capsys):
    for model in ("random", str(run)):
        page = tmp_path / "tour.html"
        assert main(["tour", "the fine thing was cold", "--model", model, "--page", str(page)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line[0] for line in lines[1:]] == list("12345")
        assert data_of(page)["tokens"] == ["the", "fine", "thing", "was", "cold"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tour", "", "--model", "random"], "must have words; got an empty one"),
        (["tour", "word " * 65, "--model", "random"], "1 to 64 tokens; got 65"),
        (["tour", "a", "--page", "nowhere/tour.html"], "needs the folder nowhere"),
        (["tour", "a", "--model", "./none"], "a folder, minilm, or a name on the hub"),
    ],
)
def test_a_tour_that_cannot_be_is_refused(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_drawing_leaves_random_numbers_alone(run, table):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    with start("cpu", threads=1) as runtime:
        recipes.report(recipes.Own(recipes.open_run(run)), str(table), runtime, texts=1)
    recipes.tour("the fine thing", "random")
    assert torch.equal(torch.rand(1), wanted)
