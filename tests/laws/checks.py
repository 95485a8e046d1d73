"""Run a call through `headwise.attend`, and hold what comes back against the definitions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import reduce
from operator import and_
from typing import Any

import torch
from torch import Tensor

import headwise
from headwise import Alibi, Dropout, Mask, RelativeBias, Seen, Statistics
from tests.laws import dense
from tests.laws.dense import Buckets, Call, Causal, Dense, Lengths, Segments, Slopes, Window

INDICES = ("peak_key", "link_key", "map_count")


def mask_of(call: Call) -> Mask | None:
    """Build the call's mask, joined by `&`."""
    built = []
    for part in call.parts:
        match part:
            case Causal(align):
                built.append(Mask.causal(align=align))
            case Window(left, right):
                built.append(Mask.window(left, right))
            case Lengths(keys_B, queries_B, start_B):
                built.append(Mask.lengths(keys_B, queries_B, key_start=start_B))
            case Segments(ids_BK, query_ids_BQ):
                built.append(Mask.segments(ids_BK, query_ids_BQ))
            case Dense(allowed_BHQK):
                built.append(Mask.dense(allowed_BHQK))
    return reduce(and_, built) if built else None


def bias_of(call: Call) -> Tensor | Alibi | RelativeBias | None:
    match call.bias:
        case Slopes(slopes_H):
            return Alibi(slopes_H)
        case Buckets(table_NH, bidirectional, max_distance):
            return RelativeBias(table_NH, bidirectional, max_distance)
    return call.bias


def settings_of(call: Call) -> dict[str, Any]:
    """Give the arguments of `attend` that are neither tensors nor statistics."""
    dropout = Dropout(call.rate, torch.tensor(call.seed)) if call.rate else 0.0
    return {"bias": bias_of(call), "scale": call.scale, "dropout": dropout}


def tensors_of(call: Call) -> tuple[Tensor, Tensor, Tensor, Mask | None]:
    return call.query_BHQD, call.key_BGKD, call.value_BGKE, mask_of(call)


def by_name(seen: Seen) -> dict[str, Tensor]:
    """Give what was seen by names without axes."""
    held = ((field.name.rpartition("_")[0], getattr(seen, field.name)) for field in fields(seen))
    return {name: tensor for name, tensor in held if tensor is not None}


@contextmanager
def spoiled_memory() -> Iterator[None]:
    """Fill fresh memory with NaN, so that what is never written cannot pass for a zero."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@spoiled_memory()
def run(call: Call, backend: str, given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Compute a call, and its gradients where some are given, as `dense.solve` does."""
    if given is None:
        output, seen = observed(call, backend)
        return {"output": output} | by_name(seen)
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in call.leaves.items()}
    output, seen = observed(call.with_leaves(**leaves), backend)
    found = {"output": output} | by_name(seen)
    results, gradients = [found[name] for name in given], list(given.values())
    arrived = torch.autograd.grad(results, list(leaves.values()), gradients, allow_unused=True, materialize_grads=True)
    found = {name: tensor.detach() for name, tensor in found.items()}
    return found | {f"grad_{name}": gradient for name, gradient in zip(leaves, arrived, strict=True)}


def observed(call: Call, backend: str) -> tuple[Tensor, Seen]:
    settings = settings_of(call) | {"statistics": Statistics(**call.asked)}
    return headwise.attend(*tensors_of(call), **settings, backend=taking(call, backend))


def taking(call: Call, backend: str) -> str:
    """Name the backend that takes a call: a law holds, or the case is refused; then the next backend has it."""
    if backend != "native":
        return backend
    told = {name: value for name, value in settings_of(call).items() if name != "scale"}
    reason = dict(headwise.explain(*tensors_of(call), **told).refused).get("native")
    assert reason is None or re.match("it (computes|takes|adds)", reason), reason
    return backend if reason is None else "fused"


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def gap(found: Tensor, wanted: Tensor) -> float:
    """Measure the largest difference; infinities must agree, and what is NaN is infinitely wrong."""
    assert found.shape == wanted.shape, f"shape {tuple(found.shape)}, wanted {tuple(wanted.shape)}"
    found, wanted = found.double(), wanted.double()
    difference = torch.where(found == wanted, 0, found - wanted)
    return largest(difference.nan_to_num(nan=torch.inf))


