"""Compute attention as it is written in the paper, in plain operations, float64 and n x n memory, for any transform.

The oracle of the tests, the way to weights, and the backend for second derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.contracts.problem import Problem
from headwise.contracts.statistics import Statistics
from headwise.kernels import blocks, measure

__all__ = ["NAME", "attend", "describe", "refusal", "weights"]

NAME = "reference"


def refusal(problem: Problem, asked: Statistics) -> str | None:
    """Say why `auto` does not take this backend."""
    del problem, asked
    return "it holds every weight at once; ask for it by name"


def describe(problem: Problem) -> str:
    """Say how this backend computes a call."""
    del problem
    return "softmax(QK)V written out in float64, all weights at once"


def attend(problem: Problem, asked: Statistics) -> tuple[Tensor, ...]:
    """Compute the output, the log-sum-exp and the statistics asked for, differentiable any number of times."""
    names = ("query_BHQD", "key_BGKD", "value_BGKE")
    exact = problem.but(**{name: getattr(problem, name).double() for name in names})
    with problem.exactly():
        output_BHQE, *others = _attend(exact, asked)
    types = problem.query_BHQD.dtype, problem.working_dtype
    return output_BHQE.to(types[0]), *(x.to(types[1]) if x.is_floating_point() else x for x in others)


def _attend(problem: Problem, asked: Statistics) -> tuple[Tensor, ...]:
    _check(problem)
    whole = _whole(problem)
    scores_BHQK = _scores(problem)
    lse_BHQ, weights_BHQK = _normalised(scores_BHQK)
    kept_BHQK = blocks.kept(problem, whole)
    dropped_BHQK = weights_BHQK
    if kept_BHQK is not None:
        dropped_BHQK = weights_BHQK * kept_BHQK / (1 - problem.rate) if problem.rate < 1 else weights_BHQK * 0
    output_BHQE = _mixed(problem, dropped_BHQK).to(problem.query_BHQD.dtype)
    seen = measure.empty(asked, problem)
    if seen and scores_BHQK.shape[-1] > 0:
        seen |= measure.of_tile(scores_BHQK.detach() * blocks.LOG2_E, problem, whole, asked)
    if asked.entropy:
        # Written so that a hidden key gives 0 * 0 and not 0 * -inf, in the gradient too.
        gap_BHQK = torch.where(weights_BHQK == 0, 0, lse_BHQ[..., None] - scores_BHQK)
        seen["entropy_BHQ"] = (weights_BHQK * gap_BHQK).sum(-1)
    return output_BHQE, lse_BHQ, *(seen[name] for name in measure.names(asked))


def weights(problem: Problem, window: slice) -> Tensor:
    """Compute the attention weights of a window of queries, before dropout, in the inputs' dtype."""
    _check(problem)
    with problem.exactly():
        return _normalised(_scores(problem, window))[1].to(problem.query_BHQD.dtype)


def _check(problem: Problem) -> None:
    """Look at lengths where there are numbers to look at."""
    if not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        problem.check_lengths()


def _whole(problem: Problem) -> blocks.Tile:
    queries, keys = problem.query_BHQD.shape[2], problem.key_BGKD.shape[2]
    return blocks.Tile(blocks.Run(0, queries), blocks.Run(0, keys), masked=True, whole=True)


def _scores(problem: Problem, window: slice = slice(None)) -> Tensor:
    """Compute scores, hidden ones at -inf; what is hidden and not finite leaves no trace, in the gradient either."""
    whole = _whole(problem)
    tile = whole
    if window != slice(None):  # else the size stays free in an exported program
        start, stop, _ = window.indices(whole.rows.stop)
        tile = blocks.Tile(slice(start, max(start, stop)), slice(0, whole.keys.stop), masked=True)
    query_BHQD, key_BGKD = (x.to(problem.working_dtype) for x in (problem.query_BHQD[:, :, window], problem.key_BGKD))
    broken_BHQK = None
    if problem.hides:
        broken_BHQK = _broken(query_BHQD, 1)[..., None] | _broken(key_BGKD, _share(problem))[:, :, None]
        query_BHQD, key_BGKD = _finite(query_BHQD), _finite(key_BGKD)
    scores_BHQK = blocks.matmul_grouped(query_BHQD * problem.scale, key_BGKD.transpose(-1, -2))
    if broken_BHQK is not None:
        scores_BHQK = scores_BHQK.masked_fill(broken_BHQK, torch.nan)
    bias_BHQK = blocks.bias_of(problem, tile)
    if bias_BHQK is not None:
        hidden_BHQK = bias_BHQK == -torch.inf
        scores_BHQK = torch.where(hidden_BHQK, -torch.inf, scores_BHQK + bias_BHQK.masked_fill(hidden_BHQK, 0))
    visible_BHQK = blocks.visible(problem, tile)
    return scores_BHQK if visible_BHQK is None else scores_BHQK.masked_fill(~visible_BHQK, -torch.inf)


def _normalised(scores_BHQK: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log-sum-exp and softmax of each row; -inf and zeros for a row that sees nothing."""
    if scores_BHQK.shape[-1] == 0:
        return scores_BHQK.new_full(scores_BHQK.shape[:-1], -torch.inf) + scores_BHQK.sum(-1), scores_BHQK
    largest_BHQ = scores_BHQK.detach().amax(-1)
    dead_BHQ = largest_BHQ == -torch.inf
    largest_BHQ = largest_BHQ.masked_fill(dead_BHQ, 0)
    powers_BHQK = (scores_BHQK - largest_BHQ[..., None]).exp()
    total_BHQ = powers_BHQK.sum(-1).masked_fill(dead_BHQ, 1)
    lse_BHQ = (largest_BHQ + total_BHQ.log()).masked_fill(dead_BHQ, -torch.inf)
    return lse_BHQ, powers_BHQK / total_BHQ[..., None]


def _mixed(problem: Problem, weights_BHQK: Tensor) -> Tensor:
    """Sum the values by their weights; a value that is not finite reaches only the queries that see it."""
    value_BGKE = problem.value_BGKE.to(problem.working_dtype)
    if not problem.hides:
        return blocks.matmul_grouped(weights_BHQK, value_BGKE)
    mixed_BHQE = blocks.matmul_grouped(weights_BHQK, _finite(value_BGKE))
    seen_BHQK = weights_BHQK.detach() != 0
    broken_BHK = _broken(value_BGKE, _share(problem))
    reached_BHQ = (seen_BHQK & broken_BHK[:, :, None]).any(-1)
    return mixed_BHQE.masked_fill(reached_BHQ[..., None], torch.nan)


def _finite(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor, 0)


def _share(problem: Problem) -> int:
    return problem.query_BHQD.shape[1] // problem.key_BGKD.shape[1]


def _broken(tensor_BGND: Tensor, share: int) -> Tensor:
    """Find the vectors that hold a NaN or an infinity, once for each head that shares them: shape (B, H, N)."""
    return (~tensor_BGND.isfinite()).any(-1).repeat_interleave(share, 1)
