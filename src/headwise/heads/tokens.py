"""Say which share of a head's weights lies on separators, on rare tokens, and on tokens equal to the query's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwise.contracts import Mask
from headwise.functional import attention_weights

__all__ = ["Tokens", "shares"]

_WINDOW = 128


@dataclass(frozen=True)
class Tokens:
    """Hold what a model reads, and which of its tokens are special."""

    tokens_BT: Tensor
    """Token ids, as the model gets them."""
    separators: tuple[int, ...] = ()
    """Ids of separators, such as `[SEP]` and the full stop."""
    rare: tuple[int, ...] = ()
    """Ids of rare tokens."""

    def fit(self, query_BHQD: Tensor, key_BGKD: Tensor) -> bool:
        """Tell whether a call's queries and keys are these tokens."""
        batch, count = self.tokens_BT.shape
        return query_BHQD.shape[0] == batch and query_BHQD.shape[2] == key_BGKD.shape[2] == count


@torch.no_grad()
def shares(
    query_BHQD: Tensor, key_BGKD: Tensor, mask: Mask, tokens: Tokens, *, scale: float | None = None, bias: Any = None
) -> dict[str, Tensor]:
    """Give four figures of each query, shape (B, H, Q), a window of queries at a time.

    `separator` and `rare` are the weights on such tokens, `same` those on other places of the query's own token, and
    `rare_tokens` the part of all tokens of the batch that is rare.
    """
    ids_BT = tokens.tokens_BT.to(query_BHQD.device)
    marked_BT = {
        "separator": torch.isin(ids_BT, ids_BT.new_tensor(tokens.separators)),
        "rare": torch.isin(ids_BT, ids_BT.new_tensor(tokens.rare)),
    }
    parts: dict[str, list[Tensor]] = {name: [] for name in (*marked_BT, "same")}
    count = query_BHQD.shape[2]
    for begin in range(0, count, _WINDOW):
        window = slice(begin, min(begin + _WINDOW, count))
        weights_BHQK = attention_weights(query_BHQD, key_BGKD, mask, bias=bias, scale=scale, queries=window)
        for name, chosen_BK in marked_BT.items():
            parts[name].append((weights_BHQK * chosen_BK[:, None, None]).sum(-1))
        same_BQK = ids_BT[:, window, None] == ids_BT[:, None]
        same_BQK &= torch.arange(count)[window, None].to(ids_BT.device) != torch.arange(count, device=ids_BT.device)
        parts["same"].append((weights_BHQK * same_BQK[:, None]).sum(-1))
    found = {name: torch.cat(each, 2) for name, each in parts.items()}
    return found | {"rare_tokens": torch.full_like(found["rare"], float(marked_BT["rare"].float().mean()))}
