"""Run a model over examples: batches of like lengths, shared by the processes, results in the examples' order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from headwise.contracts import Batch, Examples
from headwise.tasks.files import progress
from headwise.training import Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TOKENS", "all_logits", "in_batches"]

TOKENS = 8192
"""Padded tokens of a batch in evaluation."""


def in_batches(examples: Examples[Batch], runtime: Runtime, *, told: str = "", tokens: int = TOKENS) -> Iterator[Batch]:
    """Yield this process's share of the batches, the longest texts first, with a bar on a terminal where `told`."""
    cuts = runtime.share(_cuts(examples.length_N, tokens))
    with progress(told, len(cuts), unit=" batches", quiet=not (told and runtime.first)) as moved:
        for rows in cuts:
            yield examples.batch(rows.tolist()).to(runtime.device)
            moved(1)


def _cuts(length_N: NDArray[Any], tokens: int) -> list[NDArray[Any]]:
    """Cut the rows, sorted by length, into batches of at most so many padded tokens."""
    order_N = np.argsort(-length_N.astype(np.int64), kind="stable")
    cuts, at = [], 0
    while at < len(order_N):
        count = max(1, tokens // max(1, int(length_N[order_N[at]])))
        cuts.append(order_N[at : at + count])
        at += count
    return cuts


def all_logits(model: nn.Module, examples: Examples[Batch], runtime: Runtime, *, told: str = "") -> Tensor:
    """Compute the logits of every example in evaluation, float32 on the CPU, in the examples' order."""
    model.eval()
    with torch.inference_mode(), runtime.autocast():
        found = [
            (batch.row_B.cpu(), model(batch.tokens_BT, batch.length_B).float().cpu())
            for batch in in_batches(examples, runtime, told=told)
        ]
    everywhere = [part for parts in runtime.gather([found]) for part in parts]
    rows_N, logits_NC = (torch.cat(parts) for parts in zip(*everywhere, strict=True))
    ordered_NC = torch.empty_like(logits_NC)
    ordered_NC[rows_N] = logits_NC
    return ordered_NC
