"""Memory grows with the length and not with its square: no tensor of the fused backend holds the weights of a head."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import headwise
from headwise import Alibi, Mask, RelativeBias, Statistics
from tests.conftest import slow

LENGTH, SAMPLES, HEADS, WIDTH = 4096, 2, 1, 8
ALL = Statistics(True, True, True, True, True, 4, True, True, True, 8, True, 64, 4)
ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class Largest(TorchDispatchMode):
    """Remember the largest tensor that any operation makes, those inside headwise's operations included."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "headwise":
            with self:
                return func.redispatch(ON_CPU, *args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        made = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.bytes = max([self.bytes, *made])
        return result


def largest_of(call: Any) -> int:
    """Give the bytes of the largest tensor that a call makes."""
    with Largest() as seen:
        call()
    return seen.bytes


LENGTHS = torch.tensor([LENGTH, LENGTH // 3])
CALLS: dict[str, Any] = {
    "plain": dict,
    "causal": lambda: {"mask": Mask.causal()},
    "window": lambda: {"mask": Mask.window(500, 20)},
    "lengths": lambda: {"mask": Mask.causal() & Mask.lengths(LENGTHS, key_start=LENGTH - LENGTHS)},
    "segments": lambda: {"mask": Mask.segments(torch.arange(LENGTH).expand(SAMPLES, -1) // 1000)},
    "alibi": lambda: {"bias": Alibi(torch.rand(HEADS).requires_grad_())},
    "relative": lambda: {"bias": RelativeBias(torch.randn(32, HEADS).requires_grad_())},
    "dropout": lambda: {"dropout": 0.1},
}


def run(settings: dict[str, Any], dtype: torch.dtype, backend: str = "fused", length: int = LENGTH) -> None:
    """Compute a call forward and backward; in half precision through the output alone, which has a way of its own."""
    leaves = [torch.randn(SAMPLES, HEADS, length, WIDTH, dtype=dtype, requires_grad=True) for _ in range(3)]
    output, seen = headwise.attend(*leaves, **settings, statistics=ALL, backend=backend)
    total = output.float().sum()
    (total if dtype == torch.bfloat16 else total + seen.entropy_BHQ.sum()).backward()


SLOW = ("segments", "alibi", "relative", "dropout")


@pytest.mark.parametrize("name", [*[name for name in CALLS if name not in SLOW], *slow(*SLOW)])
def test_no_tensor_holds_the_weights_of_a_head(name):
    largest = largest_of(lambda: run(CALLS[name](), torch.float32))
    assert largest >= SAMPLES * HEADS * LENGTH * WIDTH * 4, "nothing was seen"
    assert largest <= LENGTH * LENGTH * 4 // 8, f"{largest} bytes at once"


@pytest.mark.parametrize("name", ["plain", "causal", "lengths"])
def test_no_tensor_holds_the_weights_of_a_head_in_half_precision(name):
    largest = largest_of(lambda: run(CALLS[name](), torch.bfloat16))
    assert largest <= LENGTH * LENGTH * 4 // 8, f"{largest} bytes at once"


def test_the_reference_backend_is_seen_to_hold_them():
    length = LENGTH // 8
    held = largest_of(lambda: run({}, torch.float32, "reference", length))
    assert held >= SAMPLES * HEADS * length * length * 4
