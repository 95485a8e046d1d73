"""Cut a text into the pieces that are masked one by one, and say which tokens belong to each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Piece", "pieces", "spans_of"]

# A run of letters and digits with what joins them, or a single letter of a script that is written without spaces.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W\u3040-\u9fff\uac00-\ud7af]+(?:['\u2019-]\w+)*"
)


class Piece(NamedTuple):
    """Hold some words of a text that stand side by side."""

    begin: int
    """Place of its first character."""
    end: int
    """Place after its last."""
    tokens: tuple[int, ...]
    """Places of its tokens in the sequence."""


def pieces(text: str, spans: Sequence[tuple[int, int]], most: int) -> list[Piece]:
    """Cut a text into words, or into `most` runs of words where it has more.

    A token belongs to the piece in which it begins; a piece without tokens, beyond where the text was cut, is left out.

    Args:
        text: the text.
        spans: begin and end of each token in it; both 0 for tokens around the text.
        most: how many pieces there may be.

    Example:
        >>> pieces("Not bad!", [(0, 0), (0, 3), (4, 7), (7, 8), (0, 0)], 8)
        [Piece(begin=0, end=3, tokens=(1,)), Piece(begin=4, end=7, tokens=(2,))]
    """
    words = [found.span() for found in _WORD.finditer(text)] or [(0, len(text))]
    size = -(-len(words) // most)
    runs = [words[at : at + size] for at in range(0, len(words), size)]
    found = (_piece(run[0][0], run[-1][1], spans) for run in runs)
    return [piece for piece in found if piece.tokens]


def _piece(begin: int, end: int, spans: Sequence[tuple[int, int]]) -> Piece:
    tokens = (i for i, (first, last) in enumerate(spans) if last > first and begin <= first < end)
    return Piece(begin, end, tuple(tokens))


def spans_of(prefixes: Sequence[str]) -> list[tuple[int, int]]:
    """Say which characters of a text each of its tokens has added, spaces before them left out.

    Args:
        prefixes: the text as it stood after each token.

    Example:
        >>> spans_of(["un", "un film", "un film", "un film noir"])
        [(0, 2), (3, 7), (7, 7), (8, 12)]
    """
    spans, last = [], 0
    for text in prefixes:
        end = max(last, len(text))
        begin = end - len(text[last:end].lstrip())
        spans.append((begin, end))
        last = end
    return spans
