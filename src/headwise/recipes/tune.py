"""Measure which backend is the fastest on this machine, and keep the answer for `attend`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from headwise.errors import ConfigError
from headwise.functional import attend
from headwise.kernels import kind_of, rule_file, write_rule

__all__ = ["KEYS", "tune"]

KEYS = (32, 128, 512, 2048)
"""Numbers of keys at which calls are timed; what is measured at one holds up to the next."""
_LEAST = 2048
"""Tokens, of 8 heads of width 64, that make a call long enough to time."""
_BACKENDS = ("native", "fused")
_ROUNDS = 7
_MARGIN = 0.95
"""The preferred backend stays unless another takes less than this share of its time: noise must not decide."""


def tune(keys: Sequence[int] = KEYS, out: Path | None = None) -> Iterator[str]:
    """Time the backends side by side, yield a line a kind of call, and write the rule that `attend` follows.

    The rule takes effect at once, in this process and in those that begin later. Delete the file to undo it.

    Args:
        keys: at which numbers of keys.
        out: another file than that of the cache; `HEADWISE_CHOICE` makes `attend` follow it.

    Raises:
        ConfigError: when no number of keys is given, or one below 1.
        BackendError: where the native kernel is missing: there is nothing to choose from.
    """
    if not keys or min(keys) < 1:
        raise ConfigError(f"`keys` must be numbers from 1; got {list(keys)}. {', '.join(map(str, KEYS))} are usual.")
    rule: dict[str, dict[int, str]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for training in (False, True):
            kind = kind_of(dtype, training)
            for count in sorted(keys):
                took = _times(torch.randn(max(1, _LEAST // count), 8, count, 64, dtype=dtype), training)
                preferred, other = _BACKENDS
                fastest = other if took[other] < _MARGIN * took[preferred] else preferred
                rule.setdefault(kind, {})[count] = fastest
                told = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in took.items())
                yield f"{kind}, {count} keys: {fastest} ({told})"
    path = out or rule_file()
    write_rule(rule, path)
    yield f"written: {path}"
    if path != rule_file():
        yield f"attention follows it where HEADWISE_CHOICE={path} is set"


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
