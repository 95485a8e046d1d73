"""Register attention as one operation of PyTorch, with its gradient, its shapes for tracing, and its batching.

The choice of kernel is made inside the operation, where sizes are numbers, so that compiled and exported programs
stay free in theirs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from headwise.contracts.masks import Mask
from headwise.contracts.problem import Problem
from headwise.contracts.statistics import Statistics
from headwise.errors import BackendError
from headwise.kernels import measure
from headwise.kernels.choice import choose
from headwise.kernels.fused import Gradients

__all__ = ["run"]

_TENSORS = ("query_BHQD", "key_BGKD", "value_BGKE", "bias_BHQK", "slopes_H", "relative_HN", "seed")
_MASK_TENSORS = (
    "key_length_B",
    "query_length_B",
    "key_start_B",
    "key_segment_BKN",
    "query_segment_BQN",
    "dense_BHQK",
)
_GRADIENTS = _TENSORS[:6]
_SETTINGS = "int? left, int? right, bool start_causal, float scale, float rate, str asked, str backend, bool fixed"
_ARGUMENTS = ", ".join([f"Tensor{'?' * (i > 2)} {name}" for i, name in enumerate((*_TENSORS, *_MASK_TENSORS))])
_COUNT = len(_TENSORS) + len(_MASK_TENSORS)

_LIBRARY = torch.library.Library("headwise", "DEF")
_LIBRARY.define(f"attend({_ARGUMENTS}, {_SETTINGS}) -> Tensor[]")
_LIBRARY.define(
    "attend_backward(Tensor? output_grad, Tensor? lse_grad, Tensor? entropy_grad, Tensor output, Tensor lse, "
    f"Tensor? entropy, bool[] needs, {_ARGUMENTS}, {_SETTINGS}) -> Tensor[]"
)


def run(problem: Problem, asked: Statistics, backend: str) -> tuple[Tensor, ...]:
    """Run a call through the operation: output, log-sum-exp, and the statistics in the order of `measure.names`.

    The log-sum-exp may be float64, which the backward pass of float32 needs.
    """
    tensors = _tensors(problem, problem.mask)
    compiling = torch.compiler.is_compiling()
    if not _is_watched(tensors) and not _wants_gradient(tensors):
        return tuple(_computed(problem, asked, backend))
    if compiling:
        tensors = _apart(tensors)
    mask = problem.mask
    # Traced programs rely on the memory layout that the shape functions below promise; eager ones spare the copy.
    settings = mask.left, mask.right, mask.start_causal, problem.scale, problem.rate, asked.asked, backend, compiling
    if compiling or torch._C._are_functorch_transforms_active():
        results: tuple[Tensor, ...] = _Attend.apply(*tensors, *settings)  # type: ignore[no-untyped-call]
        return results
    return tuple(_recorded(*tensors, *settings))


def _tensors(problem: Problem, mask: Mask) -> tuple[Tensor | None, ...]:
    """List what a call holds, in the order of the operation's arguments."""
    return (
        *(problem.query_BHQD, problem.key_BGKD, problem.value_BGKE),
        *(problem.bias_BHQK, problem.slopes_H, problem.relative_HN, problem.seed),
        *(mask.key_length_B, mask.query_length_B, mask.key_start_B),
        *(mask.key_segment_BKN, mask.query_segment_BQN, mask.dense_BHQK),
    )


def _apart(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Make every tensor another one than those before it: the compiler refuses one that is given twice."""
    apart: list[Tensor | None] = []
    for tensor in tensors:
        given = tensor is not None and any(tensor is before for before in apart)
        apart.append(tensor.view_as(tensor) if given and tensor is not None else tensor)
    return tuple(apart)


def _is_watched(tensors: tuple[Any, ...]) -> bool:
    """Tell whether PyTorch traces, transforms or profiles a call, and so has to see it as an operation."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or torch._C._autograd._profiler_enabled()
        or not _PLAIN.issuperset(map(type, tensors))
        or tensors[0].is_meta
    )


_PLAIN = {Tensor, torch.nn.Parameter, type(None)}
"""Types of tensors that compute for themselves."""


def _wants_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _problem(arguments: tuple[Any, ...]) -> tuple[Problem, Statistics, str, bool]:
    """Put a call together again from the operation's arguments."""
    query, key, value, bias, slopes, relative, seed = arguments[: len(_TENSORS)]
    left, right, start_causal, scale, rate, asked, backend, fixed = arguments[_COUNT:]
    mask = Mask(left, right, start_causal, *arguments[len(_TENSORS) : _COUNT])
    problem = Problem(query, key, value, mask, scale, bias, slopes, relative, rate, seed)
    return problem, Statistics.parse(asked), backend, fixed


