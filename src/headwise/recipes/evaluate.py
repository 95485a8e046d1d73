"""Use a trained run on a table of texts: figures, answers, and what its heads do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from headwise.errors import InputError
from headwise.heads import HeadTable, observe
from headwise.recipes.batches import all_logits, in_batches
from headwise.recipes.run import Run
from headwise.tasks.data import Table
from headwise.tasks.labels import SKIPPED, Prediction
from headwise.tasks.metrics import score
from headwise.tasks.sentiment import TextExamples, encode, open_texts
from headwise.tasks.sources import ALL, Source
from headwise.training import Runtime

__all__ = ["evaluate", "figures_of", "look", "predict", "predict_texts"]


def evaluate(run: Run, source: Source, runtime: Runtime, *, split: str | None = None) -> dict[str, Any]:
    """Compute the figures of a run on labelled texts.

    Args:
        run: the run.
        source: a file, a folder or `hub:NAME`.
        runtime: on what; processes share the work.
        split: rows of which split; left out, `test` where there is one, else all.

    Raises:
        InputError: for data that cannot be read, or with labels that the model does not know.
    """
    table = open_texts(source, run.config.data, quiet=not runtime.first)
    examples = encode(table, run.tokenizer, run.config.data, labels=run.labels, quiet=not runtime.first)
    examples = _chosen(examples, table, split)
    logits_NC = all_logits(run.model.to(runtime.device), examples, runtime, told="evaluate")
    assert examples.target is not None, "the table was read with its labels"
    target = torch.from_numpy(examples.target)
    return score(logits_NC, target if target.dim() == 2 else target.long()).report(run.labels.names)


def figures_of(model: nn.Module, examples: TextExamples, runtime: Runtime) -> dict[str, float]:
    """Compute the figures by which training chooses a model."""
    logits_NC = all_logits(model, examples, runtime)
    assert examples.target is not None, "validation data has labels"
    target = torch.from_numpy(examples.target)
    if target.dim() == 2:
        loss, counted = F.binary_cross_entropy_with_logits(logits_NC, target.float()), score(logits_NC, target.float())
    else:
        loss, counted = F.cross_entropy(logits_NC, target.long()), score(logits_NC, target.long())
    figures = counted.report([str(i) for i in range(logits_NC.shape[1])])
    return {name: value for name, value in figures.items() if isinstance(value, float)} | {"loss": float(loss)}


def predict(run: Run, source: Source, runtime: Runtime, *, split: str | None = None) -> list[Prediction]:
    """Answer for every text of a table, in its order; of a split, for the rows that belong to it.

    Where broken rows are left out and no split is named, `SKIPPED` stands in the place of each, so that answers and
    rows stay side by side.
    """
    table = open_texts(source, run.config.data, labelled=False, quiet=not runtime.first)
    examples = _chosen(encode(table, run.tokenizer, run.config.data, quiet=not runtime.first), table, split or ALL)
    answers = run.labels.predictions(all_logits(run.model.to(runtime.device), examples, runtime, told="predict"))
    return _spread(answers, table.skipped.before) if split in (None, ALL) else answers


def _spread(answers: list[Prediction], before: Sequence[int]) -> list[Prediction]:
    """Put an empty answer where a row was left out, after as many answers as rows were kept before it."""
    spread, at = list[Prediction](), 0
    for place in before:
        spread += [*answers[at:place], SKIPPED]
        at = place
    return spread + answers[at:]


def predict_texts(run: Run, texts: Sequence[str], runtime: Runtime) -> list[Prediction]:
    """Answer for texts at hand, in their order; processes share the work, so each must be given the same texts.

    Raises:
        InputError: for a text that is not Unicode, such as bytes of another encoding on the command line.
    """
    if not texts:
        return []
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"texts must be in UTF-8; got {text[:40]!r}. Convert them.")
    settings = run.config.data
    ids_N = run.tokenizer.encode(texts, max_tokens=settings.max_tokens, ends=settings.ends).ids
    length_N = np.array([len(ids) for ids in ids_N], np.int32)
    tokens_N = np.concatenate([np.array(ids, np.int32) for ids in ids_N])
    examples = TextExamples(tokens_N, np.cumsum(length_N, dtype=np.int64) - length_N, length_N)
    return run.labels.predictions(all_logits(run.model.to(runtime.device), examples, runtime))


def look(run: Run, source: Source, runtime: Runtime, *, split: str | None = None) -> HeadTable:
    """Look at every head while the model reads the texts of a table."""
    table = open_texts(source, run.config.data, labelled=False, quiet=not runtime.first)
    examples = _chosen(encode(table, run.tokenizer, run.config.data, quiet=not runtime.first), table, split)
    model = run.model.to(runtime.device).eval()
    tables = list(_tables(model, examples, runtime))
    return reduce(add, [each for each in runtime.gather([tables[0] if tables else None]) if each is not None])


def _tables(model: nn.Module, examples: TextExamples, runtime: Runtime) -> Iterator[HeadTable]:
    """Yield this process's table, unless it has no share of the texts."""
    batches = list(in_batches(examples, runtime, told="observe"))
    if batches:
        with torch.inference_mode(), runtime.autocast(), observe(model) as observer:
            for batch in batches:
                model(batch.tokens_BT, batch.length_B)
        yield observer.table()


def _chosen(examples: TextExamples, table: Table, split: str | None) -> TextExamples:
    """Keep the rows of a split; of `all`, every row."""
    if split == ALL or (split is None and "test" not in table.splits):
        return examples
    return examples.select(table.rows(split or "test"))
