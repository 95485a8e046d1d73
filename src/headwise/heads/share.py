"""Choose which key and value heads stand for the others where many become few."""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.contracts.layout import HeadId, Layout, Place
from headwise.heads.importance import HeadScores
from headwise.heads.prune import check_scores

__all__ = ["representatives"]


def representatives(layout: Layout, scores: HeadScores, kv_heads: int) -> dict[str, Tensor]:
    """Choose, for each new key and value head, the one of those it stands for that the model needs most.

    What a head is needed for is the sum of the scores of its query heads: these lose nothing, and the others of the
    group look by its keys from then on. Ainslie et al. (2023, "GQA", sections 2.1 and 3.3) join heads by their mean,
    and found that better than a single head when the model is trained on for long. Which of both loses less before
    that depends on the model.

    Args:
        layout: the model.
        scores: a number for each of its heads; the larger, the more it is needed.
        kv_heads: key and value heads that each layer is to have.

    Returns:
        Weights for `layout.share`, shape (G, N), by the path of the seam: 1 for the head that is kept, else 0.

    Raises:
        ConfigError: when the number does not divide the key and value heads of every layer.
        InputError: when the scores are of another model.
    """
    check_scores(scores, [HeadId(place.path, name) for place in layout.places for name in place.heads])
    return {place.path: _one_each(place, scores, kv_heads) for place in layout.places}


def _one_each(place: Place, scores: HeadScores, kv_heads: int) -> Tensor:
    size = place.stood_for(kv_heads)
    needed_G = torch.tensor(
        [sum(scores.scores[HeadId(place.path, name)] for name in group) for group in place.groups], dtype=torch.float64
    )
    needed_GN = needed_G.unflatten(0, (kv_heads, size))
    return torch.nn.functional.one_hot(needed_GN.argmax(1), size).float()
