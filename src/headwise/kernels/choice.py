"""Choose the backend of a call, in one place, and say why.

`auto` takes the first of `preferred` that can.
A backend is a module with a `NAME`, `refusal(problem, asked)`, which gives the reason why it cannot take a call (or
`None`), and `describe(problem)`, which says how it computes one. Those that run inside the registered operation have
`forward` and `backward` as well; `reference` is differentiated by PyTorch instead.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from headwise.contracts.problem import Problem
from headwise.contracts.statistics import NOTHING, Statistics
from headwise.errors import BackendError
from headwise.kernels import fused, native, reference, tritonic
from headwise.kernels.fused import Gradients
from headwise.kernels.rule import kind_of, measured

__all__ = [
    "BACKENDS",
    "KERNELS",
    "Backend",
    "Kernel",
    "choose",
    "named",
    "preferred",
]


class Backend(Protocol):
    """Say what every backend can tell."""

    NAME: str

    def refusal(self, problem: Problem, asked: Statistics) -> str | None:
        """Say why `auto` does not take this backend for a call; `None` when it can."""

    def describe(self, problem: Problem) -> str:
        """Say how it computes a call, and why so."""


class Kernel(Backend, Protocol):
    """Say what a backend inside the registered operation does."""

    def forward(self, problem: Problem, asked: Statistics) -> tuple[Tensor, ...]:
        """Check lengths; compute output, log-sum-exp and the statistics asked for, in the order of `measure.names`."""

    def backward(
        self, problem: Problem, given: Gradients, saved: tuple[Tensor, Tensor, Tensor | None], needs: tuple[bool, ...]
    ) -> dict[str, Tensor]:
        """Compute gradients by the names of the problem's fields."""


KERNELS: dict[str, Kernel] = {"native": native, "fused": fused, "triton": tritonic}
"""Backends of the operation, the preferred on a CPU first."""
BACKENDS: dict[str, Backend] = {**KERNELS, "reference": reference}
"""All backends by name."""


def named(name: str) -> Any:
    """Find a backend by name, or raise `BackendError`."""
    if name not in BACKENDS:
        known = ", ".join(f'"{known}"' for known in ("auto", *BACKENDS))
        raise BackendError(f"`backend` must be one of {known}; got {name!r}. Leave it out for the fastest.")
    return BACKENDS[name]


def choose(problem: Problem, asked: Statistics, backend: str = "auto", *, training: bool = False) -> Kernel:
    """Choose the kernel of a call.

    Raises:
        BackendError: with the reason against each, when none can take the call.
    """
    refused: dict[str, str] = {}
    for kernel in preferred(problem, asked, training=training)[0] if backend == "auto" else [named(backend)]:
        reason = kernel.refusal(problem, asked)
        if reason is None:
            return kernel
        refused[kernel.NAME] = reason
    told = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    raise BackendError(f'a backend must be able to take the call; got {told}. backend="reference" takes every call.')


def preferred(problem: Problem, asked: Statistics, *, training: bool = False) -> tuple[list[Kernel], str]:
    """List the kernels, the fastest first, and say which rule puts it there.

    The rule of `headwise tune` is measured without mask, bias, dropout and statistics and speaks for such calls only:
    elsewhere the native kernel spares work that the others have to do.
    """
    if problem.query_BHQD.device.type == "cuda":
        return [tritonic, fused, native], "comes first on a GPU"
    first = None
    rule = measured()
    if rule and problem.plain and asked == NOTHING:
        rows = rule.get(kind_of(problem.query_BHQD.dtype, training or problem.trained), {})
        first = rows.get(max((keys for keys in rows if keys <= problem.key_BGKD.shape[2]), default=0))
    if first is None:
        return list(KERNELS.values()), "comes first"
    others = [kernel for name, kernel in KERNELS.items() if name != first]
    return [KERNELS[first], *others], "was measured faster here by `headwise tune`"
