"""Begin from word vectors: read them, put them into a model, and hold them still for a while."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from headwise.modules import TokenEmbedding
from headwise.tasks.tokenizer import Tokenizer
from headwise.tasks.vectors import Vectors, read_vectors

__all__ = ["Freeze", "put", "vectors_of"]


def vectors_of(name: str, tokenizer: Tokenizer, counted: Callable[[int], np.ndarray], *, quiet: bool) -> Vectors | None:
    """Read the vectors of a vocabulary from a file; none where it has no name.

    Args:
        counted: counts how often each token of a vocabulary of a size stands in the data.
    """
    if not name:
        return None
    return read_vectors(name, tokenizer.vocabulary, counts_V=counted(tokenizer.size), quiet=quiet)


def put(vectors: Vectors, table: TokenEmbedding, *, frozen: bool) -> None:
    """Put vectors into a model's table."""
    table.load(torch.from_numpy(vectors.matrix_VM), torch.from_numpy(vectors.found_V))
    table.table.weight.requires_grad_(not frozen)


class Freeze:
    """Hold a parameter still by zeroing its gradient: AdamW moves nothing whose gradients were all 0."""

    def __init__(self, parameter: Tensor, steps: int) -> None:
        self._steps, self._still = steps, False
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: torch.zeros_like(gradient) if self._still else gradient)

    def __call__(self, step: int) -> None:
        """Take note of a step, counted from 0."""
        self._still = step < self._steps
