"""Laws 6, 9 and 11: what must add up does, within a call and over the parts of a batch."""

import math
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headwise
from headwise import Scored
from tests.laws import dense
from tests.laws.cases import BACKENDS, DTYPES, TILINGS, arriving, calls, tiled
from tests.laws.checks import Judge, assert_law_1, bias_of, gap, mask_of, observed, run
from tests.laws.dense import Call, Causal, Lengths

tilings = st.sampled_from(list(TILINGS))
floats = st.sampled_from(DTYPES)
backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
@given(call=floats.flatmap(calls), tiling=tilings)
@settings(max_examples=80)
def test_the_weights_of_a_row_sum_to_one(backend, call, tiling):
    call = call.but(rate=0.0, value_BGKE=torch.ones_like(call.value_BGKE), asked=call.asked | {"entropy": True})
    visible_BHQK = dense.visible(call)
    live_BHQ, visible_BHQ = visible_BHQK.any(-1), visible_BHQK.sum(-1)
    with tiled(tiling):
        found = run(call, backend)
    exact = 64 * torch.finfo(found["lse"].dtype).eps
    assert gap(found["output"], live_BHQ[..., None].expand_as(found["output"]).double()) <= max(
        exact, torch.finfo(call.query_BHQD.dtype).eps
    )
    assert (found["entropy"] >= 0).all()
    assert (found["entropy"] <= visible_BHQ.clamp(min=1).log() + exact * 8).all()
    assert (found["peak"] <= 1).all()
    assert (found["peak"] * visible_BHQ >= live_BHQ.double() - exact).all()
    # A number is summed for each query, so that the allowance grows with the queries.
    live = live_BHQ.sum(-1).double()
    assert gap(found["received"].sum(-1), live) <= exact * (1 + live.amax().item())
    assert gap(found["map"].sum((-1, -2)), live) <= exact * (1 + live.amax().item())
    assert torch.equal(found["map_count"].sum(-1), live_BHQ.sum(-1))
    masses = [found[name] for name in ("diagonal", "previous", "next", "sink", "local")]
    assert all(((mass >= 0) & (mass <= 1 + exact)).all() for mass in masses)
    assert (found["diagonal"] <= found["local"] + exact).all()
    assert (found["link_weight"].diff(dim=-1) <= 0).all()
    assert torch.equal(found["link_weight"][..., 0], found["peak"])


@backends
@given(call=floats.flatmap(lambda dtype: calls(dtype, bias=False)), through=st.sampled_from((("output",), ("lse",))))
@settings(max_examples=40)
def test_a_bias_that_all_keys_share_moves_the_log_sum_exp_alone(backend, call, through):
    """Its gradient through the weights is a sum of slopes that is zero: not a rounding error of it may be left."""
    query_BHQD, given = call.query_BHQD, arriving(call, through)
    found = run(call.but(bias=query_BHQD[..., :1].contiguous()), backend, given)
    arrived = given["lse"] if "lse" in given else torch.zeros(query_BHQD.shape[:3])
    wanted = arrived.masked_fill(found["lse"] == -torch.inf, 0)[..., None].to(query_BHQD.dtype)
    if backend == "reference":
        assert gap(found["grad_bias"], wanted) <= torch.finfo(query_BHQD.dtype).eps * 8
    else:
        assert torch.equal(found["grad_bias"], wanted)


@given(call=floats.flatmap(lambda dtype: calls(dtype, dropout=False)), data=st.data())
@settings(max_examples=60)
def test_attention_weights_are_those_of_the_definition(call, data):
    queries = call.sizes[2]
    bounds = [data.draw(st.none() | st.integers(-queries - 1, queries + 1)) for _ in range(2)]
    window = data.draw(st.sampled_from((None, slice(*bounds))))
    settings_of_call = {"bias": bias_of(call), "scale": call.scale}
    tensors = call.query_BHQD, call.key_BGKD, mask_of(call)
    found_BHQK = headwise.attention_weights(*tensors, **settings_of_call, queries=window)
    assert found_BHQK.dtype == call.query_BHQD.dtype
    judge = Judge(call)
    rows = slice(None) if window is None else window
    judge.check("weights", found_BHQK, judge.wanted["weights"][:, :, rows])
    live_BHQ = dense.visible(call).any(-1)[:, :, rows]
    exact = 16 * torch.finfo(found_BHQK.dtype).eps
    assert gap(found_BHQK.sum(-1, dtype=torch.float64), live_BHQ.double()) <= exact


@given(call=calls(torch.float64, dropout=False), data=st.data())
@settings(max_examples=40)
def test_attention_weights_have_the_gradient_of_the_definition(call, data):
    queries = call.sizes[2]
    window = slice(data.draw(st.integers(0, queries)), data.draw(st.integers(0, queries)))
    gradients = []
    for way in ("definition", "headwise"):
        leaves = {n: leaf.clone().requires_grad_() for n, leaf in call.leaves.items() if n != "value"}
        mine = call.with_leaves(**leaves)
        if way == "definition":
            weights_BHQK = dense.attend(mine)["weights"][:, :, window]
        else:
            tensors = mine.query_BHQD, mine.key_BGKD, mask_of(mine)
            weights_BHQK = headwise.attention_weights(*tensors, bias=bias_of(mine), scale=call.scale, queries=window)
        generator = torch.Generator().manual_seed(1)
        total = (weights_BHQK * torch.randn(weights_BHQK.shape, generator=generator, dtype=torch.float64)).sum()
        gradients.append(dense.slopes(total, leaves))
    for name, gradient in gradients[0].items():
        assert gap(gradients[1][name], gradient) <= 1e-12 * (1 + gradient.abs().sum().item())


