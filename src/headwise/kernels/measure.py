"""Compute the statistics of `contracts.statistics` from the scores of a tile, and put the tiles together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headwise.contracts.masks import Extent
from headwise.contracts.problem import Problem
from headwise.contracts.statistics import NOTHING, Statistics
from headwise.kernels import blocks

__all__ = ["empty", "measure", "names", "of_tile"]


def names(asked: Statistics) -> tuple[str, ...]:
    """List the fields of `Seen` that a choice fills besides the log-sum-exp, in the order of a kernel's results."""
    fields = {
        "entropy_BHQ": asked.entropy,
        "peak_BHQ": asked.peak,
        "peak_key_BHQ": asked.peak,
        "position_BHQ": asked.position,
        "distance_BHQ": asked.distance,
        "sink_BHQ": asked.sink,
        "diagonal_BHQ": asked.diagonal,
        "previous_BHQ": asked.previous,
        "next_BHQ": asked.next,
        "local_BHQ": asked.local is not None,
        "received_BHK": asked.received,
        "map_BHPP": asked.map,
        "map_count_BHP": asked.map,
        "link_weight_BHQN": asked.links,
        "link_key_BHQN": asked.links,
    }
    return tuple(name for name, wanted in fields.items() if wanted)


def empty(asked: Statistics, problem: Problem) -> dict[str, Tensor]:
    """Make room for every statistic of a call, filled with what a query that sees nothing has."""
    if asked is NOTHING:
        return {}
    batch, heads, _, queries, keys, _, _ = problem.sizes
    dtype, cells = problem.working_dtype, asked.map
    shapes: dict[str, tuple[Any, ...]] = {
        "received_BHK": (batch, heads, keys),
        "map_BHPP": (batch, heads, cells, cells),
        "map_count_BHP": (batch, heads, cells),
        "link_weight_BHQN": (batch, heads, queries, asked.links),
        "link_key_BHQN": (batch, heads, queries, asked.links),
    }
    room = {}
    for name in names(asked):
        shape = shapes.get(name, (batch, heads, queries))
        is_index = "key_" in name
        kind = torch.int64 if is_index or "count" in name else dtype
        room[name] = problem.query_BHQD.new_full(shape, -1 if is_index else 0, dtype=kind)
    return room


def measure(problem: Problem, asked: Statistics) -> dict[str, Tensor]:
    """Compute every statistic asked for, tile by tile, in float32 (float64 for float64 inputs)."""
    if not names(asked):
        return {}
    room = empty(asked, problem)
    share, queries, keys = problem.sizes[1] // problem.sizes[2], problem.sizes[3], problem.sizes[4]
    for part in blocks.parts(problem, share * queries * keys, blocks.TILE_SCORES):
        working = (x.to(problem.working_dtype) for x in (part.problem.query_BHQD, part.problem.key_BGKD))
        small = part.problem.but(**dict(zip(("query_BHQD", "key_BGKD"), working, strict=True)))
        for tile in blocks.tiles(small):
            _store(room, of_tile(blocks.scores(small, tile), small, tile, asked), part, tile)
    return room


def of_tile(scores_BHQK: Tensor, problem: Problem, tile: blocks.Tile, asked: Statistics) -> dict[str, Tensor]:
    """Compute the statistics of one tile from its scores times log2(e), hidden ones at -inf, which are overwritten."""
    largest_BHQ, at_BHQ = scores_BHQK.max(-1) if asked.peak else (scores_BHQK.amax(-1), None)
    live_BHQ = largest_BHQ != -torch.inf
    centred_BHQK = scores_BHQK.sub_(largest_BHQ.masked_fill(~live_BHQ, 0)[..., None])
    powers_BHQK = centred_BHQK.exp2()
    total_BHQ = powers_BHQK.sum(-1).masked_fill(~live_BHQ, 1)
    share_BHQ = total_BHQ.reciprocal().masked_fill(~live_BHQ, 0)
    seen: dict[str, Tensor] = {}
    if asked.entropy:
        # Centred on the maximum, both factors are exact near 0 and the sum cannot go below 0; 0 * -inf counts as 0.
        lost_BHQ = torch.linalg.vecdot(powers_BHQK, centred_BHQK.clamp(min=torch.finfo(centred_BHQK.dtype).min))
        seen["entropy_BHQ"] = (total_BHQ.log2() - lost_BHQ * share_BHQ) / blocks.LOG2_E
    weights_BHQK = powers_BHQK.mul_(share_BHQ[..., None])
    if at_BHQ is not None:
        seen["peak_BHQ"] = share_BHQ
        seen["peak_key_BHQ"] = (at_BHQ + (tile.keys.start + problem.origin[3])).masked_fill(~live_BHQ, -1)
    seen |= _where(weights_BHQK, problem, tile, asked)
    if asked.received:
        seen["received_BHK"] = weights_BHQK.sum(-2)
    if asked.map:
        seen["map_BHPP"], seen["map_count_BHP"] = _map(weights_BHQK, live_BHQ, problem, tile, asked.map)
    if asked.links:
        seen["link_weight_BHQN"], seen["link_key_BHQN"] = _links(weights_BHQK, problem, tile, asked.links)
    return seen


