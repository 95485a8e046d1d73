"""Load the native library and call it: one record of 8-byte numbers a call, through a plain C interface.

`ctypes` releases the interpreter while the kernel runs, needs no headers of any Python, and costs about a microsecond.
PyTorch is imported before the library is loaded, so that both share its OpenMP runtime and its threads.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import torch

from headwise.errors import BackendError

__all__ = ["FIELDS", "Library", "load"]

_VIEW = ("data", "batch", "head", "row")
_SPREAD = (*_VIEW, "column")
_PLACED: dict[str, tuple[str, ...]] = dict.fromkeys(("query", "key", "value", "output", "output_grad"), _VIEW)
_PLACED |= dict.fromkeys(("query_grad", "key_grad", "value_grad"), _VIEW)
_PLACED |= dict.fromkeys(("dense", "bias", "bias_grad"), _SPREAD)
_REALS = {"scale", "kept_share"}
_NAMES = (
    *("bytes", "half", "threads", "batch", "heads", "groups", "queries", "keys", "width", "value_width", "scale"),
    *("query", "key", "value", "output", "lse", "left", "right", "start_causal", "key_length", "query_length"),
    *("key_start", "key_segment", "query_segment", "segments", "dense", "bias", "bias_half", "slopes", "relative"),
    *("relatives", "least", "kept_share", "seed", "entropy", "peak", "peak_key", "position", "distance", "sink"),
    *("diagonal", "previous", "next", "local", "received", "map", "map_count", "link_weight", "link_key"),
    *("sinks", "reach", "cells", "links", "output_grad", "lse_grad", "entropy_grad"),
    *("query_grad", "key_grad", "value_grad", "bias_grad", "bias_grad_wide", "slopes_grad", "relative_grad"),
)
FIELDS: dict[str, int] = {}
"""Where each field of the record begins: the names of `Call` in call.hpp, a tensor by its data."""

_kinds = ""
for _name in _NAMES:
    FIELDS[_name] = len(_kinds)
    _kinds += "d" if _name in _REALS else "q" * len(_PLACED.get(_name, _name[:1]))
_RECORD = struct.Struct(f"={_kinds}")


class Library:
    """Hold the loaded library, or the reason why there is none."""

    def __init__(self, path: Path) -> None:
        """Load it and choose the instruction set: the best of this machine, or the one in `HEADWISE_NATIVE_ISA`."""
        self.missing: str | None = None
        self.isa = ""
        self._forked = False
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as problem:
            self.missing = (
                f"the native kernel is not built ({problem}); reinstall headwise where there is a C++ compiler"
            )
            return
        self._library.headwise_chosen.restype = ctypes.c_char_p
        for function in (self._library.headwise_forward, self._library.headwise_backward):
            function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
        self.choose(os.environ.get("HEADWISE_NATIVE_ISA", ""))
        # The pool of an OpenMP runtime does not survive a fork: a child that used it would hang.
        os.register_at_fork(after_in_child=self._fork)

    def choose(self, isa: str) -> None:
        """Compute with this instruction set from now on; an empty name means the best."""
        if not self._library.headwise_choose(isa.encode()):
            raise BackendError(
                f"`HEADWISE_NATIVE_ISA` must name an instruction set that this machine has; got {isa!r}. "
                "Leave it out for the best, or take amx, avx512_bf16, avx512, avx2 or portable."
            )
        self.isa = self._library.headwise_chosen().decode()

    def _fork(self) -> None:
        self._forked = True

    @property
    def threads(self) -> int:
        """Give the number of threads of a call: PyTorch's, and one in a forked child."""
        return 1 if self._forked else min(torch.get_num_threads(), _MOST_THREADS)

    def record(self) -> list[int | float]:
        """Begin the record of a call, in which nothing is set."""
        return _EMPTY.copy()

    def forward(self, record: list[int | float]) -> bool:
        """Run the forward pass that a record describes, unless its lengths leave the tensors; tell which."""
        fault: bytes | None = self._library.headwise_forward(_RECORD.pack(*record))
        if fault == b"a length leaves the tensors":
            return False
        self._check(fault)
        return True

    def backward(self, record: list[int | float]) -> None:
        """Run the backward pass that a record describes."""
        self._check(self._library.headwise_backward(_RECORD.pack(*record)))

    @staticmethod
    def _check(fault: bytes | None) -> None:
        if fault == b"memory":
            raise MemoryError("the native kernel found no working memory")
        assert fault is None, f"the native kernel was called wrongly: {fault!r}"


_MOST_THREADS = 1024
"""As many as the library takes."""

_EMPTY: list[int | float] = [0.0 if kind == "d" else 0 for kind in _kinds]
_EMPTY[FIELDS["bytes"]] = _RECORD.size
_EMPTY[FIELDS["left"]] = _EMPTY[FIELDS["right"]] = -1  # no limit


def load() -> Library:
    """Load the library that lies beside this file."""
    return Library(Path(__file__).with_name("_native.so"))
