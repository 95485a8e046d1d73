"""Show the whole of it on the bundled texts: train, evaluate, use, look at the heads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headwise.data import pairs, reports, reviews
from headwise.models.pretrained import has_minilm
from headwise.recipes.config import AnyConfig
from headwise.recipes.evaluate import evaluate, line, predict_texts
from headwise.recipes.report import report
from headwise.recipes.resolve import resolve
from headwise.recipes.run import open_run, was_begun
from headwise.recipes.subjects import Own
from headwise.recipes.train import plan, train
from headwise.training import Runtime

__all__ = ["demo"]


@dataclass(frozen=True)
class _Show:
    """Hold one model of the demo."""

    source: Path
    config: AnyConfig
    figure: str
    said: str


def demo(out: Path, runtime: Runtime, *, quiet: bool = False) -> Iterator[str]:
    """Train on the bundled texts for each task, and yield what is found, a line at a time.

    English reviews begin from MiniLM where that is installed; all else from nothing, as a few hundred texts allow.

    Args:
        out: the folder of the runs, one for each model; a run that was stopped there goes on.
        runtime: on what.
        quiet: show no progress.
    """
    for name, show in _shows().items():
        began, folder, held = time.monotonic(), out / name, show.source.name
        yield f"{name}: training from {show.config.init} on {held} ..."
        train(plan(show.source, show.config, quiet=quiet), folder, runtime, resume=was_begun(folder), quiet=quiet)
        run = open_run(folder)
        figure = evaluate(run, show.source, runtime)[show.figure]
        page = folder / "heads.html"
        report(Own(run), show.source, runtime, about=f"The model of {folder}, on the test part of {held}").write(page)
        answer = line(run, predict_texts(run, [show.said], runtime)[0]).replace("\t", ", ")
        yield f"{name}: {show.figure} {figure:.4f} on the test part, after {time.monotonic() - began:.0f} s"
        yield f"{name}: “{show.said}” gives “{answer}”"
        yield f"{name}: what every head does: {page}"
    yield (
        "These texts are few, and are for show: translations and headlines learned from some hundred pairs are poor. "
        "For figures to compare, see docs/COVERAGE.md."
    )


def _shows() -> dict[str, _Show]:
    english = resolve("sentiment", init="pretrained:minilm" if has_minilm() else "random")
    chinese = resolve("sentiment", overrides=["data.tokenizer.kind=characters"])
    return {
        "en": _Show(reviews("en"), english, "accuracy", "Not the disaster I had feared, and the ending is lovely."),
        "zh": _Show(reviews("zh"), chinese, "accuracy", "等了两个小时才上菜"),
        "en-fr": _Show(pairs("en-fr"), _pair_config("translation", "fr"), "bleu", "The dog is sleeping in the garden."),
        "en-zh": _Show(pairs("en-zh"), _pair_config("translation", "zh"), "bleu", "The dog is sleeping in the garden."),
        "headlines": _Show(
            reports(),
            _pair_config("summarization"),
            "rouge_1",
            "Heavy rain closed the bridge on Monday. Engineers found a crack. It will stay closed until Friday.",
        ),
    }


def _pair_config(task: str, target: str | None = None) -> AnyConfig:
    """Give settings for some hundred pairs: a small model, small steps' worth of tokens, a small vocabulary."""
    columns = {} if target is None else {"source_column": "en", "target_column": target}
    given = {
        "data": {**columns, "tokenizer": {"vocabulary": 2000}},
        "model": {"copy": target is None, "encoder": {"layers": 2, "dropout": 0.2}},
        "training": {"passes": 25, "batch_tokens": 1024, "validate_every": 100},
    }
    return resolve(task, given=given)
