"""Translation and summarization from the shell: trained on pairs, measured, and used."""

import json
import random
import shutil

import pytest
import torch

from headwise import recipes
from headwise.cli import main
from headwise.data import pairs, reports
from headwise.models import for_inference
from headwise.recipes import run as run_module
from headwise.training import start
from tests.cli.conftest import TINY
from tests.cli.test_faults import told_by

WORDS = {"one": "un", "two": "deux", "three": "trois", "four": "quatre", "five": "cinq", "six": "six"}
SETTINGS = [each for each in TINY if "passes" not in each and "batch" not in each]


def numbers(count, seed=0):
    """Draw texts of numbers, and their translations word by word."""
    drawn = random.Random(seed)
    sources = [" ".join(drawn.choices(list(WORDS), k=drawn.randint(1, 5))) for _ in range(count)]
    return [(source, " ".join(WORDS[word] for word in source.split())) for source in sources]


def write_lines(folder, rows):
    """Write pairs as two files of lines, and give their paths."""
    paths = folder / "text.en", folder / "text.fr"
    for path, side in zip(paths, zip(*rows, strict=True), strict=True):
        path.write_text("".join(f"{text}\n" for text in side), encoding="utf-8")
    return paths


def trained(out, task, data, *more, resume=False):
    given = [
        word
        for each in (*SETTINGS, "training.batch_tokens=512", "training.passes=2", *more)
        for word in ("--set", each)
    ]
    given += ["--resume"] if resume else []
    return main(["train", task, "--data", *map(str, data), "--out", str(out), "--quiet", *given])


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """Train a translator of numbers until it knows them."""
    folder = tmp_path_factory.mktemp("numbers")
    sizes = ("model.encoder.d_model=32", "model.encoder.d_ff=64", "data.tokenizer.kind=words")
    given = (*sizes, "training.passes=40", "training.average=0", "decoding.beams=2")
    assert trained(folder / "run", "translation", write_lines(folder, numbers(400)), *given) == 0
    return folder / "run"


def said(capsys, *arguments):
    capsys.readouterr()
    assert main([str(each) for each in (*arguments, "--quiet")]) == 0
    return capsys.readouterr().out


def test_a_translator_learns_numbers(translator, tmp_path, capsys):
    figures = json.loads(
        said(capsys, "evaluate", translator, "--data", *write_lines(tmp_path, numbers(50, 1)), "--json")
    )
    assert figures["bleu"] > 90
    assert figures["bleu_low"] <= figures["bleu"] <= figures["bleu_high"]
    assert figures["bleu_of_copy"] < 10
    assert figures["bleu_signature"].startswith("nrefs:1|case:mixed")
    assert figures["count"] == 50


def test_predict_writes_line_for_line(translator, tmp_path, capsys):
    sources, answers = tmp_path / "new.txt", tmp_path / "answers.txt"
    sources.write_text("one two three\n\nsix\nfour four\n", encoding="utf-8")
    said(capsys, "predict", translator, "--data", sources, "--output", answers)
    assert answers.read_text(encoding="utf-8") == "un deux trois\n\nsix\nquatre quatre\n"


def test_predict_gives_the_best_with_their_scores(translator, capsys):
    told = said(capsys, "predict", translator, "--text", "two five", "--json")
    assert json.loads(told)["text"] == "deux cinq"
    assert json.loads(told)["score"] <= 0


def test_observe_shows_heads_of_all_kinds(translator, tmp_path, capsys):
    page = tmp_path / "heads.html"
    told = said(capsys, "observe", translator, "--data", *write_lines(tmp_path, numbers(20)), "--page", page, "--json")
    assert {row["kind"] for row in json.loads(told)["rows"]} == {"self", "cross"}
    assert page.exists()


def test_heads_that_align_are_found_and_link_words(translator, tmp_path, capsys):
    folder, links = tmp_path / "run", tmp_path / "links.txt"
    shutil.copytree(translator, folder)
    rows = [("one two three", "un deux trois"), ("six", "six"), *numbers(100)]
    given = ("--data", *write_lines(tmp_path, rows))
    assert "agree with IBM-1" in said(capsys, "align", folder, *given, "--output", links)
    assert links.read_text(encoding="utf-8").splitlines()[:2] == ["0-0 1-1 2-2", "0-0"]
    assert said(capsys, "predict", folder, "--text", "two five", "--align") == "deux cinq\t0-0 1-1\n"
    told = json.loads(said(capsys, "predict", folder, "--text", "two five", "--align", "--json"))
    assert (told["source_words"], told["links"]) == (["two", "five"], [[0, 0], [1, 1]])


