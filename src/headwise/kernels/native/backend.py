"""Describe calls of attention to the native library, and say which ones it takes."""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.contracts.problem import Problem
from headwise.contracts.statistics import Statistics
from headwise.kernels import blocks, fused, measure
from headwise.kernels.fused import Gradients
from headwise.kernels.native.binding import FIELDS, Library, load
from headwise.kernels.philox import WORDS

__all__ = ["LIBRARY", "NAME", "backward", "describe", "forward", "refusal"]

NAME = "native"
LIBRARY: Library = load()
"""The loaded library."""

_DTYPES = (torch.float32, torch.bfloat16)
_MOST_WIDTH = 256


def refusal(problem: Problem, asked: Statistics) -> str | None:
    """Say why this backend cannot take a call; it counts every statistic."""
    del asked
    query_BHQD, value_BGKE = problem.query_BHQD, problem.value_BGKE
    if LIBRARY.missing is not None:
        return LIBRARY.missing
    if query_BHQD.device.type != "cpu":
        return "it is built for the CPU"
    if query_BHQD.dtype not in _DTYPES:
        return f"it computes float32 and bfloat16, not {str(query_BHQD.dtype).removeprefix('torch.')}"
    width, value_width = query_BHQD.shape[3], value_BGKE.shape[3]
    if not (0 < width <= _MOST_WIDTH and 0 < value_width <= _MOST_WIDTH):
        return f"it takes widths of 1 to {_MOST_WIDTH}, not {width} and {value_width}"
    bias_BHQK = problem.bias_BHQK
    if bias_BHQK is not None and bias_BHQK.dtype not in _DTYPES:
        return f"it adds a bias of float32 or bfloat16, not {str(bias_BHQK.dtype).removeprefix('torch.')}"
    return None


def describe(problem: Problem) -> str:
    """Say how it computes a call."""
    bias = problem.bias_BHQK
    summed = None if bias is None or bias.shape[3] == 1 else bias  # a shared one has the gradient of the log-sum-exp
    added = (summed, problem.slopes_H, problem.relative_HN)
    learned = any(tensor is not None and tensor.requires_grad for tensor in added)
    apart = learned and problem.query_BHQD.dtype == torch.float32
    told = "; the backward pass of fused where the entropy carries a gradient" if apart else ""
    return f"one pass in the native kernel for {LIBRARY.isa}{told}"


def forward(problem: Problem, asked: Statistics) -> tuple[Tensor, ...]:
    """Compute output, log-sum-exp, in float64, and the statistics asked for."""
    batch, heads, _, queries, _, _, width = problem.sizes
    if problem.empty:
        problem.check_lengths()
        return *blocks.output_room(problem), *measure.empty(asked, problem).values()
    output_BHQE = problem.query_BHQD.new_empty(batch, queries, heads, width).transpose(1, 2)
    lse_BHQ = problem.query_BHQD.new_empty((batch, heads, queries), dtype=torch.float64)
    room = measure.empty(asked, problem)
    record, held = _record(problem)
    _view(record, "output", output_BHQE)
    record[FIELDS["lse"]] = lse_BHQ.data_ptr()
    for name, tensor in room.items():
        record[FIELDS[name.rpartition("_")[0]]] = tensor.data_ptr()
    at = FIELDS["sinks"]
    record[at : at + 4] = asked.sink, asked.local or 0, asked.map, asked.links
    if not LIBRARY.forward(record):  # it has looked at the lengths, faster than we would
        problem.check_lengths()
        raise AssertionError("the library and the mask disagree about lengths")
    del held  # what the record points to, until here
    return output_BHQE, lse_BHQ, *room.values()


def backward(
    problem: Problem, given: Gradients, saved: tuple[Tensor, Tensor, Tensor | None], needs: tuple[bool, ...]
) -> dict[str, Tensor]:
    """Compute the gradients; by the fused backend where the entropy of a learned bias would lose digits."""
    if problem.empty:
        return blocks.gradient_room(problem, needs)
    # The rounding of entropy and log-sum-exp is a common error of a row's slopes; a number of a bias may add it up.
    if any(needs) and given.entropy_BHQ is not None and problem.query_BHQD.dtype == torch.float32:
        return fused.backward(problem, given, saved, needs)
    record, held = _record(problem)
    output_BHQE, lse_BHQ, entropy_BHQ = saved
    grad_BHQE = torch.zeros_like(output_BHQE) if given.output_BHQE is None else given.output_BHQE
    held += [_view(record, "output", output_BHQE), _view(record, "output_grad", grad_BHQE)]
    held.append(_flat(record, "lse", lse_BHQ, torch.float64))
    if given.lse_BHQ is not None:
        held.append(_flat(record, "lse_grad", given.lse_BHQ, torch.float32))
    if given.entropy_BHQ is not None and entropy_BHQ is not None:
        held.append(_flat(record, "entropy", entropy_BHQ, torch.float32))
        held.append(_flat(record, "entropy_grad", given.entropy_BHQ, torch.float32))
    found = _put_learned(record, problem, needs)
    for field in ("query_BHQD", "key_BGKD", "value_BGKE"):
        found[field] = _like(getattr(problem, field))
        _view(record, f"{field.rpartition('_')[0]}_grad", found[field])
    LIBRARY.backward(record)
    return found


