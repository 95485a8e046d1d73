"""Compute attention: the one operation, its weights, and which kernel it takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from headwise.contracts.biases import Alibi, Dropout, RelativeBias
from headwise.contracts.masks import Mask
from headwise.contracts.problem import Problem, autocast_dtype
from headwise.contracts.statistics import NOTHING, Seen, Statistics
from headwise.contracts.tree import plain
from headwise.errors import InputError
from headwise.functional.checks import check_bias, check_mask, check_tensors
from headwise.kernels import BACKENDS, choose, measure, named, preferred, reference, run
from headwise.kernels.philox import WORDS

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Explanation", "attend", "attention_weights", "explain"]

_MOST_WEIGHTS = 1 << 28
"""Weights that `attention_weights` hands out at once: 1 GB of float32."""


@overload
def attend(
    query_BHQD: Float[Tensor, "B H Q D"],
    key_BGKD: Float[Tensor, "B G K D"],
    value_BGKE: Float[Tensor, "B G K E"],
    mask: Mask | None = None,
    *,
    bias: Tensor | Alibi | RelativeBias | None = None,
    scale: float | None = None,
    dropout: float | Dropout = 0.0,
    statistics: None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def attend(
    query_BHQD: Float[Tensor, "B H Q D"],
    key_BGKD: Float[Tensor, "B G K D"],
    value_BGKE: Float[Tensor, "B G K E"],
    mask: Mask | None = None,
    *,
    bias: Tensor | Alibi | RelativeBias | None = None,
    scale: float | None = None,
    dropout: float | Dropout = 0.0,
    statistics: Statistics,
    backend: str = "auto",
) -> tuple[Tensor, Seen]: ...


def attend(
    query_BHQD: Float[Tensor, "B H Q D"],
    key_BGKD: Float[Tensor, "B G K D"],
    value_BGKE: Float[Tensor, "B G K E"],
    mask: Mask | None = None,
    *,
    bias: Tensor | Alibi | RelativeBias | None = None,
    scale: float | None = None,
    dropout: float | Dropout = 0.0,
    statistics: Statistics | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Seen]:
    """Compute `softmax(scale q k^T + bias) v` per head (Vaswani et al. 2017, section 3.2.1), and what each head does.

    Memory grows with the length, not with its square. A query that may look at nothing gets zeros and zero gradients.

    Args:
        query_BHQD: queries.
        key_BGKD: keys, for the same number of heads or a divisor of it: query head h looks at group h // (H / G).
        value_BGKE: values.
        mask: which keys each query may look at; all where left out.
        bias: added to the scores: a float tensor of shape (B, H, Q, K), an axis of size 1 shared; `Alibi`; or
            `RelativeBias`. A bias of -inf hides a key.
        scale: factor of the scores; 1 / sqrt(D) where left out.
        dropout: rate at which weights are dropped, always, or a `Dropout` that holds its seed. A rate alone draws one
            seed from PyTorch's default generator.
        statistics: what to learn about each head; the result is then `(output, seen)`.
        backend: "auto", "native", "fused", "triton" or "reference"; `explain` tells what "auto" takes.

    Returns:
        The output, shape (B, H, Q, E), laid out so that joining its heads copies nothing; with `statistics`, also
        what was seen.

    Raises:
        InputError: when tensors, mask and bias do not fit each other.
        ConfigError: when a statistic's number is out of range.
        BackendError: when the backend named does not exist or cannot take the call.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()
        >>> output, seen = attend(q, k, v, Mask.causal(), statistics=Statistics(entropy=True))
        >>> output.shape, seen.entropy_BHQ.shape
        (torch.Size([2, 4, 5, 8]), torch.Size([2, 4, 5]))
    """
    if statistics is not None and isinstance(mask, Mask) and mask.counted is not None:
        tensors, counted = (query_BHQD, key_BGKD, value_BGKE), mask.counted
        output_BHQE = attend(*tensors, mask, bias=bias, scale=scale, dropout=dropout, backend=backend)
        seen = attend(*tensors, counted, bias=bias, scale=scale, statistics=statistics, backend=backend)[1]
        return output_BHQE, seen
    problem = _problem((query_BHQD, key_BGKD, value_BGKE), mask, bias, scale, dropout)
    if backend != "auto":
        named(backend)
    if statistics is None:
        return (reference.attend(problem, NOTHING) if backend == "reference" else run(problem, NOTHING, backend))[0]
    given: object = statistics
    if not isinstance(given, Statistics):
        told = type(given).__name__
        raise InputError(f"`statistics` must be a Statistics; got {told}. Pass Statistics(entropy=True), say.")
    statistics.check()
    way = reference.attend(problem, statistics) if backend == "reference" else run(problem, statistics, backend)
    lse_BHQ = way[1].to(problem.working_dtype)
    return way[0], Seen(lse_BHQ, **dict(zip(measure.names(statistics), way[2:], strict=True)))


def attention_weights(
    query_BHQD: Float[Tensor, "B H Q D"],
    key_BGKD: Float[Tensor, "B G K D"],
    mask: Mask | None = None,
    *,
    bias: Tensor | Alibi | RelativeBias | None = None,
    scale: float | None = None,
    queries: slice | None = None,
) -> Tensor:
    """Compute the attention weights of a window of queries, before dropout, differentiable.

    Args:
        query_BHQD: all queries.
        key_BGKD: all keys.
        mask: as for `attend`.
        bias: as for `attend`.
        scale: as for `attend`.
        queries: the window, a slice with step 1; all queries where left out.

    Returns:
        Weights of shape (B, H, window, K): each row sums to 1, or is 0 where nothing may be seen.

    Raises:
        InputError: when more than 2**28 weights are asked for at once, or as for `attend`.

    Example:
        >>> q, k = torch.randn(2, 1, 2, 6, 4).unbind()
        >>> attention_weights(q, k, Mask.causal(), queries=slice(0, 1))[0, 0]
        tensor([[1., 0., 0., 0., 0., 0.]])
    """
    problem = _problem((query_BHQD, key_BGKD, key_BGKD), mask, bias, scale, 0.0)
    window: object = slice(None) if queries is None else queries
    if not isinstance(window, slice) or window.step not in (None, 1):
        raise InputError(f"`queries` must be a slice of step 1; got {window}. Pass slice(a, b) for a run of queries.")
    batch, heads, total, _ = query_BHQD.shape
    count = len(range(*window.indices(total))) if queries is not None else total
    wanted = batch * heads * count * key_BGKD.shape[2]
    if not torch.compiler.is_compiling() and wanted > _MOST_WEIGHTS:
        raise InputError(
            f"a window must hold at most {_MOST_WEIGHTS} weights; got {wanted}. "
            "Pass `queries=slice(a, b)` for a part, or ask `attend` for `statistics`."
        )
    return reference.weights(problem, window)


@plain
class Explanation:
    """Tell which backend a call gets, how it computes it, and why the others were not taken."""

    backend: str
    """The backend's name."""
    how: str
    """How it computes the call, and why so."""
    refused: tuple[tuple[str, str], ...]
    """Name of each other backend and the reason against it."""

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.how}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.refused]
        return "\n".join(lines)


