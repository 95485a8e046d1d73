"""Give vectors a sense of position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from headwise.contracts import Alibi, RelativeBias
from headwise.errors import ConfigError, InputError
from headwise.functional import sinusoidal

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["AlibiPositions", "LearnedPositions", "RelativePositions", "SinusoidalPositions", "TokenEmbedding"]


class TokenEmbedding(nn.Module):
    """Give every token its vector; freeze or tune the vectors through `table.weight.requires_grad_()`.

    Args:
        vocabulary: number of tokens.
        d_model: width of what comes out.
        width: width of the vectors, which are projected where it is not `d_model`; `d_model` where left out.
        std: standard deviation of the first, random vectors.

    Example:
        >>> TokenEmbedding(100, 64, width=50)(torch.tensor([[7, 99]])).shape
        torch.Size([1, 2, 64])
    """

    def __init__(self, vocabulary: int, d_model: int, *, width: int | None = None, std: float = 0.02) -> None:
        super().__init__()
        width = d_model if width is None else width
        self.table = nn.Embedding(vocabulary, width)
        self.project = nn.Linear(width, d_model, bias=False) if width != d_model else None
        nn.init.normal_(self.table.weight, std=std)

    def forward(self, tokens_BT: Int[Tensor, "B T"]) -> Tensor:
        """Look the tokens up.

        Raises:
            InputError: when a token is not in the vocabulary; on an accelerator, where looking waits, PyTorch tells.
        """
        vocabulary = self.table.num_embeddings
        if tokens_BT.device.type == "cpu" and not torch.compiler.is_compiling() and tokens_BT.numel():
            least, most = (int(end) for end in tokens_BT.aminmax())
            if least < 0 or most >= vocabulary:
                raise InputError(
                    f"tokens must lie in the vocabulary, 0 to {vocabulary - 1}; got {least} to {most}. "
                    "Use the tokenizer that the model was built with."
                )
        vectors_BTN: Tensor = self.table(tokens_BT)
        return vectors_BTN if self.project is None else self.project(vectors_BTN)

    @torch.no_grad()
    def load(self, vectors_VN: Float[Tensor, "V N"], known_V: Bool[Tensor, " V"] | None = None) -> None:
        """Take vectors that were learned elsewhere.

        Args:
            vectors_VN: a vector per token.
            known_V: which tokens have one; all where left out. The others get random vectors of the same spread.

        Raises:
            InputError: when the vectors do not fit the table.
        """
        weight_VN = self.table.weight
        if vectors_VN.shape != weight_VN.shape or (known_V is not None and known_V.shape != weight_VN.shape[:1]):
            told = tuple(vectors_VN.shape) if known_V is None else (tuple(vectors_VN.shape), tuple(known_V.shape))
            raise InputError(
                f"vectors must have the table's shape {tuple(weight_VN.shape)}; got {told}. "
                "Set `embedding_width` to the width of the vectors, and keep the vocabulary's rows."
            )
        vectors_VN = vectors_VN.to(weight_VN)
        if known_V is None:
            weight_VN.copy_(vectors_VN)
        elif bool(known_V.any()):
            known_V1 = known_V.to(weight_VN.device)[:, None]
            spread = float(vectors_VN[known_V1[:, 0]].std(correction=0))
            weight_VN.copy_(torch.where(known_V1, vectors_VN, torch.randn_like(weight_VN) * spread))


class SinusoidalPositions(nn.Module):
    """Add sine and cosine waves of the position (Vaswani et al. 2017, section 3.5); nothing to learn, no longest text.

    Args:
        halves: whether all sines come first, as in Marian.

    Example:
        >>> SinusoidalPositions()(torch.zeros(1, 2, 4))[0]
        tensor([[0.0000, 1.0000, 0.0000, 1.0000],
                [0.8415, 0.5403, 0.0100, 0.9999]])
    """

    def __init__(self, *, halves: bool = False) -> None:
        super().__init__()
        self.halves = halves

    def forward(self, x_BTM: Float[Tensor, "B T M"], offset: int = 0) -> Tensor:
        """Add the waves; `offset` is the position of the first vector, as in a cache."""
        waves_TM = sinusoidal(*x_BTM.shape[1:], offset=offset, device=x_BTM.device, halves=self.halves)
        return x_BTM + waves_TM.to(x_BTM.dtype)


class LearnedPositions(nn.Module):
    """Add a learned vector for each position up to a longest one.

    Args:
        positions: how many positions there are.
        d_model: width of the vectors.
    """

    def __init__(self, positions: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(positions, d_model)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, x_BTM: Float[Tensor, "B T M"], offset: int = 0) -> Tensor:
        """Add the vectors; `offset` is the position of the first, as in a cache.

        Raises:
            InputError: when the text is longer than the positions.
        """
        known, last = self.table.num_embeddings, offset + x_BTM.shape[1]
        if not torch.compiler.is_compiling() and last > known:
            raise InputError(f"texts must have at most {known} positions; got {last}. Cut the text, or learn more.")
        return x_BTM + self.table.weight[offset:last]


class AlibiPositions(nn.Module):
    """Make distant keys count less, each head by its own slope (Press et al. 2022, section 3); nothing to learn.

    The slopes are kept with the weights: a head that is left when others are cut keeps its own.

    Args:
        heads: number of query heads.
    """

    slopes_H: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes_H", Alibi.geometric(heads).slopes_H)

    def forward(self, heads: Sequence[int] | None = None) -> Alibi:
        """Give the bias as `attend` takes it, of all heads or of these."""
        return Alibi(self.slopes_H if heads is None else self.slopes_H[list(heads)])


class RelativePositions(nn.Module):
    """Learn a bias for each head and bucket of distances (T5; Raffel et al. 2020, section 2.1).

    Call it for a `RelativeBias` and pass that as `bias`; one can serve all layers.

    Args:
        heads: number of query heads.
        buckets: number of buckets, at least 4 (2 where not bidirectional).
        max_distance: distance from which on all keys share the last bucket.
        bidirectional: whether keys after the query have buckets of their own.
    """

    def __init__(self, heads: int, buckets: int = 32, *, max_distance: int = 128, bidirectional: bool = True) -> None:
        super().__init__()
        if not RelativeBias.possible(buckets, max_distance, bidirectional=bidirectional):
            least = "4 buckets (2 if not bidirectional) and a `max_distance` above half a direction's buckets"
            raise ConfigError(
                f"relative positions need {least}; got {buckets} buckets and max_distance {max_distance}. "
                "T5 has 32 and 128."
            )
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.table = nn.Parameter(torch.zeros(buckets, heads))

    def forward(self, heads: Sequence[int] | None = None) -> RelativeBias:
        """Give the bias as `attend` takes it, of all heads or of these."""
        table_NH = self.table if heads is None else self.table[:, list(heads)]
        return RelativeBias(table_NH, self.bidirectional, self.max_distance)