def _like(tensor: Tensor) -> Tensor:
    """Make room laid out as a tensor is, with an adjacent last axis."""
    room = torch.empty_like(tensor)
    return room if room.stride(3) == 1 or room.shape[3] == 1 else torch.empty_like(room, memory_format=_CONTIGUOUS)


_CONTIGUOUS = torch.contiguous_format


def _record(problem: Problem) -> tuple[list[int | float], list[Tensor]]:
    """Describe a call, and hold the tensors that were made for it."""
    record, held = LIBRARY.record(), list[Tensor]()
    batch, heads, groups, queries, keys, width, value_width = problem.sizes
    at = FIELDS["half"]
    half = problem.query_BHQD.dtype == torch.bfloat16
    record[at : at + 10] = half, LIBRARY.threads, batch, heads, groups, queries, keys, width, value_width, problem.scale
    for name, tensor in (("query", problem.query_BHQD), ("key", problem.key_BGKD), ("value", problem.value_BGKE)):
        held.append(_view(record, name, tensor))
    _put_mask(record, held, problem)
    _put_bias(record, held, problem)
    if problem.rate > 0 and problem.seed is not None:
        record[FIELDS["least"]] = round(problem.rate * WORDS)
        held.append(_flat(record, "seed", problem.seed, torch.int64))
    record[FIELDS["kept_share"]] = 1.0 - problem.rate
    return record, held


def _view(record: list[int | float], name: str, tensor: Tensor) -> Tensor:
    """Describe a tensor whose last axis is adjacent, or a copy that is so."""
    strides = tensor.stride()
    if strides[3] != 1 and tensor.shape[3] != 1:
        tensor = tensor.contiguous()
        strides = tensor.stride()
    at = FIELDS[name]
    record[at : at + 4] = tensor.data_ptr(), strides[0], strides[1], strides[2]
    return tensor


def _flat(record: list[int | float], name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Describe a tensor that is read in order, or a copy that can be."""
    tensor = tensor.to(dtype).contiguous()
    record[FIELDS[name]] = tensor.data_ptr()
    return tensor


def _spread(record: list[int | float], name: str, tensor: Tensor) -> None:
    """Describe a tensor of any strides; an axis of size 1 is shared."""
    steps = (0 if n == 1 else step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    at = FIELDS[name]
    record[at : at + 5] = tensor.data_ptr(), *steps


def _put_learned(record: list[int | float], problem: Problem, needs: tuple[bool, ...]) -> dict[str, Tensor]:
    """Make room for the gradients of what is added: float64 where thousands of scores may meet in one number."""
    room = {}
    batch, heads, _, queries, keys, _, _ = problem.sizes
    for name, needed in zip(("bias_BHQK", "slopes_H", "relative_HN"), needs, strict=True):
        if not needed:
            continue
        shape = getattr(problem, name).shape
        meets = shape != (batch, heads, queries, keys)
        room[name] = torch.zeros(shape, dtype=torch.float64 if meets else torch.float32)
        if name == "bias_BHQK":
            _spread(record, "bias_grad", room[name])
            record[FIELDS["bias_grad_wide"]] = meets
        else:
            record[FIELDS[f"{name.rpartition('_')[0]}_grad"]] = room[name].data_ptr()
    return room


_FAR = 1 << 40
"""Beyond every tensor."""


def _put_mask(record: list[int | float], held: list[Tensor], problem: Problem) -> None:
    mask = problem.mask
    if not mask.hides:
        return
    at = FIELDS["left"]
    bounds = (-1 if bound is None else min(bound, _FAR) for bound in (mask.left, mask.right))
    record[at : at + 3] = *bounds, mask.start_causal
    for name in ("key_length", "query_length", "key_start"):
        tensor = getattr(mask, f"{name}_B")
        if tensor is not None:
            held.append(_flat(record, name, tensor, torch.int64))
    if mask.key_segment_BKN is not None and mask.query_segment_BQN is not None:
        for name, tensor in (("key_segment", mask.key_segment_BKN), ("query_segment", mask.query_segment_BQN)):
            held.append(_flat(record, name, tensor, torch.int64))
        record[FIELDS["segments"]] = mask.key_segment_BKN.shape[2]
    if mask.dense_BHQK is not None:
        _spread(record, "dense", mask.dense_BHQK)


def _put_bias(record: list[int | float], held: list[Tensor], problem: Problem) -> None:
    if problem.bias_BHQK is not None:
        _spread(record, "bias", problem.bias_BHQK)
        record[FIELDS["bias_half"]] = problem.bias_BHQK.dtype == torch.bfloat16
    if problem.slopes_H is not None:
        held.append(_flat(record, "slopes", problem.slopes_H, torch.float32))
    if problem.relative_HN is not None:
        held.append(_flat(record, "relative", problem.relative_HN, torch.float32))
        record[FIELDS["relatives"]] = problem.relative_HN.shape[1]
