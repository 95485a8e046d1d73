"""Write softmax(QK)V out in tiles, forward and backward, in float32 (float64 for float64 inputs)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from headwise.contracts.problem import Problem
from headwise.kernels import blocks

__all__ = ["backward", "forward", "rows_of", "working"]


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp."""
    output_BHQE, lse_BHQ = blocks.output_room(problem)
    for part in _parts(problem):
        small = working(part.problem)
        for tile in blocks.tiles(small):
            scores_BHQK = blocks.scores(small, tile)
            largest_BHQ1 = scores_BHQK.amax(-1, keepdim=True)
            if tile.masked:
                largest_BHQ1.masked_fill_(largest_BHQ1 == -torch.inf, 0)
            powers_BHQK = scores_BHQK.sub_(largest_BHQ1).exp2_()
            total_BHQ1 = powers_BHQK.sum(-1, keepdim=True)
            here = part.batch, part.heads, rows_of(part, tile)
            lse_BHQ[here] = largest_BHQ1.add_(total_BHQ1.log2()).div_(blocks.LOG2_E)[..., 0]
            kept_BHQK = blocks.kept(small, tile)
            if kept_BHQK is not None:
                powers_BHQK *= kept_BHQK.to(powers_BHQK.dtype)
                total_BHQ1 *= _kept_share(small)
            if tile.masked:
                total_BHQ1.masked_fill_(total_BHQ1 == 0, 1)
            powers_NQK, value_NKE = _by_group(small, powers_BHQK, small.value_BGKE[:, :, tile.keys])
            _put(output_BHQE[here], powers_NQK, value_NKE, 1.0, small.guarded, total_BHQ1)
    return output_BHQE, lse_BHQ


def backward(
    problem: Problem,
    given: Iterable[Tensor | None],
    saved: tuple[Tensor, Tensor, Tensor | None],
    needs: tuple[bool, ...],
) -> dict[str, Tensor]:
    """Compute the gradients.

    Args:
        problem: the call.
        given: gradients of output, log-sum-exp and entropy; `None` for zero.
        saved: output, log-sum-exp and entropy of the forward pass.
        needs: whether bias, slopes and the relative bias need theirs.
    """
    room = blocks.gradient_room(problem, needs)
    for part in _parts(problem):
        small, here = working(part.problem), (part.batch, part.heads, part.rows)
        local = [None if x is None else x[here].to(small.working_dtype) for x in (*given, saved[1], saved[2])]
        if local[0] is not None and small.rate > 0:
            local[0] = local[0] / _kept_share(small)
        places = [room[name][part.batch, part.groups, part.keys] for name in ("key_BGKD", "value_BGKE")]
        sums: list[Tensor | None] = [None, None]
        for tile in blocks.tiles(small):
            there = [None if x is None else x[:, :, tile.rows] for x in local]
            slope_BHQK, dropped_BHQK = _slope(small, tile, there)
            _add_biases(room, part, tile, slope_BHQK)
            slope_NQK, key_NKD = _by_group(small, slope_BHQK, small.key_BGKD[:, :, tile.keys])
            place = room["query_BHQD"][part.batch, part.heads, rows_of(part, tile)]
            _put(place, slope_NQK, key_NKD, small.scale, small.guarded)
            key_share = slope_BHQK, small.query_BHQD[:, :, tile.rows], small.scale
            for i, share in enumerate((key_share, (dropped_BHQK, there[0], 1.0))):
                sums[i] = _add_for_keys(sums[i], places[i], share, small, tile)
        for place, total in zip(places, sums, strict=True):
            if total is None:
                place.zero_()
            elif total is not place:
                place.copy_(total)
    return room


def working(problem: Problem) -> Problem:
    """Convert query, key and value to the working type."""
    names, dtype = ("query_BHQD", "key_BGKD", "value_BGKE"), problem.working_dtype
    if problem.query_BHQD.dtype == dtype:
        return problem
    return problem.but(**{name: getattr(problem, name).to(dtype) for name in names})


def rows_of(part: blocks.Part, tile: blocks.Tile) -> slice:
    """Place a tile's rows in the whole call."""
    return slice(part.rows.start + tile.rows.start, part.rows.start + tile.rows.stop)