def _where(weights_BHQK: Tensor, problem: Problem, tile: blocks.Tile, asked: Statistics) -> dict[str, Tensor]:
    """Compute the statistics that are sums of weight times a function of place."""
    extent, (rows_Q, keys_K) = blocks.extent_of(problem), blocks.indices(problem, tile)
    place_K = (keys_K - extent.start).expand(*weights_BHQK.shape[:1], 1, 1, -1)
    found: dict[str, Tensor] = {}
    if asked.position or asked.sink:
        factors_BHKN = torch.stack([place_K, (place_K >= 0) & (place_K < asked.sink)], -1)[:, :, 0]
        place_BHQN = weights_BHQK @ factors_BHKN.to(weights_BHQK.dtype)
        found |= {"position_BHQ": place_BHQN[..., 0]} if asked.position else {}
        found |= {"sink_BHQ": place_BHQN[..., 1]} if asked.sink else {}
    if asked.distance or asked.local is not None:
        distance_QK = extent.relative(rows_Q, keys_K).abs()
        if asked.distance:
            found["distance_BHQ"] = _dot(weights_BHQK, distance_QK)
        if asked.local is not None:
            found["local_BHQ"] = _dot(weights_BHQK, distance_QK <= asked.local)
    for name, step in (("diagonal", 0), ("previous", -1), ("next", 1)):
        if getattr(asked, name):
            own_BHQ = extent.start + rows_Q[:, None] + (extent.keys - extent.queries + step - tile.keys.start)
            found[f"{name}_BHQ"] = _at(weights_BHQK, own_BHQ)
    return found


def _dot(weights_BHQK: Tensor, factor: Tensor) -> Tensor:
    """Sum each row times a factor that samples or heads may share."""
    sum_BHQ: Tensor = torch.linalg.vecdot(weights_BHQK, factor.to(weights_BHQK.dtype).expand_as(weights_BHQK))
    return sum_BHQ


def _at(weights_BHQK: Tensor, index_Q1: Tensor) -> Tensor:
    """Pick one column of each row; 0 where it lies outside."""
    keys = weights_BHQK.shape[-1]
    inside_Q1 = (index_Q1 >= 0) & (index_Q1 < keys)
    index_BHQK = index_Q1.clamp(0, keys - 1).long().expand(*weights_BHQK.shape[:3], 1)
    return (weights_BHQK.gather(-1, index_BHQK) * inside_Q1)[..., 0]


def _cells(place: Tensor, length: Any, cells: int) -> Tensor:
    """Find the cell of each place among `length` ones; places outside, which hold no weight, fall into the last."""
    length = length.clamp(min=1) if isinstance(length, Tensor) else torch.sym_max(length, 1)
    return (place.long() * cells).div(length, rounding_mode="floor").clamp(0, cells - 1)


def _map(
    weights_BHQK: Tensor, live_BHQ: Tensor, problem: Problem, tile: blocks.Tile, cells: int
) -> tuple[Tensor, Tensor]:
    """Pool a tile's weights into cells by two products with indicator matrices, and count the live rows of each."""
    extent, (rows_Q, keys_K) = blocks.extent_of(problem), blocks.indices(problem, tile)
    if problem.mask.key_length_B is None:
        extent, rows_Q = _whole(problem, extent), rows_Q + problem.origin[2]
    row_BHQ = _cells(rows_Q, _row(extent.queries), cells)
    key_BHK = _cells(keys_K - _row(extent.start), _row(extent.keys), cells)
    dtype = weights_BHQK.dtype
    by_key_BHKP = torch.nn.functional.one_hot(key_BHK, cells).to(dtype)
    by_row_BHPQ = torch.nn.functional.one_hot(row_BHQ, cells).to(dtype).transpose(-1, -2)
    mass_BHQP = weights_BHQK @ by_key_BHKP
    broken_BHQP = mass_BHQP.isnan()  # 0 times NaN would spread over the other rows of cells
    mass_BHPP = by_row_BHPQ @ mass_BHQP.masked_fill(broken_BHQP, 0)
    mass_BHPP = mass_BHPP.masked_fill(by_row_BHPQ @ broken_BHQP.to(dtype) > 0, torch.nan)
    count_BHP = (by_row_BHPQ @ live_BHQ.to(dtype)[..., None])[..., 0]
    return mass_BHPP, count_BHP.round().long()


def _whole(problem: Problem, extent: Extent) -> Extent:
    """Count the queries that were cut off because they see nothing: map rows are numbered over all valid queries."""
    return extent._replace(queries=extent.queries + problem.origin[2])


def _row(size: Any) -> Any:
    return size[..., 0] if isinstance(size, Tensor) else size


def _links(weights_BHQK: Tensor, problem: Problem, tile: blocks.Tile, links: int) -> tuple[Tensor, Tensor]:
    """Take the strongest keys of each query, and weight 0 and key -1 where fewer are visible, or weights are NaN."""
    found = min(links, weights_BHQK.shape[-1])
    weight_BHQN, key_BHQN = weights_BHQK.nan_to_num(0.0).topk(found, -1)
    key_BHQN = (key_BHQN + (tile.keys.start + problem.origin[3])).masked_fill(weight_BHQN == 0, -1)
    pad = (0, links - found)
    return torch.nn.functional.pad(weight_BHQN, pad), torch.nn.functional.pad(key_BHQN, pad, value=-1)


def _store(room: dict[str, Tensor], seen: dict[str, Tensor], part: blocks.Part, tile: blocks.Tile) -> None:
    """Put a tile's statistics where they belong in the whole call's."""
    rows = slice(part.rows.start + tile.rows.start, part.rows.start + tile.rows.stop)
    keys = slice(part.keys.start + tile.keys.start, part.keys.start + tile.keys.stop)
    for name, value in seen.items():
        target = room[name][part.batch, part.heads]
        if name == "received_BHK":
            target[:, :, keys] += value
        elif name.startswith("map"):
            target += value
        else:
            target[:, :, rows] = value
