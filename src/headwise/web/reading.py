"""Cut the texts of requests into tokens as a model reads them, and mask pieces of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.errors import InputError
from headwise.tasks.tokenizer import Tokenizer
from headwise.web.words import Piece, pieces

__all__ = ["Reader", "mask_of", "padded"]

_MASKS = ("[MASK]", "<mask>")
"""What BERT and RoBERTa, and models made like them, call the token that they were trained to fill in."""


@dataclass(frozen=True)
class Reader:
    """Cut texts into the tokens that a model reads."""

    tokenizer: Tokenizer
    """What cuts them."""
    most: int
    """Most tokens of a text."""
    occlusions: int
    """Most pieces that are masked in a text."""
    mask: int
    """Token that stands for a masked one."""
    ends: bool = False
    """Whether begin and end tokens are put around each text."""
    after: tuple[int, ...] = ()
    """Tokens that stand after each text, and are not counted."""

    def encoded(self, texts: Sequence[str], *, cut: bool) -> tuple[list[list[int]], int]:
        """Give the tokens of each text, and how many texts lost their end.

        Raises:
            InputError: for a text with too many tokens, unless it may be cut.
        """
        found = self.tokenizer.encode(texts, max_tokens=self.most, ends=self.ends)
        if found.cut and not cut:
            told = f"more in {found.cut} of {len(texts)}"
            raise InputError(f"texts must have at most {self.most} tokens; got {told}. Set `cut`.")
        return [[*ids, *self.after] for ids in found.ids], found.cut

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Give begin and end of each token in a text, those of `after` left out; both 0 for tokens around it."""
        return self.tokenizer.offsets(text, max_tokens=self.most, ends=self.ends)

    def pieces(self, text: str) -> list[Piece]:
        """Give the pieces of a text that are masked one by one."""
        return pieces(text, self.spans(text), self.occlusions)

    def without(self, ids: Sequence[int], piece: Piece) -> list[int]:
        """Mask the tokens of a piece."""
        hidden = frozenset(piece.tokens)
        return [self.mask if i in hidden else id_ for i, id_ in enumerate(ids)]


def mask_of(tokenizer: Tokenizer) -> int:
    """Give the token that stands for a word taken away; the unknown one where the model was trained with no other."""
    found = (tokenizer.inner.token_to_id(name) for name in _MASKS)
    id_ = next((id_ for id_ in found if id_ is not None), None)
    return tokenizer.unknown_id if id_ is None else int(id_)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Put token sequences into one tensor, shape (B, T), and tell the length of each, shape (B,)."""
    tokens_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True)
    length_B = torch.tensor([len(ids) for ids in rows])
    return tokens_BT.to(device), length_B.to(device)