def peers(call: Call, given: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Compute a call as PyTorch's users do in its own type: softmax(QK)V written out, and the fused operation.

    One rounding error is a matter of luck, near 0 above all: the formula is written in four ways, in three orders.
    """
    for shift, scaled in itertools.product(range(3), dense.SCALED):
        yield written_peer(call, given, shift, scaled)
    if call.rate == 0 and set(given) == {"output"} and min(call.sizes):
        for shift in range(3):
            yield fused_peer(call, given, shift)


def written_peer(call: Call, given: Mapping[str, Tensor], shift: int, scaled: str) -> dict[str, Tensor]:
    """Compute with the widths of keys and of values turned round, and turn the results back."""
    turned, given = rolled(call, given, shift)
    return rolled_back(dense.solve(turned, given, call.query_BHQD.dtype, scaled), shift)


def fused_peer(call: Call, given: Mapping[str, Tensor], shift: int) -> dict[str, Tensor]:
    """Compute with PyTorch's fused operation, widths turned round; a row that sees nothing is shown all and dropped."""
    call, given = rolled(call, given, shift)
    visible_BHQK = dense.visible(call)
    live_BHQ1 = visible_BHQK.any(-1, keepdim=True)
    leaves = {name: call.leaves[name].detach().clone().requires_grad_() for name in ("query", "key", "value")}
    added_BHQK = dense.added(call, call.query_BHQD.dtype).detach()
    added_BHQK = torch.where(live_BHQ1, torch.where(visible_BHQK, added_BHQK, -torch.inf), 0)
    settings = {"attn_mask": added_BHQK, "scale": call.scale, "enable_gqa": True}
    output = torch.nn.functional.scaled_dot_product_attention(*leaves.values(), **settings) * live_BHQ1
    found = {"output": output.detach()} | dense.slopes((output * given["output"]).sum(), leaves)
    return rolled_back(found, shift)


def rolled(call: Call, given: Mapping[str, Tensor], shift: int) -> tuple[Call, dict[str, Tensor]]:
    leaves = {name: call.leaves[name].roll(shift, -1) for name in ("query", "key", "value")}
    turned = {name: gradient.roll(shift, -1) if name == "output" else gradient for name, gradient in given.items()}
    return call.with_leaves(**leaves), turned


def rolled_back(found: Mapping[str, Tensor], shift: int) -> dict[str, Tensor]:
    turned = ("output", "grad_query", "grad_key", "grad_value")
    return {name: tensor.roll(-shift, -1) if name in turned else tensor for name, tensor in found.items()}


class Judge:
    """Hold everything against law 1: the error is at most 2 x the peer's + 4 eps of the largest number.

    In float64 the peer is the reference itself and its error unknown: there the bound is 1e-12, as in law 12. In
    every type that is what the reference itself is good for, so no error below it can be measured.
    """

    def __init__(self, call: Call, given: Mapping[str, Tensor] | None = None) -> None:
        """Compute the reference, and the peers when they are needed."""
        self.dtype = call.query_BHQD.dtype
        self.wanted = dense.solve(call, given or {})
        self._peers, self._asked = [], peers(call, given or {}) if self.dtype != torch.float64 else iter(())

    def bounds(self, name: str) -> Iterator[float]:
        """Give what law 1 allows, peer by peer."""
        wanted = self.wanted[name]
        size = largest(torch.where(wanted.isfinite(), wanted, 0))
        unknown = 1e-12 * (1 + size)
        yield unknown
        for peer in self._one_by_one():
            if name in peer:
                yield 2 * gap(peer[name], wanted) + 4 * torch.finfo(self.dtype).eps * size + unknown

    def _one_by_one(self) -> Iterator[dict[str, Tensor]]:
        yield from self._peers
        for peer in self._asked:
            self._peers.append(peer)
            yield peer

    def check(self, name: str, found: Tensor, wanted: Tensor | None = None, slack: float = 0.0) -> None:
        """Assert that what was found under a name is right; `wanted` where that is a part of it."""
        error, bound = gap(found, self.wanted[name] if wanted is None else wanted), 0.0
        for allowed in self.bounds(name):
            bound = max(bound, allowed + slack)
            if error <= bound:
                return
        raise AssertionError(f"`{name}` is off by {error:.3g}; law 1 allows {bound:.3g}")

    def check_all(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor] | None = None) -> None:
        """Assert that everything found is right; `wanted` where that is a part of the call."""
        wanted = self.wanted if wanted is None else wanted
        for name in set(found) - {*INDICES}:
            self.check(name, found[name], wanted[name])
        if "map_count" in found:
            assert torch.equal(found["map_count"], wanted["map_count"]), "live queries of the map"
        for key, weight in (("peak_key", "peak"), ("link_key", "link_weight")):
            if key in found:
                self.check_named(found[key], found[weight], wanted["weights"])

    def check_named(self, key: Tensor, weight: Tensor, weights_BHQK: Tensor) -> None:
        """Assert that the keys named have the weights told, each named once, and -1 where there is none."""
        key_BHQN, weight_BHQN = (x if x.dim() == 4 else x[..., None] for x in (key, weight))
        assert key_BHQN.dtype == torch.int64
        if key_BHQN.numel() == 0:
            return
        assert -1 <= key_BHQN.min() <= key_BHQN.max() < weights_BHQK.shape[-1]
        none_BHQN = key_BHQN == -1
        assert not weight_BHQN[none_BHQN].any(), "no key, yet a weight"
        ordered = key_BHQN.sort(-1).values
        assert not ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any(), "a key is named twice"
        if weights_BHQK.shape[-1]:
            named_BHQN = weights_BHQK.gather(-1, key_BHQN.clamp(min=0)).masked_fill(none_BHQN, 0)
            assert (named_BHQN[~none_BHQN] > 0).all(), "a hidden key is named"
            self.check("weights", weight_BHQN, named_BHQN)


def assert_complete(call: Call, found: Mapping[str, Tensor]) -> None:
    """Assert that everything asked was found, and nothing else."""
    named = {"peak": {"peak", "peak_key"}, "map": {"map", "map_count"}, "links": {"link_weight", "link_key"}}
    asked = [named.get(name, {name}) for name, value in call.asked.items() if value or (name == "local" and value == 0)]
    assert {name for name in found if not name.startswith("grad_")} == {"output", "lse"}.union(*asked)


def assert_law_1(call: Call, found: Mapping[str, Tensor], given: Mapping[str, Tensor] | None = None) -> None:
    """Assert that everything found lies within law 1 of the definitions."""
    Judge(call, given).check_all(found)
