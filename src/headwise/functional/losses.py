"""Compute the loss over a vocabulary without ever holding tokens x vocabulary.

Gradients are computed in the forward pass, some hundred tokens at a time, while their logits are at hand. Of these only
the gradients of the states and of the table remain, as large as the states and the table are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headwise.contracts.problem import autocast_dtype
from headwise.contracts.statistics import Scored
from headwise.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["linear_cross_entropy"]

_CHUNK = 512
"""Tokens at a time: the fastest of 64 to 1,024 for vocabularies of 10,000; their logits are some 20 MB."""

_LIBRARY = torch.library.Library("headwise", "FRAGMENT")
_LIBRARY.define(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor target, Tensor? bias, Tensor? kept, Tensor? other, "
    "float smoothing, float rdrop, ScalarType dtype, bool slopes) -> Tensor[]"
)


def linear_cross_entropy(
    hidden_NM: Float[Tensor, "N M"],
    weight_VM: Float[Tensor, "V M"],
    target_N: Int[Tensor, " N"],
    *,
    bias_V: Float[Tensor, " V"] | None = None,
    smoothing: float = 0.0,
    mixed: tuple[Tensor, Tensor] | None = None,
    rdrop: float = 0.0,
) -> Scored:
    """Sum the cross-entropy of `softmax(hidden weight^T + bias)` over tokens, in nats, and count these.

    Products are of autocast's type where it is on, softmax and sums are float32 (float64 for float64).

    Args:
        hidden_NM: states.
        weight_VM: a row per token of the vocabulary.
        target_N: the right tokens.
        bias_V: added to the logits.
        smoothing: share of the probability that the loss spreads over the whole vocabulary (Szegedy et al. 2016,
            section 7), 0 to 1.
        mixed: for each token, the logarithms of the share that this distribution has in a mixture, and of what the
            rest of the mixture gives the right token: what is scored is the mixture, as for copying. Both of shape
            (N,). The part that smooths is of this distribution alone.
        rdrop: weight of the mean of both Kullback-Leibler divergences between the distributions of rows n and N/2 + n,
            two readings of one token under other dropout (R-Drop; Liang et al. 2021, section 2.1); 0 for none. Both
            readings are counted, so that the mean is half the loss of the paper.

    Raises:
        InputError: when the sizes do not fit each other, `rdrop` gets an odd number of rows or `mixed` as well, or a
            target is not in the vocabulary; on an accelerator, where looking waits, targets are trusted.

    Example:
        >>> linear_cross_entropy(torch.zeros(3, 8), torch.zeros(5, 8), torch.tensor([0, 4, 2])).mean
        tensor(1.6094)
    """
    _check(hidden_NM, weight_VM, target_N, smoothing)
    _check_added(weight_VM, target_N, bias_V, mixed)
    _check_pairs(len(hidden_NM), rdrop, alone=mixed is None)
    lower = None if hidden_NM.dtype == torch.float64 else autocast_dtype(hidden_NM.device)
    dtype = hidden_NM.dtype if lower is None else lower
    kept_N, other_N = (None, None) if mixed is None else mixed
    tensors = hidden_NM, weight_VM, target_N, bias_V, kept_N, other_N
    slopes = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    total, *_ = _LinearCrossEntropy.apply(*tensors, smoothing, rdrop, dtype, slopes)  # type: ignore[no-untyped-call]
    return Scored(total, torch.tensor(target_N.numel(), device=target_N.device))


def _check(hidden_NM: Tensor, weight_VM: Tensor, target_N: Tensor, smoothing: float) -> None:
    fits = hidden_NM.dim() == weight_VM.dim() == 2 and hidden_NM.shape[1] == weight_VM.shape[1]
    if not fits or target_N.shape != hidden_NM.shape[:1]:
        shapes = f"states {tuple(hidden_NM.shape)}, weights {tuple(weight_VM.shape)}, targets {tuple(target_N.shape)}"
        raise InputError(f"states, weights and targets must be of shapes (N, M), (V, M), (N,); got {shapes}. Flatten.")
    if target_N.dtype not in (torch.int64, torch.int32):
        raise InputError(f"targets must be whole numbers, int64 or int32; got {target_N.dtype}. Convert with .long().")
    if not 0 <= smoothing <= 1:
        raise InputError(f"`smoothing` must lie between 0 and 1; got {smoothing}. 0.1 is usual.")
    if target_N.device.type == "cpu" and not torch.compiler.is_compiling() and target_N.numel():
        least, most = (int(end) for end in target_N.aminmax())
        if least < 0 or most >= weight_VM.shape[0]:
            known = weight_VM.shape[0] - 1
            raise InputError(f"targets must lie in the vocabulary, 0 to {known}; got {least} to {most}. Check the ids.")


def _check_added(
    weight_VM: Tensor, target_N: Tensor, bias_V: Tensor | None, mixed: tuple[Tensor, Tensor] | None
) -> None:
    given = [] if bias_V is None else [("bias_V", bias_V, weight_VM.shape[:1])]
    given += [("mixed", each, target_N.shape) for each in mixed or ()]
    for name, tensor, shape in given:
        if tensor.shape != shape:
            raise InputError(f"`{name}` must be of shape {tuple(shape)}; got {tuple(tensor.shape)}. Flatten.")


def _check_pairs(count: int, rdrop: float, *, alone: bool) -> None:
    if not 0 <= rdrop < float("inf"):
        raise InputError(f"`rdrop` must be at least 0 and finite; got {rdrop}. 5 is usual, 0 is none.")
    if rdrop and count % 2:
        raise InputError(f"`rdrop` needs two states of each token; got {count}. Read the batch twice.")
    if rdrop and not alone:
        raise InputError("`rdrop` compares distributions that are not mixed; got `mixed`. Leave one out.")


@torch.library.impl(_LIBRARY, "linear_cross_entropy", "CompositeExplicitAutograd")
@torch.no_grad()
def _forward(hidden_NM: Tensor, *rest: Any) -> list[Tensor]:
    """Give the loss and, where `slopes` asks for them, the gradients of states, table, bias, and both mixed parts."""
    with torch.autocast(hidden_NM.device.type, enabled=False):  # it has chosen `dtype`; sums stay as they are
        return _computed(hidden_NM, *rest)


def _computed(
    hidden_NM: Tensor,
    weight_VM: Tensor,
    target_N: Tensor,
    bias_V: Tensor | None,
    kept_N: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    other_N, smoothing, rdrop, dtype, slopes = rest
    gradients = _empty(hidden_NM, weight_VM, bias_V, kept_N, slopes=slopes)
    if rdrop:
        one_NM, two_NM = hidden_NM.to(dtype).tensor_split(2)
        table_VM = weight_VM.to(dtype)
        both = _Loss(one_NM, table_VM, bias_V, smoothing), _Loss(two_NM, table_VM, bias_V, smoothing)
        return [_score_both(both, target_N, rdrop, gradients, slopes=slopes), *gradients]
    loss = _Loss(hidden_NM.to(dtype), weight_VM.to(dtype), bias_V, smoothing)
    found = [hidden_NM.new_zeros(0, dtype=loss.working)]
    for at in range(0, hidden_NM.shape[0], _CHUNK):
        rows = slice(at, at + _CHUNK)
        loss.read(loss.hidden_NM[rows], target_N[rows])
        mixed = None if kept_N is None else (kept_N[rows], other_N[rows])
        found.append(loss.score(mixed))
        if slopes:
            loss.slopes(gradients, rows)
    return [torch.cat(found).sum(), *gradients]


def _score_both(
    both: tuple[_Loss, _Loss], target_N: Tensor, rdrop: float, gradients: list[Tensor], *, slopes: bool
) -> Tensor:
    """Sum the loss of two readings and what parts them, and write the gradients where `slopes` asks for them."""
    targets, total = target_N.tensor_split(2), both[0].mean_M.new_zeros(())
    states = gradients[0].tensor_split(2)
    for at in range(0, targets[0].shape[0], _CHUNK):
        rows = slice(at, at + _CHUNK)
        for loss, half_N in zip(both, targets, strict=True):
            loss.read(loss.hidden_NM[rows], half_N[rows])
            total += loss.score(None).sum()
        apart, *pulls = _divergence(*both, rdrop)
        total += apart
        for loss, states_NM, pull_NV in zip(both, states, pulls, strict=True):
            if slopes:
                loss.slopes([states_NM, *gradients[1:]], rows, pull_NV)
    return total


def _divergence(one: _Loss, two: _Loss, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the weighted mean of both divergences of two readings, and give its gradients by the logits of each."""
    # Gaps of logits will do: the normalisers are constants that the weighted means take out again.
    gap_NV = one.logits_NV.to(one.working, copy=True).sub_(two.logits_NV).mul_(weight / 2)
    apart_NV = (one.p_NV - two.p_NV).mul_(weight / 2)
    mean_N1, other_N1 = (torch.einsum("nv,nv->n", loss.p_NV, gap_NV)[:, None] for loss in (one, two))
    pull_NV = (gap_NV - mean_N1).mul_(one.p_NV).add_(apart_NV)
    return (mean_N1 - other_N1).sum(), pull_NV, gap_NV.sub_(other_N1).mul_(two.p_NV).add_(apart_NV).neg_()


