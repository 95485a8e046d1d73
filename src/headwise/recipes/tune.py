"""Measure which backend is the fastest on this machine, and keep the answer for `attend`."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator

import torch

from headwise.contracts.files import write_whole
from headwise.functional import attend
from headwise.kernels import kind_of, measured, rule_file

__all__ = ["tune"]

_KEYS = {32: 64, 128: 8, 512: 2, 2048: 1}
"""Numbers of keys, and the samples of 8 heads of width 64 that make a call of each long enough to time."""
_BACKENDS = ("native", "fused")
_ROUNDS = 7
_MARGIN = 0.95
"""The preferred backend stays unless another takes less than this share of its time: noise must not decide."""


def tune() -> Iterator[str]:
    """Time the backends side by side, yield a line a kind of call, and write the rule that `attend` follows.

    The rule takes effect at once, in this process and in those that begin later. Delete the file to undo it.
    """
    rule: dict[str, dict[str, str]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for training in (False, True):
            rows = rule.setdefault(kind_of(dtype, training), {})
            for keys, samples in _KEYS.items():
                took = _times(torch.randn(samples, 8, keys, 64, dtype=dtype), training)
                preferred, other = _BACKENDS
                rows[str(keys)] = other if took[other] < _MARGIN * took[preferred] else preferred
                told = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in took.items())
                yield f"{kind_of(dtype, training)}, {keys} keys: {rows[str(keys)]} ({told})"
    path = rule_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(rule, indent=1).encode())
    measured.cache_clear()
    yield f"written: {path}"


def _times(query_BHQD: torch.Tensor, training: bool) -> dict[str, float]:
    """Take the median seconds of a call by each backend, in alternating order after two calls to warm up."""
    took: dict[str, list[float]] = {name: [] for name in _BACKENDS}
    for i in range(_ROUNDS + 2):
        for name in _BACKENDS if i % 2 == 0 else reversed(_BACKENDS):
            leaf_BHQD = query_BHQD.detach().requires_grad_(training)
            start = time.perf_counter()
            output_BHQE = attend(leaf_BHQD, leaf_BHQD, leaf_BHQD, backend=name)
            if training:
                output_BHQE.backward(query_BHQD)
            took[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[2:]) for name, seconds in took.items()}
