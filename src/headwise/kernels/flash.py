"""Call PyTorch's fused operation for the CPU, with what it lacks around it.

It has no window, lengths or segments, mistakes a row that sees nothing for one with log-sum-exp 0, and in half
precision is slower than on float32 copies (see docs/LOG.md), so it gets parts without padding, tiles with a float mask
where a mask is needed, and float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headwise.contracts.problem import Problem
from headwise.kernels import blocks
from headwise.kernels.written import rows_of, working

__all__ = ["COPY_NUMBERS", "LEAST_KEYS", "MASK_NUMBERS", "backward", "forward"]

LEAST_KEYS = 16
"""With fewer keys the operation gives 0 where a query is NaN."""

MASK_NUMBERS = 1 << 20
"""Numbers of a written-out mask: 4 MB of float32."""
COPY_NUMBERS = 1 << 20
"""Numbers of a part's float32 copy of one tensor of half precision: 4 MB."""


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp; the operation's own result where one call does it all."""
    room = None
    for part in _parts(problem):
        small = working(part.problem)
        for tile, causal, added_BHQK in _pieces(small):
            mixed_BHQE, found_BHQ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *_taken(small, tile), is_causal=causal, attn_mask=added_BHQK, scale=small.scale
            )
            if added_BHQK is not None:
                found_BHQ = found_BHQ.masked_fill(added_BHQK.amax(-1) == -torch.inf, -torch.inf)
            if mixed_BHQE.shape[:3] == problem.query_BHQD.shape[:3]:
                return mixed_BHQE.to(problem.query_BHQD.dtype), found_BHQ
            room = room or blocks.output_room(problem)
            for whole, found in zip(room, (mixed_BHQE, found_BHQ), strict=True):
                whole[part.batch, part.heads, rows_of(part, tile)] = found
    return room or blocks.output_room(problem)


def backward(problem: Problem, grad_BHQE: Tensor, saved: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Compute the gradients of query, key and value; the operation's own results where one call does it all."""
    names = ("query_BHQD", "key_BGKD", "value_BGKE")
    room: dict[str, Tensor] = {}
    for part in _parts(problem):
        small, here = working(part.problem), (part.batch, part.heads, part.rows)
        grad, output = (x[here].to(small.working_dtype) for x in (grad_BHQE, saved[0]))
        # exp(score - inf) = 0: a row that sees nothing has no weights.
        lse = saved[1][here].to(small.working_dtype)
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)
        sums: list[Tensor | None] = [None, None]
        for tile, causal, added_BHQK in _pieces(small):
            query_grad, *others = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, :, tile.rows],
                *_taken(small, tile),
                output[:, :, tile.rows],
                lse[:, :, tile.rows],
                0.0,
                causal,
                attn_mask=added_BHQK,
                scale=small.scale,
            )
            found = (query_grad, *others)
            if all(x.shape == getattr(problem, name).shape for x, name in zip(found, names, strict=True)):
                return dict(zip(names, found, strict=True))
            room = room or blocks.gradient_room(problem, (False,) * 3)
            room["query_BHQD"][part.batch, part.heads, rows_of(part, tile)] = query_grad
            for i, like in enumerate((small.key_BGKD, small.value_BGKE)):
                sums[i] = blocks.added_up(sums[i], others[i], tile.keys, like)
        for name, total in zip(names[1:], sums, strict=True):
            if total is not None:
                room[name][part.batch, part.groups, part.keys] = total
    return room or blocks.gradient_room(problem, (False,) * 3)


def _parts(problem: Problem) -> Iterator[blocks.Part]:
    """Take a call whole where nothing is copied, else as many heads as copies may take, one a thread at least."""
    _, heads, groups, queries, keys, width, _ = problem.sizes
    copied = problem.query_BHQD.dtype != problem.working_dtype
    cost = max(heads // groups * queries, keys) * width if copied else 0
    return blocks.parts(problem, cost, COPY_NUMBERS, torch.get_num_threads())


def _taken(problem: Problem, tile: blocks.Tile) -> tuple[Tensor, Tensor, Tensor]:
    return (
        problem.query_BHQD[:, :, tile.rows],
        problem.key_BGKD[:, :, tile.keys],
        problem.value_BGKE[:, :, tile.keys],
    )


def _pieces(problem: Problem) -> Iterator[tuple[blocks.Tile, bool, Tensor | None]]:
    """Cut a part into calls of the operation: a tile, whether it is plainly causal, and its mask if it needs one."""
    mask, (queries, keys) = problem.mask, (problem.query_BHQD.shape[2], problem.key_BGKD.shape[2])
    added = (mask.key_length_B, mask.key_segment_BKN, mask.dense_BHQK, problem.bias_BHQK, problem.slopes_H)
    banded = all(x is None for x in (*added, problem.relative_HN))
    whole = blocks.Tile(slice(0, queries), slice(0, keys), False)
    if banded and not mask.hides:
        yield whole, False, None
    elif banded and _is_triangle(problem, queries, keys):
        yield whole, True, None
    else:
        for tile in blocks.tiles(problem, max(MASK_NUMBERS // max(keys, 1), blocks.LEAST_ROWS)):
            yield tile, False, _added(problem, tile)


def _is_triangle(problem: Problem, queries: int, keys: int) -> bool:
    """Tell whether the operation's causal mask is the call's: query i may see keys 0 to i and no others."""
    mask = problem.mask
    if mask.left is not None or problem.scale <= 0:  # the operation multiplies its -inf by the scale
        return False
    at_end = mask.right == 0 and queries == keys
    return at_end or (mask.start_causal and mask.right is None)


def _added(problem: Problem, tile: blocks.Tile) -> Tensor | None:
    """Write what is added to the scores of a tile as numbers, -inf where the mask hides."""
    bias = blocks.bias_of(problem, tile)
    visible = blocks.visible(problem, tile)
    if visible is None:
        return bias
    if bias is None:
        bias = torch.zeros((), dtype=problem.working_dtype, device=visible.device)
    return torch.where(visible, bias, -torch.inf)
