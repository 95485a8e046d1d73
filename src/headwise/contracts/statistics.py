"""Define what can be known of a head without keeping its weights.

In every definition P is the row of attention weights of a query before dropout, `i + offset` the query's own position
among the sample's valid keys (see `contracts.masks`), and `j` a key's index counted from the first valid key. A query
that may look at nothing is not live: its numbers are 0 (its log-sum-exp -inf) and nothing counts it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from headwise.contracts.tree import plain
from headwise.errors import ConfigError

__all__ = ["NOTHING", "Scored", "Seen", "Statistics"]


@plain
class Statistics:
    """Choose what to learn about each head; every number is exact and takes memory that grows with the length only.

    Example:
        >>> Statistics(entropy=True, sink=1, map=8)
        Statistics(entropy, sink=1, map=8)
    """

    lse: bool = False
    """Log-sum-exp of the scores, natural log; -inf where nothing may be seen. Always given; carries gradient."""
    entropy: bool = False
    """-sum P log P in nats: 0 when one key has all the weight, log(visible keys) when all weigh the same. Carries
    gradient."""
    peak: bool = False
    """The largest weight, 0 to 1, and the index of its key (of equal weights, any)."""
    position: bool = False
    """sum P j: where the head looks on average, in keys from the first valid one."""
    distance: bool = False
    """sum P abs(i + offset - j): how far it looks on average, in keys; 0 on itself."""
    sink: int = 0
    """Mass on the first `sink` valid keys, 0 to 1."""
    diagonal: bool = False
    """Mass on the query's own position, 0 to 1; self attention only."""
    previous: bool = False
    """Mass on the position before the query's own, 0 to 1; self attention only."""
    next: bool = False
    """Mass on the position after the query's own, 0 to 1; self attention only."""
    local: int | None = None
    """Mass within `local` positions of the query's own on either side, 0 to 1."""
    received: bool = False
    """For each key, sum over live queries of P: how much it is looked at; over keys it adds up to the live queries."""
    map: int = 0
    """A map of `map` x `map` cells: cell (floor(i cells / queries), floor(j cells / keys)) holds its summed mass."""
    links: int = 0
    """The `links` strongest keys of each query, strongest first; weight 0 where fewer are visible."""

    def __repr__(self) -> str:
        return f"Statistics({self.asked})"

    @property
    def asked(self) -> str:
        """Write the choice as one line of text, which `Statistics.parse` reads."""
        chosen = [(name, value) for name, value in vars(self).items() if _is_on(name, value)]
        return ", ".join([name if value is True else f"{name}={value}" for name, value in chosen])

    @classmethod
    @lru_cache(maxsize=64)
    def parse(cls, asked: str) -> Statistics:
        """Read what `asked` wrote."""
        pairs = (item.strip().partition("=") for item in asked.split(",") if item.strip())
        chosen: dict[str, Any] = {name: int(value) if value else True for name, _, value in pairs}
        return cls(**chosen) if chosen else NOTHING

    def check(self) -> None:
        """Raise `ConfigError` when a number is out of its range."""
        for name, told in _WHOLE.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 <= value <= _MOST):
                raise ConfigError(
                    f"`{name}` must be a whole number of at least 0, at most 2**30; got {value!r}. {told}"
                )


NOTHING = Statistics()
"""What is asked where nobody looks."""

_MOST = 2**30
_WHOLE = {
    "sink": "Say how many first keys to add up (1 is usual), or 0 for none.",
    "local": "Say how many positions to either side to add up, or None for none.",
    "map": "Say how many cells a side the map has (64 is usual), or 0 for none.",
    "links": "Say how many of the strongest keys to keep, or 0 for none.",
}


def _is_on(name: str, value: Any) -> bool:
    return value is not None if name == "local" else bool(value)


@plain
class Scored:
    """Hold a sum and its count, so that batches of any size and processes of any number merge by adding.

    Example:
        >>> (Scored(torch.tensor(3.0), torch.tensor(2)) + Scored(torch.tensor(1.0), torch.tensor(2))).mean
        tensor(1.)
    """

    sum: Tensor
    """What was added up."""
    count: Tensor
    """How many were added up."""

    def __add__(self, other: Scored) -> Scored:
        """Merge two parts."""
        return Scored(self.sum + other.sum, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """Divide the sum by the count; 0 where nothing was counted."""
        return self.sum / self.count.clamp(min=1)


@plain
class Seen:
    """Hold what was seen of every head in one call; a field that was not asked for is `None`.

    All but `lse_BHQ` and `entropy_BHQ` are detached. Numbers are float32 (float64 for float64 inputs).
    """

    lse_BHQ: Tensor
    """See `Statistics.lse`."""
    entropy_BHQ: Tensor | None = None
    """See `Statistics.entropy`."""
    peak_BHQ: Tensor | None = None
    """See `Statistics.peak`."""
    peak_key_BHQ: Tensor | None = None
    """Index of the key with the largest weight, as in the key tensor; -1 where nothing may be seen."""
    position_BHQ: Tensor | None = None
    """See `Statistics.position`."""
    distance_BHQ: Tensor | None = None
    """See `Statistics.distance`."""
    sink_BHQ: Tensor | None = None
    """See `Statistics.sink`."""
    diagonal_BHQ: Tensor | None = None
    """See `Statistics.diagonal`."""
    previous_BHQ: Tensor | None = None
    """See `Statistics.previous`."""
    next_BHQ: Tensor | None = None
    """See `Statistics.next`."""
    local_BHQ: Tensor | None = None
    """See `Statistics.local`."""
    received_BHK: Tensor | None = None
    """See `Statistics.received`."""
    map_BHPP: Tensor | None = None
    """See `Statistics.map`: rows are query cells, columns key cells."""
    map_count_BHP: Tensor | None = None
    """Live queries in each row of the map."""
    link_weight_BHQN: Tensor | None = None
    """See `Statistics.links`."""
    link_key_BHQN: Tensor | None = None
    """The keys of the links, as indices of the key tensor; -1 where there is none."""

    @property
    def live_BHQ(self) -> Tensor:
        """Tell which queries may look at something."""
        return self.lse_BHQ != -torch.inf

    def per_head(self) -> dict[str, Scored]:
        """Sum every per-query statistic over samples and live queries, and the map over samples: one row a head.

        Two results merge by adding their entries, whatever the batches were. Links do not add; they stay per query.
        """
        live_BHQ = self.live_BHQ
        count_H = live_BHQ.sum((0, 2))
        scored = {
            name: Scored(getattr(self, f"{name}_BHQ").masked_fill(~live_BHQ, 0).detach().sum((0, 2)), count_H)
            for name in _PER_QUERY
            if getattr(self, f"{name}_BHQ") is not None
        }
        if self.map_BHPP is not None and self.map_count_BHP is not None:
            scored["map"] = Scored(self.map_BHPP.sum(0), self.map_count_BHP.sum(0)[:, :, None])
        return scored


_PER_QUERY = ("lse", "entropy", "peak", "position", "distance", "sink", "diagonal", "previous", "next", "local")
