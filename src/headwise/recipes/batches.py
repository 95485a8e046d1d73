"""Run a model over examples: batches of like lengths, shared by the processes, results in the examples' order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from headwise.contracts import Batch, Examples, PairBatch
from headwise.errors import InputError
from headwise.tasks.files import progress
from headwise.training import Runtime, TrainingConfig
from headwise.training.sampler import Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "TOKENS",
    "all_logits",
    "batches_of_pass",
    "checked_texts",
    "cut_rows",
    "in_batches",
    "in_order",
    "lexicon_batches",
    "spread",
]

TOKENS = 8192
"""Padded tokens of a batch in evaluation."""
_LINKS = 1 << 25
"""Most pairs of a source and a target token from which a lexicon learns; each takes some 40 bytes."""


_Some = TypeVar("_Some", Batch, PairBatch)
_Result = TypeVar("_Result")


def batches_of_pass(examples: Examples[Any], training: TrainingConfig) -> int:
    """Count the batches of a pass of training."""
    return len(Sampler(examples.length_N, tokens=training.batch_tokens, seed=training.seed))


def in_batches(examples: Examples[_Some], runtime: Runtime, *, told: str = "", tokens: int = TOKENS) -> Iterator[_Some]:
    """Yield this process's share of the batches, the longest texts first, with a bar on a terminal where `told`."""
    cuts = runtime.share(cut_rows(examples.length_N, tokens))
    with progress(told, len(cuts), unit=" batches", quiet=not (told and runtime.first)) as moved:
        for rows in cuts:
            yield examples.batch(rows.tolist()).to(runtime.device)
            moved(1)


def cut_rows(length_N: NDArray[Any], tokens: int = TOKENS) -> list[NDArray[Any]]:
    """Cut the rows, the longest first, into batches of at most about so many padded tokens.

    Example:
        >>> [rows.tolist() for rows in cut_rows(np.array([2, 9, 3, 4]), 9)]
        [[1], [3, 2], [0]]
    """
    if length_N.ndim == 2:
        length_N = length_N.sum(1)
    order_N = np.argsort(-length_N.astype(np.int64), kind="stable")
    cuts, at = [], 0
    while at < len(order_N):
        count = max(1, tokens // max(1, int(length_N[order_N[at]])))
        cuts.append(order_N[at : at + count])
        at += count
    return cuts


def lexicon_batches(examples: Examples[PairBatch], *, links: int = _LINKS, quiet: bool = False) -> Iterator[PairBatch]:
    """Yield what a `Lexicon` learns from: batches that are drawn, the same each time, as many as have so many links."""
    cuts = cut_rows(examples.length_N)
    order = np.random.default_rng(0).permutation(len(cuts))
    links_N = [int(examples.length_N[cuts[i]].astype(np.int64).prod(1).sum()) for i in order]
    drawn = order[: max(1, int(np.searchsorted(np.cumsum(links_N), links, side="right")))]
    with progress("learning which words belong together", len(drawn), unit=" batches", quiet=quiet) as moved:
        for i in drawn:
            yield examples.batch(cuts[i].tolist())
            moved(1)


def all_logits(model: nn.Module, examples: Examples[Batch], runtime: Runtime, *, told: str = "") -> Tensor:
    """Compute the logits of every example in evaluation, float32 on the CPU, in the examples' order."""
    model.eval()
    with torch.inference_mode(), runtime.autocast():
        found = [
            (batch.row_B.cpu(), model(batch.tokens_BT, batch.length_B).float().cpu())
            for batch in in_batches(examples, runtime, told=told)
        ]
    logits = in_order(found, len(examples.length_N), runtime)
    return torch.stack(logits)


def in_order(found: Sequence[tuple[Tensor, Sequence[_Result]]], count: int, runtime: Runtime) -> list[_Result]:
    """Bring the results of all processes' batches into the order of their rows.

    Args:
        found: rows and results of each batch of this process.
        count: how many rows there are.
        runtime: how many processes work together.
    """
    ordered: dict[int, _Result] = {}
    for rows_B, results in (part for parts in runtime.gather([found]) for part in parts):
        ordered.update(zip(rows_B.tolist(), results, strict=True))
    return [ordered[row] for row in range(count)]


def spread(answers: Iterable[_Result], before: Sequence[int], blank: _Result) -> Iterator[_Result]:
    """Put a blank where a row was left out, after as many answers as rows were kept before it.

    Example:
        >>> list(spread("abc", (0, 2, 2), "-"))
        ['-', 'a', 'b', '-', '-', 'c']
    """
    missing = Counter(before)
    for place, answer in enumerate(answers):
        yield from [blank] * missing.pop(place, 0)
        yield answer
    yield from [blank] * missing.total()


def checked_texts(texts: Sequence[str]) -> None:
    """Refuse texts that are not Unicode.

    Raises:
        InputError: for one that holds bytes of another encoding, as the command line hands them on.
    """
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"texts must be in UTF-8; got {text[:40]!r}. Convert them.")
