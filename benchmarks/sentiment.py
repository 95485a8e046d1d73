"""Accuracy of text classifiers on SST-2, TREC and ChnSentiCorp, each from a committed config, beside a linear model.

The data lies in the folder that HEADWISE_DATA names. Runs stand in --runs, one folder for each name and seed; one that
was stopped goes on, one that is finished is read. The dev texts choose everything, the test texts are counted once.
--quick trains on the bundled reviews for a few steps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.common import ROOT, Report, begin, options, provenance
from headwise import recipes
from headwise.contracts.files import write_whole
from headwise.data import reviews
from headwise.recipes.run import was_begun
from headwise.tasks.data import split
from headwise.tasks.sentiment import open_texts
from headwise.tasks.sources import Source
from headwise.training import start

LINEAR = "linear, TF-IDF"


@dataclass(frozen=True)
class Entry:
    """Name a model and its data; paths are below HEADWISE_DATA."""

    name: str
    data: str
    model: str
    train: str
    dev: str | None
    test: str
    config: str | None = None
    init: str | None = None
    bar: float | None = None
    seeds: int = 3
    changes: tuple[str, ...] = ()

    def source(self, folder: Path) -> Source:
        train = str(folder / self.train)
        return {"train": train, "dev": str(folder / self.dev)} if self.dev else train

    def command(self, seed: str) -> str:
        """Give the command that trains the same; `$DATA` is the folder of the data."""
        words = ["headwise", "train", "sentiment", "--data", f"$DATA/{self.train}"]
        words += ["--dev", f"$DATA/{self.dev}"] if self.dev else []
        words += ["--config", self.config] if self.config else []
        words += ["--init", self.init] if self.init else []
        words += [word for each in self.changes for word in ("--set", each)]
        return " ".join([*words, "--seed", seed, "--out", f"{self.name}-{seed}"])

    def settings(self, seed: int) -> recipes.RunConfig:
        file, given = ROOT / self.config if self.config else None, {"training": {"seed": seed}}
        return recipes.resolve("sentiment", init=self.init, file=file, given=given, overrides=self.changes)


PHRASES = ("sst/sst2.glue_phrases.train.tsv.gz", "sst/sst2.dev.tsv", "sst/sst2.test.tsv")
SENTENCES = ("sst/sst2.train.tsv", *PHRASES[1:])
TREC = ("trec/trec.train.tsv", None, "trec/trec.test.tsv")
CHINESE = ("chnsenticorp/train.tsv", "chnsenticorp/dev.dedup.tsv", "chnsenticorp/test.dedup.tsv")

ENTRIES = (
    Entry("sst2-minilm", "SST-2 phrases", "MiniLM", *PHRASES, config="examples/sst2-minilm.toml", bar=90.0),
    Entry("sst2-sentences", "SST-2 sentences", "MiniLM, no other flag", *SENTENCES, init="pretrained:minilm", bar=88.0),
    Entry("sst2-glove", "SST-2 phrases", "GloVe 50d", *PHRASES, config="examples/sst2-glove.toml", bar=83.7),
    Entry("sst2-random", "SST-2 phrases", "random vectors", *PHRASES, config="examples/sst2-random.toml"),
    Entry("trec-minilm", "TREC", "MiniLM", *TREC, config="examples/trec-minilm.toml", bar=92.0),
    Entry("trec-glove", "TREC", "GloVe 50d", *TREC, config="examples/trec-glove.toml", bar=88.0),
    Entry("chnsenticorp", "ChnSentiCorp dedup", "characters", *CHINESE, config="examples/chnsenticorp.toml", bar=87.0),
)
_FEW = ("training.steps=4", "data.tokenizer.kind=characters", "model.encoder.d_model=16", "model.encoder.d_ff=16")
QUICK = (Entry("reviews", "bundled reviews", "tiny", "reviews.zh.tsv", None, "reviews.zh.tsv", seeds=2, changes=_FEW),)


@dataclass(frozen=True)
class Figures:
    """Hold what a run gave, in per cent."""

    dev: float
    test: float
    minutes: float
    commit: str


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/figures)")
    parser.add_argument("--only", action="append", metavar="NAME", help="train only this one; all that stand are shown")
    chosen = parser.parse_args()
    known = [entry.name for entry in (QUICK if chosen.quick else ENTRIES)]
    if unknown := set(chosen.only or ()) - set(known):
        sys.exit(f"`--only` must be one of {', '.join(known)}; got {sorted(unknown)}. Choose one.")
    with tempfile.TemporaryDirectory() as passing:
        runs = chosen.runs or (Path(passing) if chosen.quick else Path("runs/figures"))
        run_all(chosen, QUICK if chosen.quick else ENTRIES, runs)


def run_all(chosen: argparse.Namespace, entries: tuple[Entry, ...], runs: Path) -> None:
    """Train what is not finished, and write the tables anew whenever a figure lands."""
    folder = reviews("zh").parent if chosen.quick else data_folder()
    torch.set_num_threads(chosen.threads)
    for entry in entries:
        if chosen.only and entry.name not in chosen.only:
            continue
        for seed in range(entry.seeds):
            if not finished(runs / f"{entry.name}-{seed}"):
                train(entry, seed, folder, runs / f"{entry.name}-{seed}")
                tell(chosen, entries, runs)
        place = runs / linear_name(entry)
        if not finished(place):
            keep(place, linear(entry, folder))
    tell(chosen, entries, runs)


def data_folder() -> Path:
    data = os.environ.get("HEADWISE_DATA")
    if data is None:
        sys.exit("the data must be in the folder that HEADWISE_DATA names; got no such variable. Set it.")
    return Path(data)


def finished(run: Path) -> bool:
    return (run / "figures.json").exists()


def keep(run: Path, figures: Figures) -> None:
    run.mkdir(parents=True, exist_ok=True)
    write_whole(run / "figures.json", json.dumps(asdict(figures)).encode())


def held(run: Path) -> Figures:
    return Figures(**json.loads((run / "figures.json").read_text()))


def train(entry: Entry, seed: int, folder: Path, run: Path) -> None:
    """Train one seed, or go on with it, and count its test texts."""
    config, began = entry.settings(seed), time.monotonic()
    print(entry.command(str(seed)), flush=True)
    with start("cpu", config.training.precision) as runtime:
        planned = recipes.plan(entry.source(folder), config, quiet=True)
        outcome = recipes.train(planned, run, runtime, resume=was_begun(run), quiet=True)
        minutes = (time.monotonic() - began) / 60
        test = recipes.evaluate(recipes.open_run(run), folder / entry.test, runtime)["accuracy"]
    keep(run, Figures(100 * outcome.best["accuracy"], 100 * test, minutes, provenance()["commit"]))


def linear_name(entry: Entry) -> str:
    return f"linear-{Path(entry.train).name.partition('.tsv')[0]}-{entry.data.split()[0].lower()}"


def linear(entry: Entry, folder: Path) -> Figures:
    """Train a linear support vector machine on TF-IDF, its n-grams and its strength chosen on the dev texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    began, best = time.monotonic(), (0.0, 0.0)
    (texts, labels), (dev_texts, dev_labels), (test_texts, test_labels) = tables(entry, folder)
    for analyzer, longest in (("word", 2), ("char", 3)):
        words = {"token_pattern": r"(?u)\S+"} if analyzer == "word" else {}
        vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=(1, longest), sublinear_tf=True, **words)
        x, x_dev, x_test = vectorizer.fit_transform(texts), *map(vectorizer.transform, (dev_texts, test_texts))
        for strength in (0.03, 0.1, 0.3, 1.0):
            model = LinearSVC(C=strength, random_state=0).fit(x, labels)
            found = 100 * model.score(x_dev, dev_labels), 100 * model.score(x_test, test_labels)
            best = max(best, found, key=lambda pair: pair[0])
    return Figures(*best, (time.monotonic() - began) / 60, provenance()["commit"])


