"""Write softmax(QK)V out in tiles, forward and backward, in float32 (float64 for float64 inputs)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from headwise.contracts.problem import Problem
from headwise.kernels import blocks

__all__ = ["backward", "forward", "rows_of", "working"]


def forward(problem: Problem, output_BHQE: Tensor, lse_BHQ: Tensor) -> None:
    """Fill output and log-sum-exp; rows that no tile reaches keep what they hold."""
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
            factor_BHQK = _dropout_factor(small, tile)
            if factor_BHQK is not None:
                powers_BHQK *= factor_BHQK
            if tile.masked:
                total_BHQ1.masked_fill_(total_BHQ1 == 0, 1)
            mixed_BHQE = _product(powers_BHQK, small.value_BGKE[:, :, tile.keys], small.guarded)
            output_BHQE[here] = mixed_BHQE.div_(total_BHQ1)


def backward(
    problem: Problem,
    given: Iterable[Tensor | None],
    saved: tuple[Tensor, Tensor, Tensor | None],
    room: dict[str, Tensor],
) -> None:
    """Fill the room made for the gradients, recomputing the weights from the log-sum-exp.

    Args:
        problem: the call.
        given: gradients of output, log-sum-exp and entropy; `None` for zero.
        saved: output, log-sum-exp and entropy of the forward pass.
        room: a tensor for each gradient wanted.
    """
    for part in _parts(problem):
        small, here = working(part.problem), (part.batch, part.heads, part.rows)
        local = [None if x is None else x[here].to(small.working_dtype) for x in (*given, saved[1], saved[2])]
        key_sum_BGKD = value_sum_BGKE = None
        for tile in blocks.tiles(small):
            there = [None if x is None else x[:, :, tile.rows] for x in local]
            slope_BHQK, dropped_BHQK = _slope(small, tile, there)
            if there[0] is not None:
                found = _product_over_rows(dropped_BHQK, there[0], small)
                value_sum_BGKE = blocks.added_up(value_sum_BGKE, found, tile.keys, small.value_BGKE)
            _add_biases(room, part, tile, slope_BHQK)
            slope_BHQK *= small.scale
            found = _product_over_rows(slope_BHQK, small.query_BHQD[:, :, tile.rows], small)
            key_sum_BGKD = blocks.added_up(key_sum_BGKD, found, tile.keys, small.key_BGKD)
            pulled_BHQD = _product(slope_BHQK, small.key_BGKD[:, :, tile.keys], small.guarded)
            room["query_BHQD"][part.batch, part.heads, rows_of(part, tile)] = pulled_BHQD
        for name, total in (("key_BGKD", key_sum_BGKD), ("value_BGKE", value_sum_BGKE)):
            room[name][part.batch, part.groups, part.keys] = 0 if total is None else total


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


def _dropout_factor(problem: Problem, tile: blocks.Tile) -> Tensor | None:
    """Give 0 for a dropped weight and the factor that makes up for it for a kept one; `None` without dropout."""
    kept_BHQK = blocks.kept(problem, tile)
    if kept_BHQK is None:
        return None
    return kept_BHQK.to(problem.working_dtype).mul_(1 / (1 - problem.rate) if problem.rate < 1 else 0)


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
    pull_BHQK = blocks.matmul_grouped(grad_BHQE, problem.value_BGKE[:, :, tile.keys].transpose(-1, -2))
    factor_BHQK = _dropout_factor(problem, tile)
    if factor_BHQK is None:
        return pull_BHQK, weights_BHQK
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
        target.scatter_add_(1, column_BHQK.transpose(0, 1).flatten(1), slope_BHQK.transpose(0, 1).flatten(1))


def _product(weights_BHQK: Tensor, right_BGKD: Tensor, guarded: bool) -> Tensor:
    """Sum vectors by weights; guarded, what is not finite reaches only the rows that give it weight."""
    if not guarded:
        return blocks.matmul_grouped(weights_BHQK, right_BGKD)
    broken_BGK1 = (~right_BGKD.isfinite()).any(-1, keepdim=True)
    mixed_BHQD = blocks.matmul_grouped(weights_BHQK, right_BGKD.masked_fill(broken_BGK1, 0))
    reached_BHQ1 = blocks.matmul_grouped((weights_BHQK != 0).to(right_BGKD.dtype), broken_BGK1.to(right_BGKD.dtype))
    return mixed_BHQD.masked_fill_(reached_BHQ1 > 0, torch.nan)


def _product_over_rows(weights_BHQK: Tensor, left_BHQD: Tensor, problem: Problem) -> Tensor:
    """Sum the rows' vectors by their weights for each key, over all heads of a group."""
    groups = problem.key_BGKD.shape[1]
    weights, left = (x.unflatten(1, (groups, -1)).flatten(2, 3) for x in (weights_BHQK, left_BHQD))
    return _product(weights.transpose(-1, -2), left, problem.guarded)