@torch.library.impl(_LIBRARY, "attend", "Autograd")
def _recorded(*arguments: Any) -> list[Tensor]:
    """Record the gradient where it is wanted: for eager calls, and for exported programs, which hold the operation."""
    if _wants_gradient(arguments[:_COUNT]):
        # What Function.apply does after binding twenty arguments to a signature, which takes longer than a small call.
        return list(super(torch.autograd.Function, _Attend).apply(*arguments))  # type: ignore[no-untyped-call]
    if forward_ad._current_level >= 0 and any(_has_tangent(x) for x in arguments[:_COUNT]):
        raise BackendError(
            'forward-mode derivatives need backend="reference"; got the fused one. '
            'Pass backend="reference" to `attend`.'
        )
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.headwise.attend(*arguments)  # type: ignore[no-any-return]


def _has_tangent(tensor: Tensor | None) -> bool:
    return tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None


def _computed(problem: Problem, asked: Statistics, backend: str) -> Sequence[Tensor]:
    """Choose a kernel, and compute."""
    kernel = choose(problem, asked, backend)
    with problem.exactly():
        return kernel.forward(problem, asked)


@torch.library.impl(_LIBRARY, "attend", "CompositeExplicitAutograd")
def _forward(*arguments: Any) -> list[Tensor]:
    problem, asked, backend, fixed = _problem(arguments)
    output, lse, *others = _computed(problem, asked, backend)
    if fixed:
        output, lse = _laid_out(output, _output_like(problem)), lse.to(_lse_type(problem))
    return [output, lse, *others]


@torch.library.impl(_LIBRARY, "attend_backward", "CompositeExplicitAutograd")
def _backward(*arguments: Any) -> list[Tensor]:
    problem, asked, backend, fixed = _problem(arguments[7:])
    kernel = choose(problem, asked, backend, training=True)
    given, saved, (bias_needs, *others_need) = Gradients(*arguments[:3]), arguments[3:6], arguments[6]
    bias = problem.bias_BHQK
    shared = bias if bias_needs and bias is not None and bias.shape[3] == 1 else None
    with problem.exactly():
        room = kernel.backward(problem, given, saved, (bias_needs and shared is None, *others_need))
    if shared is not None:
        room["bias_BHQK"] = _slope_of_rows(shared, saved[1], given.lse_BHQ)
    found = [(room[name], getattr(problem, name)) for name in _GRADIENTS if name in room]
    return [_laid_out(grad, torch.empty_like(like)) if fixed else grad.to(like.dtype) for grad, like in found]


def _slope_of_rows(bias_BHQ1: Tensor, lse_BHQ: Tensor, lse_grad_BHQ: Tensor | None) -> Tensor:
    """Give the gradient of a bias that is the same for all keys: it moves the log-sum-exp and nothing else.

    Kernels would add up slopes whose sum is zero, and find their rounding errors.
    """
    given_BHQ = torch.zeros_like(lse_BHQ) if lse_grad_BHQ is None else lse_grad_BHQ
    moved_BHQ = torch.where(lse_BHQ == -torch.inf, 0, given_BHQ + lse_BHQ * 0)  # what is NaN stays NaN
    return moved_BHQ[..., None].sum_to_size(bias_BHQ1.shape)


def _output_like(problem: Problem) -> Tensor:
    """Lay the output out as the fused operations do: (B, Q, H, E) in memory, so that joining the heads is free."""
    batch, heads, _, queries, _, _, width = problem.sizes
    return problem.query_BHQD.new_empty(batch, queries, heads, width).transpose(1, 2)


def _lse_type(problem: Problem) -> torch.dtype:
    """Name the type in which traced programs keep the log-sum-exp: the one that the native kernel gives."""
    return torch.float64 if problem.query_BHQD.device.type == "cpu" else problem.working_dtype


def _laid_out(found: Tensor, room: Tensor) -> Tensor:
    """Copy a result to the room whose layout was promised, unless it has it."""
    same = found.stride() == room.stride() and found.dtype == room.dtype
    return found if same else room.copy_(found)


def _forward_shapes(*arguments: Any) -> list[Tensor]:
    problem, asked, _, _ = _problem(arguments)
    batch, heads, _, queries, _, _, _ = problem.sizes
    output = _output_like(problem)
    lse = problem.query_BHQD.new_empty((batch, heads, queries), dtype=_lse_type(problem))
    return [output, lse, *measure.empty(asked, problem).values()]


