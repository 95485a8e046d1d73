"""Use a trained run on a table of texts: figures, answers, and what its heads do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import torch

from headwise.contracts import Batch, Examples
from headwise.heads import HeadTable, Tokens, observe
from headwise.recipes import rewrite
from headwise.recipes.aligning import WordLinks, align_texts, translator
from headwise.recipes.batches import cut_rows, in_batches, lexicon_batches
from headwise.recipes.kinds import kind_of
from headwise.recipes.run import Run
from headwise.recipes.streaming import stream
from headwise.recipes.subjects import Subject
from headwise.tasks.align import Aligner, Lexicon, find_heads
from headwise.tasks.sentiment import TextExamples
from headwise.tasks.sources import ALL, Source
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import Runtime

__all__ = ["align_pairs", "evaluate", "find_aligner", "line", "look", "predict", "predict_texts"]


_SEPARATORS = frozenset({".", "。", "[SEP]", "</s>"})
_RARE = 0.05
_SHOWN = 40
"""Batches, those of the longest texts left out, on which the heads that align are chosen."""


def evaluate(run: Run, source: Source, runtime: Runtime, *, split: str | None = None) -> dict[str, Any]:
    """Compute the figures of a run on texts whose answers are known.

    Args:
        run: the run.
        source: a file, a folder, `hub:NAME`, or two files of lines.
        runtime: on what; processes share the work.
        split: rows of which split; left out, `test` where there is one, else all.

    Raises:
        InputError: for data that cannot be read, or with labels that the model does not know.
    """
    return kind_of(run.config).report(run, source, runtime, split=split)


def predict(run: Run, source: Source, runtime: Runtime, *, split: str | None = None, done: int = 0) -> Iterator[Any]:
    """Answer for every text of a table, in its order; of a split, for the rows that belong to it.

    Answers are computed some thousand at a time, in memory that does not grow with the table. A classifier gives a
    `Prediction` a text, what writes texts a list of its best. Where broken rows are left out and no split is named,
    `SKIPPED` or an empty list stands in the place of each, so that answers and rows stay side by side.

    Args:
        run: the run.
        source: a file, a folder, `hub:NAME`, or two files of lines.
        runtime: on what; processes share the work.
        split: rows of which split; left out, all.
        done: how many answers are known from before; those after them are given, as they would have come.

    Raises:
        InputError: for data that cannot be read.
    """
    kind = kind_of(run.config)
    found = kind.unanswered(run, source, quiet=not runtime.first)
    return stream(found, partial(kind.predict_texts, run, runtime=runtime), runtime, split=split, done=done)


def predict_texts(run: Run, texts: Sequence[str], runtime: Runtime) -> list[Any]:
    """Answer for texts at hand, in their order; processes share the work, so each must be given the same texts.

    Raises:
        InputError: for a text that is not Unicode, such as bytes of another encoding on the command line.
    """
    return kind_of(run.config).predict_texts(run, texts, runtime)


def line(run: Run, answer: Any, *, as_json: bool = False) -> str:
    """Write an answer as one line of text, or as one of JSON."""
    return kind_of(run.config).line(answer, as_json=as_json)


def find_aligner(run: Run, source: Source, runtime: Runtime, *, split: str | None = None) -> Aligner:
    """Find the heads of a translator that align, without gold: by how far they agree with IBM-1 on these pairs.

    Each process looks at the same pairs, so that all find the same heads.

    Args:
        run: a run on pairs.
        source: its training data.
        runtime: on what.
        split: rows of which split; left out, all.

    Raises:
        InputError: for a run of another task, or data that cannot be read.
    """
    model, quiet = translator(run).to(runtime.device).eval(), not runtime.first
    held = kind_of(run.config).examples(run, source, split=split or ALL, quiet=quiet)
    cuts = cut_rows(held.length_N)
    lexicon = Lexicon(lexicon_batches(held, quiet=quiet))
    shown = cuts[len(cuts) // 4 :][:_SHOWN]
    return find_heads(model, [held.batch(rows.tolist()).to(runtime.device) for rows in shown], lexicon)


def align_pairs(
    run: Run, aligner: Aligner, source: Source, runtime: Runtime, *, split: str | None = None
) -> list[WordLinks]:
    """Link the words of every pair of a table, in its order; of a split, for the rows that belong to it."""
    translator(run)
    sources, targets = rewrite.texts_of(run, source, split=split, quiet=not runtime.first)
    return align_texts(run, aligner, sources, targets, runtime)


def look(subject: Subject, source: Source, runtime: Runtime, *, split: str | None = None) -> HeadTable:
    """Look at every head while a model reads the texts of a table.

    Raises:
        InputError: for data that cannot be read, or of which no row is chosen.
    """
    examples = subject.examples(source, split=split, quiet=not runtime.first)
    subject.model.to(runtime.device).eval()
    tables = list(_tables(subject, examples, runtime))
    return reduce(add, [each for each in runtime.gather([tables[0] if tables else None]) if each is not None])


def _tables(subject: Subject, examples: Examples[Any], runtime: Runtime) -> Iterator[HeadTable]:
    """Yield this process's table, unless it has no share of the texts."""
    batch: Any = None
    separators, rare = _marked(subject.tokenizer, examples)
    with torch.inference_mode(), runtime.autocast(), observe(subject.model) as observer:
        for batch in in_batches(examples, runtime, told="observe"):
            if isinstance(batch, Batch):
                observer.reading(Tokens(batch.tokens_BT, separators, rare))
            subject.forward(batch)
    if batch is not None:
        yield observer.table()


def _marked(tokenizer: Tokenizer, examples: Examples[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Name the ids of separators, and of the rarest tokens, which together make up a twentieth of the whole data."""
    if not isinstance(examples, TextExamples):
        return (), ()
    vocabulary = tokenizer.vocabulary
    counts_V = examples.tokens.counts_V(len(vocabulary))
    order_V = np.argsort(counts_V, kind="stable")
    rare = order_V[np.cumsum(counts_V[order_V]) <= _RARE * counts_V.sum()]
    separators = tuple(id_ for id_, token in enumerate(vocabulary) if token in _SEPARATORS)
    return separators, tuple(int(id_) for id_ in rare if counts_V[id_])
