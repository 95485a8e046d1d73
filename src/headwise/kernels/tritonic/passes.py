"""Launch the GPU kernels of a call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from headwise.contracts.problem import Problem
from headwise.contracts.statistics import Statistics
from headwise.kernels import blocks, measure
from headwise.kernels.fused import Gradients
from headwise.kernels.tritonic import backward as last
from headwise.kernels.tritonic import forward as first
from headwise.kernels.tritonic import second
from headwise.kernels.tritonic.call import INTERPRETED, describe, flat, room, view

__all__ = ["TILES", "attend", "gradients"]

TILES = {"rows": 32, "keys": 32}
"""Sizes of a tile in the interpreter."""
_SECOND = ("received_BHK", "map_BHPP", "map_count_BHP", "link_weight_BHQN", "link_key_BHQN")


def attend(problem: Problem, asked: Statistics) -> tuple[Tensor, ...]:
    """Compute output, log-sum-exp and the statistics asked for."""
    batch, heads, _, queries, _, _, width = problem.sizes
    found = measure.empty(asked, problem)
    lse_BHQ = problem.query_BHQD.new_empty((batch, heads, queries), dtype=torch.float32)
    output_BHQE = room(problem.query_BHQD, (batch, queries, heads, width)).transpose(1, 2)
    later = any(name in found for name in _SECOND)
    largest_BHQ = torch.empty_like(lse_BHQ) if later else None
    peak_BHQ = found.get("peak_BHQ", torch.empty_like(lse_BHQ) if later else None)
    broken = torch.zeros(1, dtype=torch.int32, device=lse_BHQ.device) if problem.hides else None
    numbers: dict[str, Any] = {name.rpartition("_")[0]: x for name, x in found.items() if name not in _SECOND}
    numbers |= {"peak": peak_BHQ, "largest": largest_BHQ, "broken": broken}
    rest: dict[str, Any] = dict.fromkeys(first.Results._fields) | {"sinks": asked.sink, "reach": asked.local or 0}
    results = first.Results(**rest | numbers | {"output": view(output_BHQE), "lse": lse_BHQ})
    with _launching():
        for guarded in (False, True) if problem.hides else (False,):
            sizes, options = _tiles(problem, guarded=guarded)
            grid = triton.cdiv(queries, sizes[0]), batch * heads
            first.attend[grid](describe(problem, *sizes, guarded=guarded), results, **options)
        if later:
            _look_again(problem, asked, second.Rows(largest_BHQ, peak_BHQ), found, lse_BHQ)
    return output_BHQE.to(problem.query_BHQD.dtype), lse_BHQ, *found.values()


def _tiles(problem: Problem, *, guarded: bool = False) -> tuple[tuple[int, int], dict[str, int]]:
    """Choose the size of a tile, and how a program is compiled."""
    if INTERPRETED:
        return (TILES["rows"], TILES["keys"]), {}
    wide = max(problem.sizes[5:]) > 128
    if problem.query_BHQD.dtype == torch.float32 and wide:
        return (32, 32), {"num_warps": 8, "num_stages": 1}
    if problem.query_BHQD.dtype == torch.float32 or wide or guarded:
        return (64, 32), {"num_warps": 8 if wide else 4, "num_stages": 2}
    return (128, 64), {"num_warps": 8, "num_stages": 3}


@contextmanager
def _launching() -> Iterator[None]:
    """Let the interpreter compute with NaN and infinity without a word, as a GPU does."""
    with np.errstate(all="ignore"):
        yield


def _look_again(
    problem: Problem, asked: Statistics, rows: second.Rows, found: dict[str, Tensor], lse_BHQ: Tensor
) -> None:
    """Fill in what needs a second pass."""
    sizes, options = _tiles(problem, guarded=True)
    call = describe(problem, *sizes)
    batch, heads, _, queries, keys, _, _ = problem.sizes
    if asked.received or asked.map:
        cells = asked.map or 1
        room_BHPK = lse_BHQ.new_empty(batch, heads, cells, keys)
        grid = triton.cdiv(keys, sizes[1]), cells, batch * heads
        second.receive[grid](call, rows, room_BHPK, cells, **options)
        if asked.received:
            torch.sum(room_BHPK, 2, out=found["received_BHK"])
        if asked.map:
            found["map_BHPP"], found["map_count_BHP"] = _map(problem, room_BHPK, lse_BHQ != -math.inf)
    if asked.links:
        weight_BHQN, key_BHQN = found["link_weight_BHQN"], found["link_key_BHQN"]
        lines = triton.cdiv(queries, sizes[0]), batch * heads
        slots = triton.next_power_of_2(asked.links)
        second.link[lines](call, rows, weight_BHQN, key_BHQN, asked.links, slots=slots, **options)
        found["link_weight_BHQN"], order_BHQN = weight_BHQN.sort(dim=-1, descending=True, stable=True)
        found["link_key_BHQN"] = key_BHQN.gather(-1, order_BHQN)


def _map(problem: Problem, room_BHPK: Tensor, live_BHQ: Tensor) -> tuple[Tensor, Tensor]:
    """Add up the runs of queries by cells of keys, and count the live queries of each run."""
    cells = room_BHPK.shape[2]
    extent, device = blocks.extent_of(problem), room_BHPK.device
    spot_BHQK = torch.arange(room_BHPK.shape[3], device=device) - extent.start
    key_BHK = _cell(spot_BHQK, extent.keys, cells).reshape(-1, 1, room_BHPK.shape[3])
    row_BHQ = _cell(torch.arange(live_BHQ.shape[2], device=device), extent.queries, cells)
    by_key_BHKP = torch.nn.functional.one_hot(key_BHK, cells).to(room_BHPK.dtype)
    by_row_BHQP = torch.nn.functional.one_hot(row_BHQ.reshape(-1, 1, live_BHQ.shape[2]), cells)
    count_BHP = torch.where(live_BHQ[..., None], by_row_BHQP, 0).sum(2)
    return room_BHPK @ by_key_BHKP, count_BHP


def _cell(place: Tensor, length: Any, cells: int) -> Tensor:
    """Find the cell of each place among `length` ones; places outside hold no weight."""
    length = length.clamp(min=1) if isinstance(length, Tensor) else max(length, 1)
    return (place * cells).div(length, rounding_mode="floor").clamp(0, cells - 1)


def gradients(
    problem: Problem, given: Gradients, saved: tuple[Tensor, Tensor, Tensor | None], of_bias: bool
) -> dict[str, Tensor]:
    """Compute the gradients of query, key and value, and of a bias where it needs one."""
    names = ("query_BHQD", "key_BGKD", "value_BGKE")
    found = {name: room(getattr(problem, name), getattr(problem, name).shape) for name in names}
    arriving = _arriving(problem, given, saved)
    batch, heads, groups, queries, keys, _, _ = problem.sizes
    views = [view(found[name]) for name in names]
    with _launching():
        for guarded in (False, True) if problem.hides else (False,):
            sizes, options = _tiles(problem, guarded=True)
            call = describe(problem, *sizes, guarded=guarded)
            last.to_queries[triton.cdiv(queries, sizes[0]), batch * heads](call, arriving, views[0], **options)
            last.to_keys[triton.cdiv(keys, sizes[1]), batch * groups](call, arriving, *views[1:], **options)
        if of_bias and problem.bias_BHQK is not None:
            found["bias_BHQK"] = _bias(problem, arriving, problem.bias_BHQK)
    return found


def _arriving(problem: Problem, given: Gradients, saved: tuple[Tensor, Tensor, Tensor | None]) -> last.Arriving:
    lse_BHQ = saved[1].float().contiguous()
    lse_gradient_BHQ, entropy_BHQ, entropy_gradient_BHQ = (
        flat(x, torch.float32) for x in (given.lse_BHQ, saved[2], given.entropy_BHQ)
    )
    grad_BHQE = given.output_BHQE
    gradient = None if grad_BHQE is None else view(grad_BHQE.to(saved[0].dtype))
    broken = torch.zeros(1, dtype=torch.int32, device=lse_BHQ.device) if problem.hides else None
    pulled, share = torch.empty_like(lse_BHQ), torch.empty_like(lse_BHQ)
    numbers = lse_BHQ, lse_gradient_BHQ, entropy_BHQ, entropy_gradient_BHQ
    return last.Arriving(view(saved[0]), gradient, *numbers, pulled, share, broken)


def _bias(problem: Problem, arriving: last.Arriving, bias_BHQK: Tensor) -> Tensor:
    """Compute the gradient of a bias, guarded: it costs little beside the sums."""
    found = torch.empty(bias_BHQK.shape, dtype=torch.float32, device=bias_BHQK.device)
    sizes, options = _tiles(problem, guarded=True)
    samples, heads, rows, keys = bias_BHQK.shape
    shape = samples, heads, *(tl.constexpr(n == 1) for n in (rows, keys)), problem.sizes[0]
    grid = triton.cdiv(rows, sizes[0]), triton.cdiv(keys, sizes[1]), samples * heads
    last.to_bias[grid](describe(problem, *sizes, guarded=True), arriving, view(found), shape, **options)
    return found