def _backward_shapes(*arguments: Any) -> list[Tensor]:
    problem, _, _, _ = _problem(arguments[7:])
    needs = (True, True, True, *arguments[6])
    wanted = [name for name, needed in zip(_GRADIENTS, needs, strict=True) if needed]
    return [torch.empty_like(getattr(problem, name)) for name in wanted]


torch.library.register_fake("headwise::attend", _forward_shapes, lib=_LIBRARY)
torch.library.register_fake("headwise::attend_backward", _backward_shapes, lib=_LIBRARY)


def _one_by_one(operation: Any) -> Any:
    """Batch an operation by running it once for each index of the new axis."""

    def batched(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[list[Tensor], list[int]]:
        results = []
        for i in range(info.batch_size):
            chosen = [x.select(d, i) if isinstance(d, int) else x for x, d in zip(arguments, dims, strict=True)]
            results.append(operation(*chosen))
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return stacked, [0] * len(stacked)

    return batched


def _folded(operation: Any, first: int, samples: tuple[int, ...]) -> Any:
    """Batch an operation by folding the new axis into the samples, where every tensor has a sample axis of its own.

    Args:
        operation: what to run.
        first: index of the first argument of the call within the operation's arguments.
        samples: indices of the arguments, counted from 0, that have a sample axis.
    """
    apart = {first + _TENSORS.index(name) for name in ("bias_BHQK", "slopes_H", "relative_HN", "seed")}
    apart.add(first + len(_TENSORS) + _MASK_TENSORS.index("dense_BHQK"))
    slow = _one_by_one(operation)

    def batched(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[list[Tensor], list[int]]:
        if any(arguments[i] is not None for i in apart):
            results: tuple[list[Tensor], list[int]] = slow(info, dims, *arguments)
            return results
        folded = list(arguments)
        for i in samples:
            if isinstance(arguments[i], Tensor):
                moved = _moved(arguments[i], dims[i], info.batch_size)
                folded[i] = moved.flatten(0, 1)
        split = [x.unflatten(0, (info.batch_size, -1)) for x in operation(*folded)]
        return split, [0] * len(split)

    return batched


def _moved(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


_SAMPLED = (0, 1, 2, *range(len(_TENSORS), _COUNT))
torch.library.register_vmap("headwise::attend", _folded(torch.ops.headwise.attend, 0, _SAMPLED), lib=_LIBRARY)
torch.library.register_vmap(
    "headwise::attend_backward",
    _folded(torch.ops.headwise.attend_backward, 7, (*range(6), *(7 + i for i in _SAMPLED))),
    lib=_LIBRARY,
)


def _plain_forward(count: int) -> Callable[[Any], Any]:
    """Give a `forward` of any arguments the signature of `count` ones: Dynamo passes a context to any other number."""

    def signed(forward: Any) -> Any:
        kind = inspect.Parameter.POSITIONAL_ONLY
        forward.__signature__ = inspect.Signature([inspect.Parameter(f"argument_{i}", kind) for i in range(count)])
        return forward

    return signed


class _Attend(torch.autograd.Function):
    """Tie the operation to its gradient."""

    generate_vmap_rule = True

    @staticmethod
    @_plain_forward(_COUNT + 8)
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        attend: Any = torch.ops.headwise.attend if _is_watched(arguments[:_COUNT]) else _forward
        return tuple(attend(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.settings = inputs[_COUNT:]
        entropy = output[2] if "entropy" in ctx.settings[-3] else None
        ctx.mark_non_differentiable(*output[2 if entropy is None else 3 :])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:_COUNT], *output[:2], entropy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        *tensors, output, lse, entropy = ctx.saved_tensors
        entropy_grad = grads[2] if entropy is not None else None
        given = (grads[0], grads[1], entropy_grad)
        needs = [bool(needed) for needed in ctx.needs_input_grad[3:6]]
        nothing = (None,) * (_COUNT + len(ctx.settings))
        if all(grad is None for grad in given):
            return nothing
        # Gradients are recorded here when someone wants second derivatives, and are always so while Dynamo traces.
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        watched = again or _is_watched((*tensors, *given))
        slope: Any = _Slope.apply if again else torch.ops.headwise.attend_backward if watched else _backward
        found = iter(slope(*given, output, lse, entropy, needs, *tensors, *ctx.settings))
        first = [next(found) if i < 3 or needs[i - 3] else None for i in range(6)]
        return (*first, *nothing[6:])


class _Slope(torch.autograd.Function):
    """Tie the gradient to the news that it has none of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.headwise.attend_backward(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        raise BackendError(
            'second derivatives need backend="reference"; got the fused one. Pass backend="reference" to `attend`.'
        )