def _parts(problem: Problem) -> Iterator[blocks.Part]:
    share, queries, keys = problem.sizes[1] // problem.sizes[2], problem.sizes[3], problem.sizes[4]
    return blocks.parts(problem, share * queries * keys, blocks.TILE_SCORES)


def _kept_share(problem: Problem) -> float:
    """Give what dropout leaves on average; where it leaves nothing, all is zero whatever it is divided by."""
    return 1 - problem.rate if problem.rate < 1 else 1.0


def _by_group(problem: Problem, weights_BHQK: Tensor, vectors_BGKD: Tensor) -> tuple[Tensor, Tensor]:
    """Fold samples and groups into one axis, and the heads of a group with their rows."""
    return blocks.stacked(weights_BHQK, problem.key_BGKD.shape[1]), vectors_BGKD.flatten(0, 1)


def _slope(problem: Problem, tile: blocks.Tile, there: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the scores, `P (dP - sum P dP)`, and the weights after dropout.

    The entropy H with gradient h adds `-h (log P + H)` to dP, the log-sum-exp with gradient g adds `g P` to the result
    (both follow from their definitions).
    """
    grad_BHQE, grad_lse_BHQ, grad_entropy_BHQ, lse_BHQ, entropy_BHQ = there
    assert lse_BHQ is not None, "the forward pass saves it"
    dead_BHQ = lse_BHQ == -torch.inf
    powers_of_BHQ = lse_BHQ.masked_fill(dead_BHQ, torch.inf).mul_(blocks.LOG2_E)
    log_BHQK = blocks.scores(problem, tile).sub_(powers_of_BHQ[..., None])
    weights_BHQK = log_BHQK.exp2()
    # Rounding of a large log-sum-exp is a common factor of its row, which the sum undoes.
    total_BHQ1 = weights_BHQK.sum(-1, keepdim=True)
    weights_BHQK.div_(total_BHQ1.masked_fill_(total_BHQ1 == 0, 1))
    pull_BHQK, dropped_BHQK = _pull(problem, tile, grad_BHQE, weights_BHQK)
    if grad_entropy_BHQ is not None and entropy_BHQ is not None:
        # Weights below 2 ** -1e4 are 0 in every type, whatever their logarithm.
        log_BHQK.sub_(total_BHQ1.log2()).clamp_(min=-1e4)
        spread_BHQK = log_BHQK.div_(blocks.LOG2_E).add_(entropy_BHQ[..., None])
        pull_BHQK.sub_(spread_BHQK.mul_(grad_entropy_BHQ[..., None]))
    if problem.guarded:
        pull_BHQK.masked_fill_(weights_BHQK == 0, 0)
    slope_BHQK = torch._softmax_backward_data(pull_BHQK, weights_BHQK, -1, weights_BHQK.dtype)
    if grad_lse_BHQ is not None:
        slope_BHQK.addcmul_(weights_BHQK, grad_lse_BHQ.masked_fill(dead_BHQ, 0)[..., None])
    return slope_BHQK, dropped_BHQK


def _pull(problem: Problem, tile: blocks.Tile, grad_BHQE: Tensor | None, weights_BHQK: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the weights that comes through the output, and the weights after dropout."""
    if grad_BHQE is None:
        return torch.zeros_like(weights_BHQK), weights_BHQK
    grad_NQE = blocks.stacked(grad_BHQE, problem.key_BGKD.shape[1])
    value_NEK = problem.value_BGKE[:, :, tile.keys].flatten(0, 1).transpose(1, 2)
    pull_BHQK = blocks.product(grad_NQE, value_NEK, 1.0).view(weights_BHQK.shape)
    kept_BHQK = blocks.kept(problem, tile)
    if kept_BHQK is None:
        return pull_BHQK, weights_BHQK
    factor_BHQK = kept_BHQK.to(weights_BHQK.dtype)
    return pull_BHQK.mul_(factor_BHQK), factor_BHQK.mul_(weights_BHQK)


def _add_biases(room: dict[str, Tensor], part: blocks.Part, tile: blocks.Tile, slope_BHQK: Tensor) -> None:
    """Add the gradient of the scores to the gradients of the bias, the slopes and the relative bias."""
    if "bias_BHQK" in room:
        rows, keys = rows_of(part, tile), slice(part.keys.start + tile.keys.start, part.keys.start + tile.keys.stop)
        target = blocks.cut(room["bias_BHQK"], part.batch, part.heads, rows, keys)
        assert target is not None, "there is room for it"
        target += slope_BHQK.sum_to_size(target.shape)
    if "slopes_H" not in room and "relative_HN" not in room:
        return
    relative_QK = blocks.extent_of(part.problem).relative(*blocks.indices(part.problem, tile))
    relative_BHQK = relative_QK[(None,) * (4 - relative_QK.dim())]
    if "slopes_H" in room:
        room["slopes_H"][part.heads] -= (slope_BHQK * relative_BHQK.abs()).sum((0, 2, 3))
    if "relative_HN" in room:
        target = room["relative_HN"][part.heads]
        column_BHQK = blocks.clamped(relative_BHQK, target).expand_as(slope_BHQK)
        slope_HN = slope_BHQK.transpose(0, 1).flatten(1).to(target.dtype)
        target.scatter_add_(1, column_BHQK.transpose(0, 1).flatten(1), slope_HN)


def _add_for_keys(
    total_BGKD: Tensor | None,
    place_BGKD: Tensor,
    share: tuple[Tensor, Tensor | None, float],
    problem: Problem,
    tile: blocks.Tile,
) -> Tensor | None:
    """Add the vectors of a tile's rows by their weights to each key; a tile that is the whole part writes in place."""
    weights_BHQK, vectors_BHQD, scale = share
    if vectors_BHQD is None:
        return total_BGKD
    groups = problem.key_BGKD.shape[1]
    weights_NKQ, vectors_NQD = (
        blocks.stacked(weights_BHQK, groups).transpose(1, 2),
        blocks.stacked(vectors_BHQD, groups),
    )
    if weights_BHQK.shape[2:] == (problem.query_BHQD.shape[2], problem.key_BGKD.shape[2]):
        _put(place_BGKD, weights_NKQ, vectors_NQD, scale, problem.guarded)
        return place_BGKD
    found_BGKD = _product(weights_NKQ, vectors_NQD, scale, problem.guarded).unflatten(0, (-1, groups))
    return blocks.added_up(total_BGKD, found_BGKD, tile.keys, place_BGKD)


def _put(
    place_BHQD: Tensor,
    weights_NQK: Tensor,
    vectors_NKD: Tensor,
    scale: float,
    guarded: bool,
    divisor_BHQ1: Tensor | None = None,
) -> None:
    """Write a product, divided where asked, to its place: directly where memory allows."""
    direct = not guarded and place_BHQD.is_contiguous() and place_BHQD.dtype == weights_NQK.dtype
    if direct:
        room_NQD = place_BHQD.view(weights_NQK.shape[0], weights_NQK.shape[1], vectors_NKD.shape[2])
        found_BHQD = blocks.product(weights_NQK, vectors_NKD, scale, room_NQD).view(place_BHQD.shape)
    else:
        found_BHQD = _product(weights_NQK, vectors_NKD, scale, guarded).view(place_BHQD.shape)
    if divisor_BHQ1 is not None:
        found_BHQD.div_(divisor_BHQ1)
    if not direct:
        place_BHQD.copy_(found_BHQD)


def _product(weights_NQK: Tensor, vectors_NKD: Tensor, scale: float, guarded: bool) -> Tensor:
    """Sum vectors by weights; guarded, what is not finite reaches only the rows that give it weight."""
    if not guarded:
        return blocks.product(weights_NQK, vectors_NKD, scale)
    broken_NK1 = (~vectors_NKD.isfinite()).any(-1, keepdim=True)
    mixed_NQD = blocks.product(weights_NQK, vectors_NKD.masked_fill(broken_NK1, 0), scale)
    reached_NQ1 = torch.bmm((weights_NQK != 0).to(mixed_NQD.dtype), broken_NK1.to(mixed_NQD.dtype))
    return mixed_NQD.masked_fill_(reached_NQ1 > 0, torch.nan)