def with_samples(call: Call, samples: slice) -> Call:
    """Take some samples of a call whose mask is plain lengths."""
    leaves = {name: leaf[samples] for name, leaf in call.leaves.items() if name in ("query", "key", "value")}
    padding = call.parts[0]
    return call.with_leaves(**leaves).but(
        parts=(Lengths(padding.keys_B[samples], padding.queries_B[samples]), Causal())
    )


@st.composite
def padded(draw: Any) -> Any:
    """Draw a call whose samples have lengths of their own, and no other mask."""
    call = draw(calls(torch.float64, most=0, dropout=False))
    samples, _, queries, keys = call.sizes
    keys_B, queries_B = (torch.tensor(draw(listed(size, samples))) for size in (keys, queries))
    parts = Lengths(keys_B, queries_B), Causal()
    return call.but(parts=parts, bias=None, asked=call.asked | {"entropy": True})


def listed(most: int, how_many: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, most), min_size=how_many, max_size=how_many)


@backends
@given(call=padded(), edges=st.lists(st.integers(0, 3), max_size=2), tiling=tilings)
@settings(max_examples=50)
def test_the_tables_of_parts_add_up_to_that_of_the_whole(backend, call, edges, tiling):
    edges = sorted({0, call.sizes[0], *(min(edge, call.sizes[0]) for edge in edges)})
    with tiled(tiling):
        whole = observed(call, backend)[1].per_head()
        tables = [observed(with_samples(call, slice(a, z)), backend)[1].per_head() for a, z in pairwise(edges)]
    assert set(whole) >= {"lse", "entropy", "peak", "position", "distance", "sink", "diagonal", "local", "map"}
    live_BHQ = dense.visible(call).any(-1)
    for name, scored in whole.items():
        merged = reduce(add, (table[name] for table in tables))
        assert torch.equal(merged.count, scored.count)
        assert gap(merged.sum, scored.sum) <= 1e-12 * (1 + scored.sum.abs().sum().item())
        assert not scored.sum.requires_grad
        if name != "map":
            assert torch.equal(scored.count, live_BHQ.sum((0, 2)))
            wanted = dense.attend(call)[name].masked_fill(~live_BHQ, 0).sum((0, 2))
            assert gap(scored.sum, wanted) <= 1e-12 * (1 + wanted.abs().sum().item())


@backends
@given(call=padded(), tiling=tilings)
@settings(max_examples=40)
def test_micro_batches_of_unequal_length_equal_one_batch(backend, call, tiling):
    given = arriving(call, ("output",))["output"]

    def scored(part: Call, gradient: torch.Tensor) -> Scored:
        output, seen = observed(part, backend)
        live_BHQ = seen.live_BHQ
        return Scored((output * gradient).sum() + seen.entropy_BHQ.sum(), live_BHQ.sum())

    found = []
    for batches in ([slice(None)], [slice(b, b + 1) for b in range(call.sizes[0])]):
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in call.leaves.items()}
        mine = call.with_leaves(**leaves)
        with tiled(tiling):
            parts = [scored(shorter(with_samples(mine, batch)), cut_to(given[batch], mine, batch)) for batch in batches]
            loss = reduce(add, parts)
            found.append((loss.mean, dense.slopes(loss.mean, leaves), loss.count))
    (loss, gradients, count), (loss_of_parts, gradients_of_parts, count_of_parts) = found
    assert count == count_of_parts == dense.visible(call).any(-1).sum()
    assert math.isclose(loss.item(), loss_of_parts.item(), rel_tol=1e-12, abs_tol=1e-12)
    for name, gradient in gradients.items():
        assert gap(gradients_of_parts[name], gradient) <= 1e-12 * (1 + gradient.abs().sum().item())


def reach(call: Call) -> tuple[int, int]:
    """Find the longest valid run of queries and of keys."""
    padding = call.parts[0]
    return int(padding.queries_B.max()), int(padding.keys_B.max())


def shorter(call: Call) -> Call:
    """Cut a batch to its longest sample, as a loader does."""
    queries, keys = reach(call)
    leaves = {"query": call.query_BHQD[:, :, :queries]}
    leaves |= {name: call.leaves[name][:, :, :keys] for name in ("key", "value")}
    return call.with_leaves(**leaves)


def cut_to(given: torch.Tensor, call: Call, batch: slice) -> torch.Tensor:
    return given[:, :, : reach(with_samples(call, batch))[0]]


def test_what_is_not_counted_has_mean_zero():
    nothing = Scored(torch.zeros(2), torch.tensor([0, 3]))
    assert torch.equal(nothing.mean, torch.zeros(2))
    assert torch.equal(
        (nothing + Scored(torch.tensor([3.0, 6.0]), torch.tensor([2, 3]))).mean, torch.tensor([1.5, 1.0])
    )


@backends
def test_law_1_sees_a_wrong_number(backend):
    tensors = torch.randn(3, 2, 3, 5, 7).unbind()
    call = Call(*tensors, asked={"entropy": True, "peak": True})
    found = run(call, backend)
    assert_law_1(call, found)
    for name in ("output", "lse", "entropy", "peak"):
        wrong = found | {name: found[name] * (1 + 1e-4)}
        with pytest.raises(AssertionError, match=f"`{name}` is off by"):
            assert_law_1(call, wrong)
    with pytest.raises(AssertionError, match=r"another weight|is off"):
        assert_law_1(call, found | {"peak_key": (found["peak_key"] + 1) % 5})