def test_links_need_heads_that_align(translator, capsys):
    assert "headwise align" in told_by(capsys, 2, "predict", translator, "--text", "two", "--align")


def test_a_classifier_aligns_nothing(run, table, capsys):
    assert "must be of translation" in told_by(capsys, 2, "align", run, "--data", table)


@pytest.mark.parametrize("languages", ["en-fr", "en-zh"])
def test_bundled_pairs_train_a_translator(languages, tmp_path, capsys):
    columns = [
        f"data.{side}_column={name}" for side, name in zip(("source", "target"), languages.split("-"), strict=True)
    ]
    assert trained(tmp_path / "run", "translation", [pairs(languages)], "data.tokenizer.vocabulary=1000", *columns) == 0
    told = said(capsys, "evaluate", tmp_path / "run", "--data", pairs(languages))
    assert ("tok:zh" if languages == "en-zh" else "tok:13a") in told


def test_bundled_reports_train_a_writer_of_headlines(tmp_path, capsys):
    assert (
        trained(tmp_path / "run", "summarization", [reports()], "model.copy=true", "data.tokenizer.vocabulary=1000")
        == 0
    )
    figures = json.loads(said(capsys, "evaluate", tmp_path / "run", "--data", reports(), "--json"))
    assert 0 <= figures["rouge_1"] <= 100
    assert figures["rouge_1_of_lead"] > 10


def losses(out):
    """Read the training losses of a run, one a step."""
    told = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in told if "learning_rate" in line]


def losses_with(folder, *more):
    """Train four steps on numbers, and give the loss of each."""
    out = folder / "-".join(more).replace("model.encoder.", "")
    words = ("data.tokenizer.kind=words", "training.steps=4", "training.log_every=1", "sample=0")
    assert trained(out, "translation", write_lines(folder, numbers(60)), *words, *more) == 0
    return losses(out)


def test_word_dropout_makes_training_harder(tmp_path):
    without, half = (losses_with(tmp_path, f"model.encoder.word_dropout={rate}") for rate in (0, 0.5))
    assert len(without) == 4
    assert without[0] != half[0]


def test_rdrop_asks_for_equal_answers_under_dropout(tmp_path):
    calm = [losses_with(tmp_path, f"training.rdrop={weight}") for weight in (0, 5)]
    assert calm[1] == pytest.approx(calm[0], rel=1e-3)  # without dropout both readings are equal
    stirred = [losses_with(tmp_path, "model.encoder.dropout=0.4", f"training.rdrop={weight}") for weight in (1e-9, 5)]
    assert stirred[1][0] > stirred[0][0]


def test_rdrop_beside_copying_is_refused(tmp_path, capsys):
    given = ("--data", reports(), "--out", tmp_path / "run", "--set", "model.copy=true", "--set", "training.rdrop=5")
    assert "`training.rdrop`" in told_by(capsys, 2, "train", "summarization", *given)


def test_guided_alignment_adds_to_the_loss_and_goes_on_where_it_was_stopped(tmp_path):
    plain, taught = (losses_with(tmp_path, f"training.guided_alignment={weight}") for weight in (0, 1.0))
    assert all(ours > alone for ours, alone in zip(taught, plain, strict=True))
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    more = ("training.guided_alignment=1.0", "training.steps=4", "training.save_every=2", "sample=0")
    given = ("translation", write_lines(tmp_path, numbers(60)), "data.tokenizer.kind=words", *more)
    assert trained(whole, *given) == 0
    shutil.copytree(whole, out)
    shutil.rmtree(out / "training" / "state-000004")
    (out / "model.safetensors").unlink()
    assert trained(out, *given, resume=True) == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(out) == losses(whole)


@pytest.mark.parametrize(
    ("task", "setting", "told"),
    [
        ("translation", "training.compile=true", "a model that is not compiled"),
        ("translation", "training.guided_alignment=-1", "`guided_alignment` must be at least 0; got -1"),
        ("sentiment", "training.precision=float32", "a model with cross attention; got a classifier"),
    ],
)
def test_guided_alignment_that_cannot_be_is_told(task, setting, told, tmp_path, capsys):
    given = ("--data", *write_lines(tmp_path, numbers(30)), "--out", tmp_path / "run")
    asked = ("--set", "training.guided_alignment=0.1", "--set", setting)
    assert told in told_by(capsys, 2, "train", task, *given, *asked)