def tables(entry: Entry, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Give texts and labels of train, dev and test, cut as our training cuts them."""
    settings = entry.settings(0).data
    table = split(open_texts(entry.source(folder), settings, quiet=True), dev=settings.dev, seed=settings.split_seed)
    test = open_texts(folder / entry.test, settings, quiet=True)
    for held_in, name in ((table, "train"), (table, "dev"), (test, "test" if "test" in test.splits else "all")):
        rows = held_in.rows(name)
        columns = ([text for texts in held_in.texts(role, rows) for text in texts] for role in ("text", "label"))
        yield tuple(columns)


def tell(chosen: argparse.Namespace, entries: tuple[Entry, ...], runs: Path) -> None:
    """Write the tables of all that is finished."""
    report = begin("Accuracy of text classifiers", chosen)
    report.line("- minutes are those that passed; other work may have run on the machine")
    report.section("Accuracy in per cent, mean over the seeds")
    report.table("data", "model", "bar", "seeds", "dev", "test", "deviation", "minutes", first=2)
    for entry in entries:
        if found := [held(run) for run in folders(entry, runs)]:
            summarise(report, (entry.data, entry.model), entry.bar, found)
    for name, entry in {linear_name(entry): entry for entry in entries}.items():
        if finished(runs / name):
            summarise(report, (entry.data, LINEAR), None, [held(runs / name)])
    report.section("Each run")
    report.table("run", "commit", "dev", "test", "minutes", first=2)
    for entry in entries:
        for run in folders(entry, runs):
            figures = held(run)
            report.row(run.name, figures.commit, figures.dev, figures.test, figures.minutes)
    report.section("Commands")
    for entry in entries:
        report.line(f"- {entry.data}, {entry.model}: `{entry.command('SEED')}`")


def folders(entry: Entry, runs: Path) -> list[Path]:
    named = [runs / f"{entry.name}-{seed}" for seed in range(entry.seeds)]
    return [run for run in named if finished(run)]


def summarise(report: Report, names: tuple[str, str], bar: float | None, found: list[Figures]) -> None:
    tests = np.array([figures.test for figures in found])
    dev, minutes = (float(np.mean([getattr(each, name) for each in found])) for name in ("dev", "minutes"))
    deviation = float(tests.std(ddof=1)) if len(tests) > 1 else None
    report.row(*names, bar, str(len(found)), dev, float(tests.mean()), deviation, minutes)


if __name__ == "__main__":
    main()
