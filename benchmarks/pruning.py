"""Fewer heads: accuracy and measured speed of a MiniLM classifier on SST-2 at 100, 80, 60, 40 and 20 % of its heads.

Heads are chosen by gradient, by learned gates and at random, scored on the training texts; the accuracy is that of the
test texts, before and after fine-tuning. The data lies in the folder that HEADWISE_DATA names. What is done stands in
--runs and is read when the program is called again. --quick takes the bundled reviews and a small model.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import Contestant, begin, options, side_by_side
from headwise import recipes
from headwise.contracts.files import write_whole
from headwise.data import reviews
from headwise.heads import HeadScores, plan
from headwise.recipes.run import was_begun
from headwise.recipes.subjects import Own
from headwise.training import Runtime, start

KEEP = (1.0, 0.8, 0.6, 0.4, 0.2)
WAYS = ("gradient", "gates", "random")
PENALTY = 0.5
_QUICK = ("model.encoder.d_model=16", "model.encoder.layers=2", "training.steps=6", "training.precision=float32")


@dataclass(frozen=True)
class Data:
    """Name the texts, and what a model of them begins from."""

    train: Any
    test: str
    split: str
    init: str
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """Say how good a cut model is, in per cent of the test texts."""

    before: float
    after: float


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/pruning"), help="folder of the runs")
    parser.add_argument("--passes", type=int, default=1, help="passes of fine-tuning after the cut")
    chosen = parser.parse_args()
    report = begin("Fewer heads: accuracy and speed", chosen)
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch) if chosen.quick else chosen.runs
        data = small() if chosen.quick else sst()
        with start("cpu") as runtime:
            whole = trained(data, runs / "whole", runtime)
            keep = (1.0, 0.5) if chosen.quick else KEEP
            report.section("Accuracy on the test texts, %")
            report.table("chosen by", "heads kept", "as cut", "fine-tuned", first=2)
            for way in WAYS:
                scores = scored(way, whole, data, runs, runtime)
                for part in keep:
                    found = cut(whole, scores, part, data, runs / f"{way}-{part}", runtime, passes=chosen.passes)
                    report.row(way, f"{part:.0%}", found.before, found.after)
            report.section("Speed of the models that gradient has cut")
            report.table("heads kept", "ms a batch", "times faster")
            took = times(runs, keep, data, runtime, chosen.rounds)
            for part in keep:
                report.row(f"{part:.0%}", took[part], took[1.0] / took[part])


def sst() -> Data:
    folder = os.environ.get("HEADWISE_DATA")
    if folder is None:
        sys.exit("the data must be in the folder that HEADWISE_DATA names; got no such variable. Set it.")
    sst = Path(folder, "sst")
    train = {"train": str(sst / "sst2.train.tsv"), "dev": str(sst / "sst2.dev.tsv")}
    return Data(train, str(sst / "sst2.test.tsv"), "all", "pretrained:minilm", ())


def small() -> Data:
    table = str(reviews("en"))
    return Data(table, table, "test", "random", _QUICK)


def trained(data: Data, out: Path, runtime: Runtime, *changes: str) -> recipes.Subject:
    """Train a run, go on with one that was stopped, or open one that is done."""
    if not (out / "done").is_file():
        config = recipes.resolve("sentiment", init=data.init, overrides=[*data.changes, *changes])
        recipes.train(recipes.plan(data.train, config, quiet=True), out, runtime, resume=was_begun(out), quiet=True)
        write_whole(out / "done", b"")
    return recipes.open_subject(str(out))


def scored(way: str, whole: recipes.Subject, data: Data, runs: Path, runtime: Runtime) -> HeadScores:
    if way == "gates":
        trained(data, runs / "gates", runtime, f"training.gate_penalty={PENALTY}")
        return recipes.learned_scores(runs / "gates")
    path = runs / f"{way}.json"
    if not path.is_file():
        source = data.train["train"] if isinstance(data.train, dict) else data.train
        split = None if isinstance(data.train, dict) else "train"
        found = recipes.score(whole, source, runtime, by="random" if way == "random" else "gradient", split=split)
        write_whole(path, found.to_json().encode())
    return HeadScores.from_json(path.read_text(encoding="utf-8"))


def cut(
    whole: recipes.Subject, scores: HeadScores, part: float, data: Data, out: Path, runtime: Runtime, *, passes: int
) -> Found:
    """Cut, measure, fine-tune, measure; what is done is read."""
    path = out / "found.json"
    if not path.is_file():
        smaller = recipes.prune(whole, plan(whole.layout, scores, part), fresh(out / "untrained"))
        before = accuracy(smaller, data, runtime)
        recipes.train_on(smaller, data.train, fresh(out / "tuned"), runtime, passes=passes, quiet=True)
        tuned = recipes.open_subject(str(out / "tuned"))
        write_whole(path, json.dumps(asdict(Found(before, accuracy(tuned, data, runtime)))).encode())
    return Found(**json.loads(path.read_text(encoding="utf-8")))


def fresh(folder: Path) -> Path:
    """Take away what a run that was stopped has left in a folder."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return folder


def accuracy(subject: recipes.Subject, data: Data, runtime: Runtime) -> float:
    assert isinstance(subject, Own), "runs of ours are measured"
    return 100 * float(recipes.evaluate(subject.run, data.test, runtime, split=data.split)["accuracy"])


def times(runs: Path, keep: tuple[float, ...], data: Data, runtime: Runtime, rounds: int) -> dict[float, float]:
    """Time a forward pass of each model over the same batch, side by side."""
    contestants = list(_contestants(runs, keep, data, runtime))
    took = side_by_side(contestants, rounds)
    return {part: took[str(part)] for part in keep}


def _contestants(runs: Path, keep: tuple[float, ...], data: Data, runtime: Runtime) -> Iterator[Contestant]:
    for part in keep:
        subject = recipes.open_subject(str(runs / f"gradient-{part}" / "tuned"))
        batch = next(iter(subject.batches(data.test, runtime, split=data.split)))
        yield Contestant(str(part), lambda subject=subject, batch=batch: _read(subject, batch))


@torch.inference_mode()
def _read(subject: recipes.Subject, batch: Any) -> object:
    return subject.losses(subject.model.eval(), batch)


if __name__ == "__main__":
    main()
