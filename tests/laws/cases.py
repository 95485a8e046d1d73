"""Calls of attention for the laws, drawn by hypothesis: prime sizes, every part of a mask, every bias, dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from torch import Tensor

from headwise.kernels import blocks, flash, fused
from tests.laws.dense import Buckets, Call, Causal, Dense, Lengths, Segments, Slopes, Window

BACKENDS = ("reference", "native", "fused")
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
TILINGS: dict[str, dict[Any, dict[str, int]]] = {
    "whole": {},
    "written in tiles": {blocks: {"TILE_SCORES": 40, "LEAST_ROWS": 3, "ALONE": 10_000}},
    "written alone": {blocks: {"TILE_SCORES": 60, "LEAST_ROWS": 2, "ALONE": 1}},
    "flash whole": {fused: {"FEW_KEYS": 1}, blocks: {"ALONE": 10_000}, flash: {"LEAST_KEYS": 0}},
    "flash alone": {
        fused: {"FEW_KEYS": 0},
        blocks: {"ALONE": 1, "LEAST_ROWS": 2},
        flash: {"LEAST_KEYS": 0, "MASK_NUMBERS": 30},
    },
    "flash in parts": {
        fused: {"FEW_KEYS": 0},
        blocks: {"ALONE": 20, "LEAST_ROWS": 3},
        flash: {"LEAST_KEYS": 0, "MASK_NUMBERS": 30, "COPY_NUMBERS": 50},
    },
}
"""Limits of the fused backend, so small that calls of a few tokens fall into many tiles and parts."""


@contextmanager
def tiled(tiling: str) -> Iterator[None]:
    """Compute with the limits of this name."""
    with ExitStack() as stack:
        for module, limits in TILINGS[tiling].items():
            stack.enter_context(patch.multiple(module, **limits))
        yield


SMALL = (2, 3, 5, 7, 11, 13, 17, 19)
LARGE = (131, 139, 257)


class Sizes:
    """Draw the sizes of a call, prime and all different but where an edge is drawn on purpose."""

    def __init__(self, draw: Any, *, large: bool = False, few: bool = False, least: int = 0) -> None:
        """Draw them; `large` for lengths that reach the fused operation, `few` heads, `least` for the least length."""
        self.samples = draw(st.sampled_from((2, 1) if few else (2, 1, 3)))
        self.groups = draw(st.sampled_from((1, 2) if large or few else (2, 1, 3)))
        share = draw(st.sampled_from((1, 2) if large or few else (1, 2, 5)))
        self.heads = self.groups * share
        queries, keys, self.width, value_width = draw(st.permutations(SMALL))[:4]
        edges = [n for n in (0, 1) if n >= least]
        self.queries = draw(st.sampled_from((queries, queries, queries, keys, *edges)))
        self.keys = draw(st.sampled_from((keys, keys, keys, keys, *edges)))
        if large:
            self.samples = min(self.samples, 2)
            self.queries, self.keys = draw(st.sampled_from(LARGE)), draw(st.sampled_from(LARGE))
        self.value_width = draw(st.sampled_from((self.width, value_width)))


def numbers(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def counts(generator: torch.Generator, least: int, most: int, how_many: int) -> Tensor:
    return torch.randint(least, most + 1, (how_many,), generator=generator)


@st.composite
def parts(draw: Any, sizes: Sizes, generator: torch.Generator, kinds: tuple[str, ...]) -> Any:
    """Draw one part of a mask."""
    samples, queries, keys = sizes.samples, sizes.queries, sizes.keys
    match draw(st.sampled_from(kinds)):
        case "causal":
            return Causal(draw(st.sampled_from(("end", "start"))))
        case "window":
            reach = st.sampled_from((None, 0, 1, 2, 7))
            return Window(draw(reach), draw(reach))
        case "lengths":
            of_query = counts(generator, 0, queries, samples) if draw(st.booleans()) else None
            lengths_B = counts(generator, 0, keys, samples)
            return Lengths(lengths_B.to(draw(st.sampled_from((torch.int64, torch.int32)))), of_query)
        case "left padding":
            lengths_B = counts(generator, 0, keys, samples)
            return Lengths(lengths_B, None, keys - lengths_B)
        case "segments":
            ids_BK = torch.randint(3, (samples, keys), generator=generator).sort(-1).values
            own = queries > keys or draw(st.booleans())
            return Segments(ids_BK, torch.randint(3, (samples, queries), generator=generator) if own else None)
    shape = (samples, sizes.heads, queries, keys)
    shared = [draw(st.booleans()) for _ in shape]
    shape = [1 if share else size for share, size in zip(shared, shape, strict=True)]
    return Dense(torch.rand(*shape, generator=generator) < draw(st.sampled_from((0.8, 0.3))))


@st.composite
def biases(draw: Any, sizes: Sizes, generator: torch.Generator, dtype: torch.dtype) -> Any:
    """Draw what is added to the scores."""
    match draw(st.sampled_from(("none", "tensor", "slopes", "buckets"))):
        case "none":
            return None
        case "slopes":
            return Slopes(torch.rand(sizes.heads, generator=generator, dtype=torch.float64).to(dtype))
        case "buckets":
            count, far = draw(st.sampled_from(((4, 3), (8, 13), (14, 100), (32, 128))))
            return Buckets(numbers(generator, count, sizes.heads).to(dtype), draw(st.booleans()), far)
    shape = (sizes.samples, sizes.heads, sizes.queries, sizes.keys)
    shared = [draw(st.booleans()) for _ in shape]
    bias = numbers(generator, *(1 if share else size for share, size in zip(shared, shape, strict=True))).to(dtype)
    if draw(st.booleans()):
        bias[torch.rand(bias.shape, generator=generator) < 0.2] = -torch.inf
    return bias


@st.composite
def statistics(draw: Any) -> Any:
    """Draw what is asked, nearly everything at once."""
    asked = dict.fromkeys(("peak", "position", "distance", "diagonal", "previous", "next", "received"), True)
    asked |= {
        "entropy": draw(st.booleans()),
        "sink": draw(st.sampled_from((1, 3))),
        "map": draw(st.sampled_from((2, 5))),
    }
    return asked | {"local": draw(st.sampled_from((0, 2))), "links": draw(st.sampled_from((1, 4)))}


KINDS = ("causal", "window", "lengths", "segments", "dense", "left padding")
LIMITS = {
    "fewest": 0,
    "most": 3,
    "kinds": KINDS,
    "bias": True,
    "dropout": True,
    "large": False,
    "few": False,
    "least": 0,
}


@st.composite
def calls(draw: Any, dtype: torch.dtype = torch.float32, **limits: Any) -> Any:
    """Draw a call.

    Args:
        draw: hypothesis.
        dtype: type of its tensors.
        limits: changes to `LIMITS`: how many parts its mask has, and of which kinds; whether there may be a
            bias; whether weights may be dropped; whether it is large, or of few heads; its shortest length.
    """
    limits = LIMITS | limits
    sizes = Sizes(draw, large=limits["large"], few=limits["few"], least=limits["least"])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    query_BQHD = numbers(generator, sizes.samples, sizes.queries, sizes.heads, sizes.width)
    key_BGKD = numbers(generator, sizes.samples, sizes.groups, sizes.keys, sizes.width)
    value_BGKE = numbers(generator, sizes.samples, sizes.groups, sizes.keys, sizes.value_width)
    wanted = draw(st.sampled_from(range(limits["most"], limits["fewest"] - 1, -1)))
    return Call(
        query_BQHD.transpose(1, 2).to(dtype),
        key_BGKD.to(dtype),
        value_BGKE.to(dtype),
        tuple(draw(parts(sizes, generator, limits["kinds"])) for _ in range(wanted)),
        draw(biases(sizes, generator, dtype)) if limits["bias"] else None,
        draw(st.sampled_from((None, None, None, 0.3, -1.3, 0.0))),
        draw(st.sampled_from((0.0, 0.0, 0.1, 0.6, 1.0))) if limits["dropout"] else 0.0,
        draw(st.integers(0, 2**63 - 1)),
        draw(statistics()),
    )


THROUGH = (("output",), ("output", "lse"), ("output", "lse", "entropy"), ("entropy",), ("lse",))


def arriving(call: Call, names: tuple[str, ...], seed: int = 0) -> dict[str, Tensor]:
    """Make up the gradients of some results of a call; those that it does not have are left out."""
    generator = torch.Generator().manual_seed(seed)
    working = torch.float64 if call.query_BHQD.dtype == torch.float64 else torch.float32
    samples, heads, queries, _ = call.sizes
    shapes = {"output": (samples, heads, queries, call.value_BGKE.shape[-1]), "lse": (samples, heads, queries)}
    if call.asked.get("entropy"):
        shapes["entropy"] = shapes["lse"]
    kinds = {"output": call.query_BHQD.dtype}
    return {
        name: numbers(generator, *shapes[name]).to(kinds.get(name, working)) for name in names if name in shapes
    } or arriving(call, ("output",), seed)
