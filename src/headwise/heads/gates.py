"""Turn heads down or off while a model runs, and leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headwise.errors import InputError
from headwise.modules import Attend

__all__ = ["gated", "hooked", "sample_gates", "seams_of", "turned"]


def seams_of(model: nn.Module) -> dict[str, Attend]:
    """Give the seam of every attention layer by its path.

    Raises:
        InputError: when the model has none.
    """
    seams = {path: module for path, module in model.named_modules() if isinstance(module, Attend)}
    if not seams:
        raise InputError(
            f"a model must hold `headwise.Attend` for its heads to be reached; got {type(model).__name__} without one. "
            "Build it of our layers, or attach to it."
        )
    return seams


@contextmanager
def hooked(
    model: nn.Module, after: Mapping[str, Callable[..., Any]], before: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Call hooks around seams, with keywords; what was compiled would pass them by and runs eagerly.

    Args:
        model: any model built on `headwise.Attend`.
        after: by the path of a seam, what may change its result.
        before: what may change the arguments of these seams.
    """
    seams = seams_of(model)
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for path, hook in after.items():
            if before is not None:
                stack.callback(seams[path].register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(seams[path].register_forward_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def gated(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply what heads give by gates, for as many calls as are made inside.

    1 leaves a head as it is, 0 is a head that is cut. The output of a layer is affine in its gates, and gates may
    require gradient. Compiled models run eagerly meanwhile. Nothing is left behind, not even after an exception.

    Args:
        model: any model built on `headwise.Attend`.
        gates: by the path of a seam, one gate a head, shape (H,), or one a sample and head, shape (B, H).

    Raises:
        InputError: for a path that the model has not, or another number of heads.

    Example:
        >>> from headwise import MultiHeadAttention
        >>> layer = MultiHeadAttention(16, 2, bias=False)
        >>> with gated(layer, {"attend": torch.zeros(2)}):
        ...     layer(torch.randn(1, 5, 16)).abs().max()
        tensor(0., grad_fn=<MaxBackward1>)
    """
    seams = seams_of(model)
    for path, gate in gates.items():
        if path not in seams:
            raise InputError(f"gates must name seams of the model; got {path!r}. It has {', '.join(seams)}.")
        if gate.dim() not in (1, 2) or gate.shape[-1] != len(seams[path].heads):
            told = f"{tuple(gate.shape)} for {len(seams[path].heads)} heads of {path}"
            raise InputError(f"gates must have shape (H,) or (B, H); got {told}. Give one gate a head.")
    with hooked(model, {path: partial(_turn, gate) for path, gate in gates.items()}):
        yield


@contextmanager
def sample_gates(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Put an open gate that asks for its gradient at every head and sample, and give them by the path of the seam.

    A seam's list grows by one tensor of ones, shape (B, H), with each of its calls.
    """
    gates: dict[str, list[Tensor]] = {path: [] for path in seams_of(model)}
    with hooked(model, {path: partial(_open, made) for path, made in gates.items()}):
        yield gates


def _open(made: list[Tensor], seam: Attend, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    gate_BH = torch.ones(args[0].shape[0], len(seam.heads), device=args[0].device, requires_grad=True)
    made.append(gate_BH)
    return _turn(gate_BH, seam, args, kwargs, result)


def _turn(gate: Tensor, seam: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    return turned(gate, result)


def turned(gate: Tensor, result: Any) -> Any:
    """Multiply the output in a seam's result by gates, (H,) or (B, H), and leave its statistics alone."""
    output_BHQE, *seen = result if isinstance(result, tuple) else (result,)
    turned_BHQE = output_BHQE * gate.to(output_BHQE).unsqueeze(-1).unsqueeze(-1)
    return (turned_BHQE, *seen) if seen else turned_BHQE
