"""A tiny table, a trained run on it, and a cache of their own."""

import logging

import pytest
import torch

from headwise.cli import main

WORDS = {"good": ("fine", "lovely", "bright", "warm"), "bad": ("dull", "broken", "cold", "stale")}
TINY = [
    "model.encoder.d_model=16",
    "model.encoder.heads=2",
    "model.encoder.layers=1",
    "model.encoder.d_ff=16",
    "model.encoder.dropout=0",
    "training.passes=6",
    "training.learning_rate=0.01",
    "training.batch_tokens=64",
    "training.precision=float32",
    "training.threads=1",
]


def rows_of(count, start=0):
    """Make labelled texts whose label a word gives away."""
    rows = []
    for i in range(start, start + count):
        label = ("good", "bad")[i % 2]
        words = WORDS[label]
        rows.append((label, f"the {words[i % 4]} thing number {i} was {words[(i // 2) % 4]}"))
    return rows


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _as_before():
    """Put back what a command sets for its process."""
    threads, logger = torch.get_num_threads(), logging.getLogger("headwise")
    handlers, level = logger.handlers, logger.level
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """Write a table of 60 rows."""
    path = tmp_path_factory.mktemp("data") / "train.tsv"
    path.write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows_of(60)), encoding="utf-8")
    return path


def trained(table, out, *more):
    """Run `headwise train` in small, and give its exit code."""
    given = ["--quiet", *(word for each in TINY for word in ("--set", each)), *map(str, more)]
    return main(["train", "sentiment", "--data", str(table), "--out", str(out), *given])


@pytest.fixture(scope="session")
def run(table, tmp_path_factory):
    """Train a run that others use and leave as it is."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert trained(table, out) == 0
    return out