def test_a_run_on_named_columns_reads_files_of_lines(translator, tmp_path, capsys):
    rows = numbers(120)
    table = tmp_path / "pairs.tsv"
    table.write_text("en\tfr\n" + "".join(f"{source}\t{target}\n" for source, target in rows))
    named = ["--source-column", "en", "--target-column", "fr"]
    line = ["train", "translation", "--data", table, *named, "--out", tmp_path / "run"]
    said(capsys, *line, *(word for each in (*SETTINGS, "training.passes=2") for word in ("--set", each)))
    english, french = write_lines(tmp_path, rows[:7])
    said(capsys, "predict", tmp_path / "run", "--data", english, "--output", tmp_path / "written")
    assert len((tmp_path / "written").read_text().splitlines()) == 7
    alone = said(capsys, "evaluate", tmp_path / "run", "--data", english, french)
    assert said(capsys, "evaluate", tmp_path / "run", "--data", english, french, "--against", translator) != alone
    assert "_difference" in said(capsys, "evaluate", tmp_path / "run", "--data", table, "--against", translator)
    told = told_by(capsys, 2, "align", translator, "--data", english, french, "--output", french)
    assert "which is read" in told


def test_unequal_numbers_of_lines_are_told(tmp_path, capsys):
    one, two = write_lines(tmp_path, numbers(30))
    with two.open("a", encoding="utf-8") as file:
        file.write("un\n")
    told = told_by(capsys, 2, "train", "translation", "--data", one, two, "--out", tmp_path / "run")
    assert "31" in told


def test_an_empty_side_is_told_with_its_row(tmp_path, capsys):
    rows = [*numbers(30), ("one", ""), ("two", "deux")]
    told = told_by(capsys, 2, "train", "translation", "--data", *write_lines(tmp_path, rows), "--out", tmp_path / "run")
    assert "31" in told


def test_a_writer_that_begins_from_nobody_is_told(tmp_path, capsys):
    for name in ("", ":"):
        line = ["train", "translation", "--data", *write_lines(tmp_path, numbers(20)), "--out", tmp_path / "out"]
        told = told_by(capsys, 2, *line, "--init", f"pretrained:{name}")
        assert "`init` must be random, vectors or pretrained:NAME; got 'pretrained:" in told


def test_lines_are_answered_by_a_model_that_was_packed_once(translator, monkeypatch):
    made, opened = [], recipes.open_run(translator)
    monkeypatch.setattr(
        run_module, "for_inference", lambda *given, **named: made.append(1) or for_inference(*given, **named)
    )
    with start("cpu") as runtime:
        first = [recipes.predict_texts(opened, [text], runtime) for text in ("one two", "six", "one two")]
        assert len(made) == 1
        with torch.no_grad():
            opened.model.encoder.tokens.table.weight.mul_(-1)
        changed = recipes.predict_texts(opened, ["one two"], runtime)
    assert len(made) == 2
    assert first[0] == first[2]
    assert first[0] != changed


def test_a_beam_of_nothing_is_told(tmp_path, capsys):
    given = ("--data", *write_lines(tmp_path, numbers(30)), "--out", tmp_path / "run", "--set", "decoding.beams=0")
    assert "`beams` must be at least 1; got 0" in told_by(capsys, 2, "train", "translation", *given)


def test_texts_without_translations_are_not_evaluated(translator, tmp_path, capsys):
    path = tmp_path / "new.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    assert "target" in told_by(capsys, 2, "evaluate", translator, "--data", path)


def test_texts_beyond_the_positions_are_cut_and_told(translator, capsys):
    capsys.readouterr()
    assert main(["predict", str(translator), "--text", "one " * 100_000]) == 0
    assert "lost their end" in capsys.readouterr().err


def test_unknown_and_control_characters_are_answered(translator, tmp_path, capsys):
    path = tmp_path / "odd.txt"
    path.write_bytes("one \x07 ☃ two\n\x1b[31m\n".encode())
    assert said(capsys, "predict", translator, "--data", path).count("\n") == 2
