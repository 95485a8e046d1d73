"""Guess what a head is for, by rules that can be read, with the evidence beside each guess."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Role", "guess"]

_SHARES = {
    "previous": "previous token",
    "next": "next token",
    "diagonal": "self",
    "sink": "first token",
    "separator": "separator",
    "same": "same token",
}
_MOST, _NEAR, _PICKED, _BROAD, _RARE, _LIFT = 0.4, 0.6, 0.5, 0.75, 0.3, 2.0


@dataclass(frozen=True)
class Role:
    """Name what a head seems to do, and why it is thought so."""

    name: str
    """The role; `mixed` where no rule holds."""
    evidence: str
    """The figures that the rule looked at."""


def guess(row: Mapping[str, Any]) -> Role:
    """Guess the role of one head from its row in a `HeadTable`.

    The first rule that holds decides. Figures that the row has not are passed over.

    1. previous token, next token, self, first token, separator, same token: the largest of these shares of the weights
       is at least 0.4. Statistics `previous`, `next`, `diagonal`, `sink`; `separator` and `same` where the observer
       knew the tokens.
    2. rare words (Voita et al. 2019, section 4.2): at least 0.3 of the weights lie on rare tokens, and twice as much as
       such tokens are among all.
    3. positional: at least 0.6 lie on the own position and its neighbours (`local`).
    4. aligning, of a head that looks at another text: its strongest link holds at least half of the weights (`peak`).
       Of a head that looks at its own text, picking.
    5. broad: the entropy is at least 0.75 of what weights have that are equal over a text of mean length.

    These are guesses: a share says where a head looks, not what the model does with it. In texts of a few tokens every
    share is large.

    Example:
        >>> guess({"kind": "self", "previous": 0.81, "next": 0.02, "entropy": 0.7})
        Role(name='previous token', evidence='previous 0.81')
    """
    shares = {name: row[name] for name in _SHARES if name in row}
    largest = max(shares, key=lambda name: shares[name], default="")
    if largest and shares[largest] >= _MOST:
        return Role(_SHARES[largest], _told(row, largest))
    if row.get("rare", 0.0) >= max(_RARE, _LIFT * row.get("rare_tokens", 0.0)):
        return Role("rare words", _told(row, "rare", "rare_tokens"))
    if row.get("local", 0.0) >= _NEAR:
        return Role("positional", _told(row, "local"))
    if row.get("peak", 0.0) >= _PICKED:
        return Role("aligning" if row.get("kind") == "cross" else "picking", _told(row, "peak"))
    length = row.get("length", 0.0)
    if "entropy" in row and length > 1 and row["entropy"] >= _BROAD * math.log(length):
        return Role("broad", f"{_told(row, 'entropy')}, {math.log(length):.2f} where all weights are equal")
    return Role("mixed", _told(row, largest) if largest else "")


def _told(row: Mapping[str, Any], *names: str) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {row[name]:.2f}" for name in names if name in row)
