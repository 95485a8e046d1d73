"""Report on the heads of a model: what they do over all texts, and on the texts where they are sharpest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from headwise.contracts import Batch, Examples, PairBatch
from headwise.heads import Drawing, HeadTable, Report, draw, sharpness
from headwise.models import Seq2Seq
from headwise.recipes.batches import cut_rows
from headwise.recipes.evaluate import look
from headwise.recipes.pair_config import PairConfig
from headwise.recipes.run import Run
from headwise.recipes.subjects import Own, Subject
from headwise.tasks.sources import Source
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import Runtime

__all__ = ["report", "shown"]

_LOOKED_AT = 2000
"""Texts among which those are sought where heads are sharpest."""


def report(
    subject: Subject,
    source: Source,
    runtime: Runtime,
    *,
    split: str | None = None,
    texts: int = 4,
    before: HeadTable | None = None,
    about: str = "",
) -> Report:
    """Look at every head over all texts of a table, and draw the texts on which most heads are at their sharpest.

    A model that writes is drawn on what it writes itself. Of several processes the first one draws.

    Args:
        subject: the model.
        source: a file, a folder, `hub:NAME`, or two files of lines.
        runtime: on what.
        split: rows of which split; left out, `test` where there is one, else all.
        texts: how many texts to draw, found among the first 2,000.
        before: the table of the model before it was changed, to stand beside.
        about: a line that says which model and texts it is about.
    """
    table = look(subject, source, runtime, split=split)
    if not runtime.first:
        return Report(table, (), about, before)
    examples = subject.examples(source, split=split, quiet=True)
    with torch.inference_mode():
        rows = _sharpest_rows(subject, examples, texts, runtime)
        drawings = [_drawn(subject, examples.batch([row]).to(runtime.device)) for row in rows]
    return Report(table, drawings, about, before)


def shown(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Write tokens as people read them: marks that stand for a space become one."""
    return [token.replace("▁", " ").replace("Ġ", " ") for token in tokenizer.tokens(ids)]


def _sharpest_rows(subject: Subject, examples: Examples[Any], count: int, runtime: Runtime) -> list[int]:
    """Name the rows on which most heads look most at one word, on average."""
    best: dict[tuple[str, int], tuple[float, int]] = {}
    for rows in cut_rows(examples.length_N[:_LOOKED_AT]) if count else ():
        batch = examples.batch(rows.tolist()).to(runtime.device)
        with sharpness(subject.model.eval()) as sharp_of:
            subject.forward(batch)
        for place, sharp_BH in sharp_of.items():
            for head, (sharp, at) in enumerate(zip(*(each.tolist() for each in sharp_BH.max(0)), strict=True)):
                best[place, head] = max(best.get((place, head), (-1.0, 0)), (sharp, int(rows[at])))
    votes = Counter(row for _, row in best.values())
    return [row for row, _ in votes.most_common(count)]


def _drawn(subject: Subject, batch: Batch | PairBatch) -> Drawing:
    if isinstance(batch, PairBatch):
        assert isinstance(subject, Own), "models of Transformers read texts alone"
        return _drawn_pair(subject.run, batch)
    tokens = shown(subject.tokenizer, batch.tokens_BT[0].tolist())
    return draw(subject.model, lambda: subject.forward(batch), tokens)


def _drawn_pair(run: Run, batch: PairBatch) -> Drawing:
    """Let the model write, then read what it wrote in one pass: the same attention as step by step."""
    model, config = run.model, run.config
    assert isinstance(model, Seq2Seq), "it reads pairs"
    assert isinstance(config, PairConfig), "it was trained on pairs"
    source = batch.source_BK, batch.source_length_B
    ((best,),) = run.write(*source, replace(config.decoding, n_best=1))
    target_BT = torch.tensor([[model.config.begin, *best.ids]], device=batch.source_BK.device)
    length_B = torch.tensor([target_BT.shape[1]], device=target_BT.device)
    tokens = [shown(run.tokenizer, ids_BT[0].tolist()) for ids_BT in (batch.source_BK, target_BT)]
    return draw(model, lambda: model(*source, target_BT, length_B), tokens[0], target=tokens[1], written=1)
