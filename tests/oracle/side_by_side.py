"""Run a call through `headwise.compat` and through PyTorch, forward and backward, and compare what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Results = list[Tensor | None]


def results(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], dtype: torch.dtype) -> Results:
    """Give the outputs of a call, then the gradients of every float tensor in it and of the function's parameters.

    The gradients are those of the outputs multiplied by fixed random numbers; `None` where there is none. A tensor that
    is given twice stays one tensor.
    """
    leaves: dict[int, Tensor] = {}

    def fresh(x: Any) -> Any:
        if type(x) is not Tensor:
            return x
        if id(x) not in leaves:
            copy = x.detach().clone()
            leaves[id(x)] = copy.to(dtype).requires_grad_() if x.is_floating_point() else copy
        return leaves[id(x)]

    args, kwargs = tree_map(fresh, (list(args), kwargs))
    held = list(function.parameters()) if isinstance(function, nn.Module) else []
    outputs = [x for x in tree_leaves(function(*args, **kwargs)) if x is not None]
    inputs = [x for x in (*leaves.values(), *held) if x.requires_grad]
    generator = torch.Generator().manual_seed(1)
    pulls = [torch.randn(x.shape, generator=generator).to(dtype) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, pulls, allow_unused=True)]


def assert_equal(ours: Results, theirs: Results, exact: Results, slack: float) -> int:
    """Hold ours against PyTorch's by law 1, finite where PyTorch's is NaN, and count the tensors of which that is so.

    The numbers of one call share one bound, since gradients that are small by cancellation come from large terms, with
    4 eps for the forward pass and 4 for the backward one. Float64 has no better type to be held against: 1e-7 of the
    largest number there, as `torch.testing.assert_close` has it.

    Args:
        ours: what `headwise.compat` gives.
        theirs: what PyTorch gives.
        exact: what PyTorch gives in float64.
        slack: factor of the error allowed.
    """
    assert len(ours) == len(theirs) == len(exact)
    errors, explained = [torch.zeros(3)], 0
    for our, their, true in zip(ours, theirs, exact, strict=True):
        if our is None or their is None or true is None:
            assert our is their is true, "a gradient that only one of them has"
            continue
        assert (our.dtype, our.shape) == (their.dtype, their.shape)
        assert our.isfinite().all()
        broken = their.isnan() | true.isnan()
        explained += int(broken.any())
        if not broken.all():
            mine, peer, best = (x.detach()[~broken].double() for x in (our, their, true))
            errors.append(torch.stack([(mine - best).abs().max(), (peer - best).abs().max(), best.abs().max()]))
    error, peer_error, largest = torch.stack(errors).amax(0).tolist()
    share = 1e-7 if theirs[0].dtype == torch.float64 else 8 * torch.finfo(theirs[0].dtype).eps
    assert error <= slack * (2 * peer_error + share * largest)
    return explained


def assert_same(
    ours: Callable[..., Any], theirs: Callable[..., Any], args: Sequence[Any], *, slack: float = 1, **kwargs: Any
) -> int:
    """Run a call both ways in its own type and hold the results against each other, as `assert_equal` does.

    Two modules get the same parameters first.
    """
    dtype = args[0].dtype
    exactly = theirs
    if isinstance(ours, nn.Module) and isinstance(theirs, nn.Module):
        ours.load_state_dict(theirs.state_dict())
        exactly = deepcopy(theirs).double()
    peer = results(theirs, args, kwargs, dtype)
    exact = peer if dtype == torch.float64 else results(exactly, args, kwargs, torch.float64)
    return assert_equal(results(ours, args, kwargs, dtype), peer, exact, slack)
