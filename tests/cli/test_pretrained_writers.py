"""Pretrained translators and summarizers of Transformers, used from the shell as runs are."""

import json

import pytest
import torch

from headwise import InputError, recipes
from headwise.tasks.purpose import purpose_of
from headwise.training import start
from headwise.web import Limits, served
from tests.cli.test_faults import told_by
from tests.cli.test_pairs import said
from tests.oracle.pretrained_pairs import saved

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
UNKNOWN = 95


def names():
    return [f"w{i}" if i != UNKNOWN else "<unk>" for i in range(97)]


@pytest.fixture(scope="module", params=["marian", "bart", "t5"])
def pretrained(request, tmp_path_factory):
    """Save a small random model with a tokenizer of words."""
    folder = tmp_path_factory.mktemp(request.param)
    model = saved(folder, request.param)
    model.generation_config.update(max_new_tokens=9, no_repeat_ngram_size=2)
    model.generation_config.save_pretrained(folder)
    ids = {name: i for i, name in enumerate(names())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model


@torch.no_grad()
def test_predict_writes_what_transformers_writes(pretrained, tmp_path, capsys):
    folder, model = pretrained
    config, drawn = model.config, torch.Generator().manual_seed(2)
    texts = [[int(i) for i in torch.randint(3, 95, (n,), generator=drawn)] for n in (1, 4, 9, 3, 6, 2, 11, 7)]
    data = tmp_path / "new.txt"
    data.write_text("".join(" ".join(f"w{i}" for i in ids) + "\n" for ids in texts))
    told = said(capsys, "predict", folder, "--data", data).splitlines()
    silent = {config.pad_token_id, config.decoder_start_token_id, UNKNOWN} - {config.eos_token_id}
    for ids, text in zip(texts, told, strict=True):
        source = torch.tensor([[*ids, config.eos_token_id]])
        (row,) = model.generate(source, num_beams=1, do_sample=False, suppress_tokens=sorted(silent))
        assert text == " ".join(names()[i] for i in row[1:].tolist() if i != config.eos_token_id)
    assert len(set(told)) > 2, "texts that are all alike would hide what is wrong"


SETTINGS = {"summarization": {"prefix": "w3 "}, "translation_en_to_de": {"prefix": "w7 w9: ", "min_length": 4}}
TEXT = "w11 w12 w30"


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Save a T5 that names two tasks, each with a prefix, and has each text begin with a token."""
    folder = tmp_path_factory.mktemp("several")
    model = saved(folder, "t5")
    model.generation_config.update(max_new_tokens=9, no_repeat_ngram_size=1, forced_bos_token_id=21)
    model.generation_config.save_pretrained(folder)
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(held | {"task_specific_params": SETTINGS}))
    ids = {"w9:" if name == "w9" else name: i for i, name in enumerate(names())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model


@torch.no_grad()
def written(model, *prefix):
    """Give what transformers writes for the text after a prefix."""
    source = torch.tensor([[*prefix, 11, 12, 30, 1]])
    (row,) = model.generate(source, num_beams=1, do_sample=False, suppress_tokens=[0, UNKNOWN], min_new_tokens=3)
    return " ".join(f"w{i}" for i in row[1:].tolist() if i != 1).replace("w9 ", "w9: ")


def test_a_task_has_its_prefix_in_every_reader(several, tmp_path, capsys):
    folder, model = several
    given = ("--task", "translation", "--data", tmp_path / "text.txt", "--quiet")
    (tmp_path / "text.txt").write_text(f"{TEXT}\n")
    (text,) = said(capsys, "predict", folder, *given).splitlines()
    assert text == written(model, 7, 9)
    assert text.startswith("w21 ")
    assert text != written(model)
    assert said(capsys, "predict", folder, "--task", "translation_en_to_de", "--text", TEXT).splitlines() == [text]
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(f"source\ttarget\n{TEXT}\t{text}\n")
    figures = json.loads(said(capsys, "evaluate", folder, "--data", pairs, "--task", "translation", "--json"))
    assert figures["bleu"] == pytest.approx(100)
    run = recipes.open_any(folder, task="translation")
    with start("cpu", "float32", threads=1) as runtime:
        (drawing,) = recipes.report(recipes.Own(run), str(pairs), runtime, texts=1).drawings
        answered = served("t5", run, runtime, Limits())
        work = answered.explain(TEXT, []).works[0]
        (traced,) = work.group.compute([work.payload], lambda: False)
    assert drawing.source[:3] == ("w7", "w9:", "w11")
    assert " ".join(drawing.target[1:]) == text
    told = answered.explain(TEXT, []).join(traced)
    assert told["answer"]["texts"][0]["text"] == text
    assert [TEXT[word["begin"] : word["end"]] for word in told["words"]] == TEXT.split()


def test_links_are_those_of_the_text_alone(several, tmp_path, capsys):
    folder, _ = several
    data = tmp_path / "pairs.tsv"
    data.write_text("source\ttarget\n" + "".join(f"w{i} w{i + 1}\tw{i + 2} w{i}\n" for i in range(11, 40)))
    out = tmp_path / "links.txt"
    given = ("--data", data, "--task", "translation", "--output", out)
    assert "agree with IBM-1" in said(capsys, "align", folder, *given)
    links = [link.split("-") for line in out.read_text().splitlines() for link in line.split()]
    assert {int(source) for source, _ in links} <= {0, 1}


def test_a_cut_model_keeps_its_task(several, tmp_path, capsys):
    folder, _ = several
    said(capsys, "share", folder, "--kv-heads", 4, "--task", "translation", "--out", tmp_path / "run")
    run = recipes.open_run(tmp_path / "run")
    assert (run.config.data.source_prefix, run.config.decoding.prefix) == ("w7 w9: ", (21,))
    assert (run.config.task, run.config.data.language) == ("translation", "de")


def test_what_a_model_is_taken_for_is_told(several, caplog):
    folder, _ = several
    data = recipes.open_any(folder).config.data
    assert data.source_prefix == "w3 "
    assert "is taken for summarization; --task may name translation_en_to_de, translation" in caplog.text


@pytest.mark.parametrize(
    ("config", "task", "prefix", "level"),
    [
        ({"model_type": "marian"}, "translation", "", "INFO"),
        ({"prefix": "translate English to German: "}, "translation", "translate English to German: ", "INFO"),
        ({"task_specific_params": {"summarization_cnn": {"prefix": "a "}}}, "summarization", "a ", "INFO"),
        ({"prefix": "x ", "task_specific_params": SETTINGS}, "summarization", "w3 ", "WARNING"),
        ({"prefix": "w7 w9: ", "task_specific_params": SETTINGS}, "translation", "w7 w9: ", "INFO"),
        (
            {"task_specific_params": {"translation_en_to_fr": {}, "translation_en_to_ro": {}}},
            "translation",
            "",
            "WARNING",
        ),
        ({}, "summarization", "", "WARNING"),
    ],
)
def test_the_config_says_what_a_model_is_for(config, task, prefix, level, caplog):
    caplog.set_level("INFO", "headwise")
    found = purpose_of(config, "mine")
    assert (found.task, found.source_prefix) == (task, prefix)
    assert [record.levelname for record in caplog.records] == [level]
    asked = purpose_of({"prefix": "summarize: "}, "mine", "translation")
    assert (asked.task, asked.source_prefix) == ("translation", "")


def test_a_task_that_is_not_there_is_told(several, run, tmp_path, capsys):
    folder, _ = several
    given = ("--text", "a", "--task")
    known = "translation, summarization, translation_en_to_de; got chat"
    assert known in told_by(capsys, 2, "predict", folder, *given, "chat")
    assert "must be that of" in told_by(capsys, 2, "predict", run, *given, "translation")
    with pytest.raises(InputError, match="translation_en_to_de, translation_en_to_fr; got translation"):
        purpose_of({"task_specific_params": {**SETTINGS, "translation_en_to_fr": {}}}, "mine", "translation")


def test_align_and_evaluate_take_it_too(pretrained, tmp_path, capsys):
    folder, _ = pretrained
    data = tmp_path / "pairs.tsv"
    data.write_text("text\tsummary\n" + "".join(f"w{i} w{i + 1}\tw{i + 2} w{i}\n" for i in range(5, 40)))
    given = ("--data", data, "--source-column", "text", "--target-column", "summary")
    assert json.loads(said(capsys, "evaluate", folder, *given, "--json"))["count"] == 35
    assert "agree with IBM-1" in said(capsys, "align", folder, *given)
    assert "\t" in said(capsys, "predict", folder, "--text", "w5 w6", "--align")


def test_a_mistyped_path_is_no_name_on_the_hub(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert "no run.json" in told_by(capsys, 2, "predict", "runs/tpyo", "--text", "a")


def test_other_architectures_are_told(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "must be of an architecture in" in told_by(capsys, 2, "predict", tmp_path, "--text", "a")


@pytest.fixture
def pairs(tmp_path):
    """Write pairs, and give what names their columns."""
    path = tmp_path / "pairs.tsv"
    path.write_text("text\tsummary\n" + "".join(f"w{i} w{i + 1}\tw{i + 2} w{i}\n" for i in range(5, 45)))
    return "--data", path, "--source-column", "text", "--target-column", "summary"


def settings(*given):
    return [word for each in given for word in ("--set", each)]


def test_a_pretrained_model_is_trained_further(pretrained, pairs, tmp_path, capsys):
    folder, _ = pretrained
    task = recipes.open_any(folder).config.task
    still, out = tmp_path / "still", tmp_path / "out"
    line = ["train", task, *pairs, "--init", f"pretrained:{folder}"]
    assert said(capsys, *line, "--out", still, *settings("training.learning_rate=1e-12", "training.passes=1"))
    before, after = recipes.open_any(folder), recipes.open_run(still)
    for (name, one), other in zip(before.model.state_dict().items(), after.model.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9), name
    assert after.config.decoding == before.config.decoding
    more = settings("training.learning_rate=0.01", "training.passes=20", "model.encoder.dropout=0")
    said(capsys, *line, "--out", out, *more)
    first, last = (json.loads((each / "metrics.json").read_text())["dev"]["loss"] for each in (still, out))
    assert last < first - 0.5
    assert json.loads((out / "run.json").read_text())["init"] == f"pretrained:{folder}"
    further = tmp_path / "further"
    said(capsys, "train", task, *pairs, "--init", f"pretrained:{out}", "--out", further, *settings("training.passes=1"))
    assert said(capsys, "predict", further, "--text", "w5 w6")


def test_a_run_that_began_with_vectors_is_trained_further_without_them(pairs, tmp_path, capsys):
    vectors, begun = tmp_path / "vectors.txt", tmp_path / "begun"
    vectors.write_text("".join(f"w{i} {i} 0.5 -1 2\n" for i in range(50)))
    line = ["train", "summarization", *pairs, *settings("training.passes=1")]
    words = settings("data.tokenizer.kind=words", "model.encoder.heads=2", "model.decoder.heads=2", "frozen_passes=1")
    said(capsys, *line, "--out", begun, "--vectors", vectors, *words)
    vectors.unlink()
    said(capsys, *line, "--out", tmp_path / "further", "--init", f"pretrained:{begun}")
    before, after = (recipes.open_run(tmp_path / name).model.state_dict() for name in ("begun", "further"))
    changed = {name for name, one in before.items() if not torch.equal(one, after[name])}
    assert changed == set(before), "what was frozen at first is trained as well"
    assert said(capsys, "predict", tmp_path / "further", "--text", "w5 w6")


def test_one_of_several_tasks_is_trained_further(several, pairs, tmp_path, capsys):
    folder, _ = several
    line = ["train", "translation_en_to_de", *pairs, "--init", f"pretrained:{folder}", "--out", tmp_path / "out"]
    said(capsys, *line, *settings("training.passes=1"))
    config = recipes.open_run(tmp_path / "out").config
    assert (config.task, config.data.source_prefix, config.data.language) == ("translation", "w7 w9: ", "de")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--init", "pretrained:RUN"], "must be that of"),
        (["--init", "pretrained:nowhere/at/all"], "no run.json"),
        (["--init", "pretrained"], "`init` must name what is trained further"),
        (["--init", "pretrained:T5", "--size", "small"], "must keep its own tokenizer and sizes; got `size`"),
        (["--init", "pretrained:T5", "--tokenizer", "words"], "got `data.tokenizer`"),
        (["--init", "pretrained:T5", "--set", "model.copy=true"], "got `model.copy`"),
        (["--init", "pretrained:T5", "--set", "data.max_source=100000"], "must be at most"),
    ],
)
def test_what_cannot_be_trained_further_is_told(several, run, pairs, tmp_path, capsys, more, told):
    places = {"pretrained:RUN": f"pretrained:{run}", "pretrained:T5": f"pretrained:{several[0]}"}
    line = ["train", "translation", *pairs, "--out", tmp_path / "out", *(places.get(each, each) for each in more)]
    assert told in told_by(capsys, 2, *line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "more"),
    [("chat", []), ("translation_en_to_de", []), ("sentiment_of_films", ["--init", "pretrained:minilm"])],
)
def test_a_task_of_nobody_is_told(tmp_path, capsys, task, more):
    told = told_by(capsys, 2, "train", task, "--data", "x.tsv", "--out", tmp_path / "out", *more)
    assert f"the task must be one of sentiment, translation, summarization; got '{task}'" in told
