"""The laws for the GPU kernel: on a GPU where there is one, else in Triton's interpreter, which is slow."""

import importlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.kernels import tritonic
from tests.conftest import slow
from tests.laws import dense
from tests.laws.cases import THROUGH, arriving, calls
from tests.laws.checks import INDICES, Judge, assert_complete, assert_law_1, gap, largest, run
from tests.laws.dense import Call, Causal, Dense, Lengths, Segments
from tests.laws.test_equal_calls import alone
from tests.laws.test_hiding import PER_QUERY, blind, spoiled, unseen

pytestmark = pytest.mark.skipif(tritonic.PASSES is None, reason="Triton is not installed")

few = partial(calls, few=True)
FLOATS = (torch.float32, torch.float16)
through = st.sampled_from(THROUGH)
examples = pytest.mark.parametrize(
    "examples", [pytest.param(4, id="few"), pytest.param(60, id="many", marks=pytest.mark.fuzz)]
)


@pytest.fixture(autouse=True, scope="module")
def _interpreted() -> Iterator[None]:
    """Ask for the interpreter, and for tiles so small that calls of a few tokens have several."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {"TRITON_INTERPRET": "1"}))
        stack.enter_context(patch.dict(tritonic.PASSES.TILES, {"rows": 16, "keys": 16}))
        if tritonic.PASSES.INTERPRETED:
            stack.enter_context(calling_directly())
        yield


def calling_directly() -> AbstractContextManager[object]:
    """Spare the interpreter's making its language anew for each of our functions, which takes half of its time."""
    kind = importlib.import_module("triton.runtime.interpreter").InterpretedFunction
    slowly = kind.__call__

    def call(function: Any, *given: Any, **named: Any) -> Any:
        ours = function.fn.__module__.startswith("headwise")
        return function.rewrite()(*given, **named) if ours else slowly(function, *given, **named)

    return patch.object(kind, "__call__", call)


def check(law: Callable[..., None], examples: int, **drawn: st.SearchStrategy) -> None:
    """Try a law on so many examples."""
    settings(max_examples=examples)(given(**drawn)(law))()


@examples
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_it_equals_the_reference(dtype, examples):
    def law(call: Call, through: tuple[str, ...]) -> None:
        given = arriving(call, through)
        found = run(call, "triton", given)
        assert_complete(call, found)
        assert_law_1(call, found, given)

    check(law, examples, call=few(dtype), through=through)


@examples
def test_what_nobody_sees_changes_nothing(examples):
    def law(call: Call, number: float, through: tuple[str, ...]) -> None:
        given = arriving(call, through)
        found = run(spoiled(call, number), "triton", given)
        for name, hidden in unseen(call).items():
            assert (found[f"grad_{name}"].masked_select(hidden) == 0).all(), name
        assert_law_1(call, found, given)

    check(law, examples, call=few(fewest=1), number=st.sampled_from((math.nan, math.inf)), through=through)


@pytest.mark.slow
@examples
def test_a_query_is_untouched_by_keys_that_it_does_not_see(examples):
    def law(call: Call, names: tuple[str, ...], seed: int) -> None:
        spoiled_BK = torch.rand(call.sizes[0], call.sizes[3], generator=torch.Generator().manual_seed(seed)) < 0.3
        leaves = {name: call.leaves[name].masked_fill(spoiled_BK[:, None, :, None], math.nan) for name in names}
        touched_BHQ = (dense.visible(call) & spoiled_BK[:, None, None]).any(-1)
        found, judge = run(call.with_leaves(**leaves), "triton"), Judge(call)
        for name in PER_QUERY & set(found):
            touched = touched_BHQ.view(*touched_BHQ.shape, *[1] * (found[name].dim() - 3))
            judge.check(name, torch.where(touched, judge.wanted[name], found[name]))

    names = st.sampled_from((("key",), ("value",), ("key", "value")))
    check(law, examples, call=few(fewest=1, least=1), names=names, seed=st.integers(0, 99))


@pytest.mark.parametrize("way", ["lengths", "queries", "segments", "dense", "window", "bias"])
def test_a_query_that_sees_nothing_yields_zeros(way):
    torch.manual_seed(1)
    call = blind(Call(*torch.randn(3, 1, 2, 5, 7), asked={"entropy": True, "peak": True, "received": True}), way)
    found = run(call, "triton", arriving(call, ("output", "lse", "entropy")))
    assert (found.pop("lse") == -torch.inf).all()
    assert (found.pop("peak_key") == -1).all()
    for name, tensor in found.items():
        assert (tensor == 0).all(), name


SEVERAL_TILES = {
    "causal": (Causal(),),
    "window": (dense.Window(20, 3),),
    "lengths": (Lengths(torch.tensor([37]), torch.tensor([31]), torch.tensor([9])), Causal()),
    "segments": (Segments(torch.arange(53)[None] // 17, torch.arange(41)[None] // 13),),
    "dense": (Dense(torch.rand(1, 1, 41, 53, generator=torch.Generator().manual_seed(0)) < 0.5),),
    "none": (),
}


@pytest.mark.parametrize("kind", ["lengths", *slow(*(kind for kind in SEVERAL_TILES if kind != "lengths"))])
def test_several_tiles_equal_the_reference(kind):
    torch.manual_seed(2)
    query, key, value = torch.randn(1, 2, 41, 19), torch.randn(1, 1, 53, 19), torch.randn(1, 1, 53, 5)
    asked = {"entropy": True, "peak": True, "position": True, "distance": True, "sink": 2, "local": 2}
    asked |= {"diagonal": True, "previous": True, "next": True, "received": True, "map": 2, "links": 3}
    call = Call(query, key, value, SEVERAL_TILES[kind], rate=0.3, seed=7, asked=asked)
    given = arriving(call, ("output", "lse", "entropy"))
    assert_law_1(call, run(call, "triton", given), given)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_statistics_of_half_precision_are_exact(dtype):
    def law(call: Call) -> None:
        found, wanted = run(call, "triton"), dense.attend(call)
        for name in set(found) - {"output", *INDICES}:
            size = largest(torch.where(wanted[name].isfinite(), wanted[name], 0))
            assert gap(found[name], wanted[name]) <= 1e-4 * size + 1e-6, name

    check(law, 30, call=few(dtype, dropout=False))


@pytest.mark.slow
def test_padding_changes_no_result():
    def law(call: Call, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        samples, _, queries, keys = call.sizes
        lengths = [torch.randint(0, n + 1, (samples,), generator=generator) for n in (keys, queries)]
        call = call.but(parts=(Lengths(*lengths), Causal()), bias=None, asked={"entropy": True})
        found, judge = run(call, "triton"), Judge(call)
        for b in range(samples):
            wanted = dense.attend(alone(call, b))
            valid = int(lengths[1][b])
            judge.check_all({n: x[b : b + 1, :, :valid] for n, x in found.items()}, wanted)

    check(law, 30, call=few(most=0, dropout=False), seed=st.integers(0, 99))


def test_it_repeats_bit_for_bit():
    torch.manual_seed(3)
    tensors = torch.randn(1, 4, 37, 16), torch.randn(1, 2, 37, 16), torch.randn(1, 2, 37, 16)
    call = Call(*tensors, (Causal(),), bias=torch.randn(1, 1, 1, 37), asked={"received": True, "map": 2})
    given = arriving(call, ("output",))
    first, again = run(call, "triton", given), run(call, "triton", given)
    assert all(torch.equal(first[name], again[name]) for name in first)