def _empty(
    hidden_NM: Tensor, weight_VM: Tensor, bias_V: Tensor | None, kept_N: Tensor | None, *, slopes: bool
) -> list[Tensor]:
    """Make room for the gradients, of size 0 where there are none."""
    none = hidden_NM.new_zeros(0)
    states, table = (torch.empty_like(hidden_NM), torch.zeros_like(weight_VM)) if slopes else (none, none)
    bias = torch.zeros_like(bias_V) if slopes and bias_V is not None else none.clone()
    mixed = [torch.empty_like(kept_N) if slopes and kept_N is not None else none.clone() for _ in range(2)]
    return [states, table if slopes else none.clone(), bias, *mixed]


class _Loss:
    """Hold the room in which chunk after chunk is computed: fresh memory costs as much as the arithmetic on it."""

    def __init__(self, hidden_NM: Tensor, weight_VM: Tensor, bias_V: Tensor | None, smoothing: float) -> None:
        self.hidden_NM, self.weight_VM, self.bias_V, self.smoothing = hidden_NM, weight_VM, bias_V, smoothing
        self.working = torch.float64 if hidden_NM.dtype == torch.float64 else torch.float32
        # The mean of all logits of a token is its state times the mean row: no pass over the vocabulary.
        self.mean_M = weight_VM.mean(0, dtype=self.working)
        self.mean_bias = 0.0 if bias_V is None else bias_V.mean(dtype=self.working)
        size = min(_CHUNK, hidden_NM.shape[0]), weight_VM.shape[0]
        self._logits_NV, self._p_NV = hidden_NM.new_empty(size), hidden_NM.new_empty(size, dtype=self.working)
        self._part_VM, self._part_NM = torch.empty_like(weight_VM), torch.empty_like(hidden_NM[:_CHUNK])

    def read(self, hidden_NM: Tensor, target_N: Tensor) -> None:
        """Compute the probabilities of some tokens, and the logarithms of the right ones and of all on average."""
        count = hidden_NM.shape[0]
        self.states_NM, self.target_N1 = hidden_NM, target_N[:, None]
        self.logits_NV, self.p_NV = self._logits_NV[:count], self._p_NV[:count]
        torch.mm(hidden_NM, self.weight_VM.T, out=self.logits_NV)
        if self.bias_V is not None:
            self.logits_NV += self.bias_V.to(self.logits_NV.dtype)
        torch.softmax(self.logits_NV, -1, dtype=self.working, out=self.p_NV)
        logit_N, p_N = (x_NV.gather(1, self.target_N1)[:, 0].to(self.working) for x_NV in (self.logits_NV, self.p_NV))
        if p_N.device.type == "cpu" and bool((p_N > torch.finfo(self.working).tiny).all()):
            self.right_N = p_N.log()
        else:  # by the likeliest token, whose probability never underflows
            self.right_N = logit_N - self.logits_NV.amax(-1).to(self.working) + self.p_NV.amax(-1).log()
        self.lse_N = logit_N - self.right_N

    def score(self, mixed: tuple[Tensor, Tensor] | None) -> Tensor:
        """Give the loss of each token, and find how far the distribution is to blame for it in a mixture."""
        right_N, self.blame_N = self.right_N, None
        if mixed is not None:
            own_N, other_N = right_N + mixed[0], mixed[1].to(self.working)
            right_N, self.blame_N = torch.logaddexp(own_N, other_N), torch.sigmoid(own_N - other_N)
        if not self.smoothing:
            return -right_N
        mean_N = torch.mv(self.states_NM.to(self.working), self.mean_M) + self.mean_bias - self.lse_N
        return -(1 - self.smoothing) * right_N - self.smoothing * mean_N

    def slopes(self, gradients: list[Tensor], rows: slice, pull_NV: Tensor | None = None) -> None:
        """Write or add up the gradients of some tokens, those of their logits with a pull; probabilities are lost."""
        states_NM, table_VM, bias_V, kept_N, other_N = gradients
        sharp = 1 - self.smoothing
        if self.blame_N is None:
            right_N1 = self.right_N.new_full(self.target_N1.shape, -sharp)
        else:
            right_N1 = -sharp * self.blame_N[:, None]
            self.p_NV *= self.smoothing - right_N1
            kept_N[rows], other_N[rows] = right_N1[:, 0], -sharp - right_N1[:, 0]
        if self.smoothing:
            self.p_NV -= self.smoothing / self.p_NV.shape[1]
        self.p_NV.scatter_add_(1, self.target_N1, right_N1)
        if pull_NV is not None:
            self.p_NV += pull_NV
        if bias_V.numel():
            bias_V += self.p_NV.sum(0)
        slope_NV = self.p_NV if self.p_NV.dtype == self.weight_VM.dtype else self.logits_NV.copy_(self.p_NV)
        part_NM = self._part_NM[: slope_NV.shape[0]]
        states_NM[rows] = torch.mm(slope_NV, self.weight_VM, out=part_NM)
        table_VM += torch.mm(slope_NV.T, self.states_NM, out=self._part_VM)


def _shapes(hidden_NM: Tensor, weight_VM: Tensor, target_N: Tensor, bias_V: Any, kept_N: Any, *rest: Any) -> Any:
    working = torch.float64 if hidden_NM.dtype == torch.float64 else torch.float32
    return [hidden_NM.new_empty((), dtype=working), *_empty(hidden_NM, weight_VM, bias_V, kept_N, slopes=rest[-1])]


torch.library.register_fake("headwise::linear_cross_entropy", _shapes, lib=_LIBRARY)


class _LinearCrossEntropy(torch.autograd.Function):
    """Tie the loss to the gradients that were computed with it."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.headwise.linear_cross_entropy(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        if inputs[-1]:
            ctx.save_for_backward(*output[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: None) -> tuple[Any, ...]:
        states, table, bias, kept, other = (
            x * slope.to(x.dtype) if x.numel() and needed else None
            for x, needed in zip(ctx.saved_tensors, [ctx.needs_input_grad[i] for i in (0, 1, 3, 4, 5)], strict=True)
        )
        return states, table, None, bias, kept, other, None, None, None, None