def explain(
    query_BHQD: Float[Tensor, "B H Q D"],
    key_BGKD: Float[Tensor, "B G K D"],
    value_BGKE: Float[Tensor, "B G K E"],
    mask: Mask | None = None,
    *,
    bias: Tensor | Alibi | RelativeBias | None = None,
    scale: float | None = None,
    dropout: float | Dropout = 0.0,
    statistics: Statistics | None = None,
    backend: str = "auto",
) -> Explanation:
    """Tell which backend `attend` takes for these tensors, and the reason against every other.

    Example:
        >>> x = torch.randn(1, 8, 16, 64, dtype=torch.float64)
        >>> print(explain(x, x, x))
        fused: softmax(QK)V written out in tiles in float64: measured faster up to 128 queries and keys
          not native: it computes float32 and bfloat16, not float64
          not triton: it computes float32, bfloat16 and float16, not float64
          not reference: it holds every weight at once; ask for it by name
    """
    drawn = dropout if isinstance(dropout, Dropout) else Dropout(dropout, 0)
    problem = _problem((query_BHQD, key_BGKD, value_BGKE), mask, bias, scale, drawn)
    asked = statistics if statistics is not None else NOTHING
    chosen = named(backend) if backend == "reference" else choose(problem, asked, backend)
    others = [other for name, other in BACKENDS.items() if name != chosen.NAME]
    rule = preferred(problem, asked)[1]
    passed = f"it could, but {chosen.NAME} {rule}" if backend == "auto" else "another was asked for by name"
    refused = tuple((other.NAME, other.refusal(problem, asked) or passed) for other in others)
    return Explanation(chosen.NAME, chosen.describe(problem), refused)


def _problem(
    tensors: tuple[Tensor, Tensor, Tensor],
    mask: Mask | None,
    bias: Tensor | Alibi | RelativeBias | None,
    scale: float | None,
    dropout: float | Dropout,
) -> Problem:
    """Check a call at the border and complete it."""
    query, key, value = _autocast(tensors)
    check_tensors(query, key, value)
    check_bias(bias, query, key)
    return Problem(
        query,
        key,
        value,
        _ALL if mask is None else check_mask(mask, query, key).resolved(query.shape[2]),
        _scale(scale, query.shape[3]),
        bias if isinstance(bias, Tensor) else None,
        bias.slopes_H if isinstance(bias, Alibi) else None,
        bias.by_distance() if isinstance(bias, RelativeBias) else None,
        *_drawn(dropout, query.device),
    )


_ALL = Mask()


def _autocast(tensors: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Follow autocast as PyTorch's fused operation does: to the lower precision."""
    query: object = tensors[0]
    # What is no tensor, the checks that follow refuse.
    dtype = autocast_dtype(query.device) if isinstance(query, Tensor) else None
    if dtype is None:
        return tensors
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.dtype in _LOWERED else x for x in tensors)


_LOWERED = (torch.float32, torch.float16, torch.bfloat16)


def _scale(scale: float | None, width: int) -> float:
    if scale is None:
        return width**-0.5 if width else 1.0
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise InputError(f"`scale` must be a finite number; got {scale!r}. Leave it out for 1 / sqrt(D).")
    return float(scale)


def _drawn(dropout: float | Dropout, device: torch.device) -> tuple[float, Tensor | None]:
    """Check the rate, and draw a seed where only a rate is given."""
    rate = dropout.rate if isinstance(dropout, Dropout) else dropout
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise InputError(f"`dropout` must lie between 0 and 1; got {rate!r}. 0 turns it off.")
    rate = round(rate * WORDS) / WORDS  # as it is drawn
    if rate == 0:
        return 0.0, None
    if not isinstance(dropout, Dropout):
        return rate, torch.randint(2**63 - 1, (), device=device)
    seed: object = dropout.seed
    if isinstance(seed, int) and -(2**63) <= seed < 2**63:
        seed = torch.tensor(seed, dtype=torch.int64, device=device)
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.numel() != 1:
        told = f"{seed.dtype} of shape {tuple(seed.shape)}" if isinstance(seed, Tensor) else repr(seed)
        raise InputError(f"a dropout seed must be one int64 number; got {told}. Use torch.randint(2**63 - 1, ()).")
    return rate, seed
