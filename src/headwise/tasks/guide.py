"""Teach a head of a translator to align while it learns to translate (Garg et al. 2019, section 4.2).

One head of the cross attention is drawn towards the source tokens that IBM-1 expects for the word that its state has
read. Chen et al. (2020) found that a state aligns the word that it has read better than the one that it is about to
write: it knows which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headwise.contracts import PairBatch, Scored
from headwise.errors import InputError
from headwise.functional import attention_weights
from headwise.modules import Attend, DecoderLayer
from headwise.tasks.align import AligningHead, Lexicon

__all__ = ["NEARNESS", "guided", "taught_head", "teacher"]

NEARNESS = 8.0
"""How far the teacher prefers near words, as `Lexicon` counts it; see docs/LOG.md."""

_Loss = Callable[[nn.Module, PairBatch], Scored]


def teacher(batches: Iterable[PairBatch]) -> Lexicon:
    """Learn from pairs which source tokens, the end token left out, a target word stands for."""
    return Lexicon((_unended(batch) for batch in batches), nearness=NEARNESS)


def _unended(batch: PairBatch) -> PairBatch:
    return replace(batch, source_length_B=batch.source_length_B - 1)


def taught_head(model: nn.Module) -> AligningHead:
    """Name the head that is taught: the first of the last cross attention but one, or of the only one.

    Raises:
        InputError: when the model has no cross attention of ours.
    """
    layers = [name for name, part in model.named_modules() if isinstance(part, DecoderLayer)]
    if not layers:
        raise InputError(
            f"to learn to align, a model must have cross attention of `headwise.DecoderLayer`; got "
            f"{type(model).__name__} without. Set `training.guided_alignment` to 0."
        )
    place = f"{layers[-2:][0]}.cross_attention.attend"
    seam = model.get_submodule(place)
    assert isinstance(seam, Attend), "it is where the layer attends"
    return AligningHead(place, seam.heads[0], reads=True)


def guided(loss: _Loss, lexicon: Lexicon, *, weight: float) -> _Loss:
    """Add to a summed loss what teaches one head to align: the cross-entropy of its weights, summed over words.

    Args:
        loss: calls a model on pairs; each source ends in an end token.
        lexicon: a `teacher` that has learned from the training data.
        weight: how much the alignment of a word counts beside a token of the loss.
    """

    def both(model: nn.Module, batch: PairBatch) -> Scored:
        with _listening(model, taught_head(model)) as heard:
            scored = loss(model, batch)
        weights_BTK = torch.cat(heard)[:, 1:]
        wanted_BTK = _wanted(lexicon, batch).to(weights_BTK)
        times = len(weights_BTK) // len(wanted_BTK)  # 2 where R-Drop reads the batch twice
        log_BTK = weights_BTK.clamp(min=torch.finfo(weights_BTK.dtype).tiny).log()
        return Scored(scored.sum - weight * (wanted_BTK.repeat(times, 1, 1) * log_BTK).sum(), scored.count)

    return both


def _wanted(lexicon: Lexicon, batch: PairBatch) -> Tensor:
    """Give where each target word should look, shape (B, words, K): at the end token if it stands for no word."""
    wanted_BTK = lexicon.posterior(_unended(batch))
    real_BT = torch.arange(wanted_BTK.shape[1]) < (batch.target_length_B.cpu() - 2)[:, None]
    last_BTK = (batch.source_length_B.cpu() - 1)[:, None, None].expand(-1, wanted_BTK.shape[1], 1)
    return wanted_BTK.scatter(2, last_BTK, ((1 - wanted_BTK.sum(-1)) * real_BT)[..., None])


@contextmanager
def _listening(model: nn.Module, head: AligningHead) -> Iterator[list[Tensor]]:
    """Collect the weights of one head, with their gradient, shape (B, T, K)."""
    heard: list[Tensor] = []
    hook = model.get_submodule(head.place).register_forward_pre_hook(partial(_listen, heard, head.head))
    try:
        yield heard
    finally:
        hook.remove()


def _listen(heard: list[Tensor], name: int, seam: nn.Module, args: tuple[Any, ...]) -> None:
    assert isinstance(seam, Attend), "so the place was named"
    query_BHQD, key_BGKD, _, mask = args
    head = seam.heads.index(name)
    group = head * key_BGKD.shape[1] // query_BHQD.shape[1]
    query_B1QD, key_B1KD = query_BHQD[:, head : head + 1], key_BGKD[:, group : group + 1]
    with torch.autocast(query_BHQD.device.type, enabled=False):  # the logarithm wants the digits of float32
        least = torch.promote_types(query_BHQD.dtype, torch.float32)
        heard.append(attention_weights(query_B1QD.to(least), key_B1KD.to(least), mask, scale=seam.scale)[:, 0])
