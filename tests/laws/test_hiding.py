"""Laws 2 and 3: what a mask hides changes nothing, and a query that may look at nothing yields zeros."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.laws import dense
from tests.laws.cases import BACKENDS, DTYPES, THROUGH, TILINGS, arriving, calls, tiled
from tests.laws.checks import Judge, assert_law_1, run
from tests.laws.dense import Call, Causal, Dense, Lengths, Segments, Window

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

tilings = st.sampled_from(list(TILINGS))
garbage = st.sampled_from((math.nan, math.inf, -math.inf))
PER_QUERY = {"output", "lse", "entropy", "peak", "position", "distance", "sink", "local", "link_weight"}
masked = st.sampled_from((torch.float32, torch.float64, torch.bfloat16)).flatmap(calls)


def unseen(call: Call) -> dict[str, Tensor]:
    """Say of each leaf what no query may look at, or what looks at nothing."""
    visible_BHQK = dense.visible(call)
    groups = call.key_BGKD.shape[1]
    key_BGK1 = ~visible_BHQK.any(2).unflatten(1, (groups, -1)).any(2)[..., None]
    found = {"query": ~visible_BHQK.any(-1, keepdim=True), "key": key_BGK1, "value": key_BGK1}
    if isinstance(call.bias, Tensor):
        found["bias"] = ~visible_BHQK.sum_to_size(call.bias.shape).bool()
    return found


def spoiled(call: Call, number: float) -> Call:
    """Write a number over everything that is not seen; a bias of -inf is what hides and stays."""
    hidden = unseen(call)
    leaves = {name: leaf.masked_fill(hidden[name], number) for name, leaf in call.leaves.items() if name in hidden}
    if "bias" in leaves:
        leaves["bias"] = torch.where(call.bias == -torch.inf, call.bias, leaves["bias"])
    return call.with_leaves(**leaves)


@given(call=masked, number=garbage, tiling=tilings, through=st.sampled_from(THROUGH))
@settings(max_examples=120)
def test_what_nobody_sees_changes_nothing(backend, call, number, tiling, through):
    given = arriving(call, through)
    hidden = unseen(call)
    with tiled(tiling):
        found = run(spoiled(call, number), backend, given)
    for name, hidden_there in hidden.items():
        gradient = found[f"grad_{name}"]
        assert (gradient.masked_select(hidden_there) == 0).all(), f"gradient of hidden `{name}`"
    assert_law_1(call, found, given)


@given(call=masked, number=garbage, tiling=tilings, data=st.data())
@settings(max_examples=60)
def test_a_query_is_untouched_by_keys_that_it_does_not_see(backend, call, number, tiling, data):
    samples, _, _, keys = call.sizes
    assume(keys > 0)
    spoiled_BK = (
        torch.rand(samples, keys, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999)))) < 0.3
    )
    leaves = {
        name: call.leaves[name].masked_fill(spoiled_BK[:, None, :, None], number)
        for name in data.draw(st.sampled_from((("key",), ("value",), ("key", "value"))))
    }
    touched_BHQ = (dense.visible(call) & spoiled_BK[:, None, None]).any(-1)
    with tiled(tiling):
        found = run(call.with_leaves(**leaves), backend)
    judge = Judge(call)
    for name in PER_QUERY & set(found):
        touched = touched_BHQ.view(*touched_BHQ.shape, *[1] * (found[name].dim() - 3))
        judge.check(name, torch.where(touched, judge.wanted[name], found[name]))


@given(call=calls(torch.float64), tiling=tilings, data=st.data())
@settings(max_examples=60)
def test_causal_gives_no_gradient_from_a_query_to_later_keys(backend, call, tiling, data):
    _, _, queries, _ = call.sizes
    assume(queries > 0)
    call = call.but(parts=(*call.parts, Causal(data.draw(st.sampled_from(("end", "start"))))))
    last = data.draw(st.integers(0, queries - 1))
    given = arriving(call, ("output", "lse", "entropy"))
    given = {name: gradient.clone() for name, gradient in given.items()}
    for gradient in given.values():
        gradient[:, :, last + 1 :] = 0
    with tiled(tiling):
        found = run(call, backend, given)
    seen_BHK = dense.visible(call)[:, :, : last + 1].any(2)
    seen_BGK = seen_BHK.unflatten(1, (call.key_BGKD.shape[1], -1)).any(2)
    for name in ("grad_key", "grad_value"):
        assert (found[name][~seen_BGK] == 0).all(), f"{name} beyond query {last}"
    assert (found["grad_query"][:, :, last + 1 :] == 0).all()


def blind(call: Call, way: str) -> Call:
    """Hide every key from every query, in one of many ways."""
    samples, _, queries, keys = call.sizes
    nobody_B = torch.zeros(samples, dtype=torch.int64)
    match way:
        case "lengths":
            part = Lengths(nobody_B)
        case "queries":
            part = Lengths(nobody_B + keys, nobody_B)
        case "segments":
            part = Segments(
                torch.zeros(samples, keys, dtype=torch.int64), torch.ones(samples, queries, dtype=torch.int64)
            )
        case "dense":
            part = Dense(torch.zeros(1, 1, 1, 1, dtype=torch.bool))
        case "window":
            part = Lengths(nobody_B + (keys > 0), None, nobody_B)
            return call.but(parts=(part, Window(0, 0), Dense(torch.arange(queries)[:, None] < queries - 1)))
        case "bias":
            return call.but(bias=torch.full((1, 1, 1, keys), -torch.inf, dtype=call.query_BHQD.dtype))
    return call.but(parts=(*call.parts, part))


@given(
    call=st.sampled_from(DTYPES).flatmap(calls),
    way=st.sampled_from(("lengths", "queries", "segments", "dense", "window", "bias")),
    tiling=tilings,
    through=st.sampled_from(THROUGH),
)
@settings(max_examples=80)
def test_a_query_that_sees_nothing_yields_zeros(backend, call, way, tiling, through):
    call = blind(call, way)
    assert not dense.visible(call).any()
    given = arriving(call, through)
    with tiled(tiling):
        found = run(call, backend, given)
    assert (found.pop("lse") == -torch.inf).all()
    for name in ("peak_key", "link_key"):
        assert (found.pop(name) == -1).all()
    for name, tensor in found.items():
        assert (tensor == 0).all(), f"`{name}` of queries that see nothing"


@given(call=calls(torch.float32, dropout=False, least=1), tiling=tilings, data=st.data())
@settings(max_examples=60)
def test_nan_that_is_seen_arrives(backend, call, tiling, data):
    where = data.draw(st.sampled_from(("query", "key", "value")))
    leaf = call.leaves[where].clone()
    b, g, place = (data.draw(st.integers(0, size - 1)) for size in leaf.shape[:3])
    leaf[b, g, place, 0] = torch.nan
    visible_BHQK = dense.visible(call)
    share = call.sizes[1] // call.key_BGKD.shape[1]
    reached_BHQ = torch.zeros_like(visible_BHQK[..., 0])
    if where == "query":
        reached_BHQ[b, g, place] = visible_BHQK[b, g, place].any()
    else:
        reached_BHQ[b, g * share : (g + 1) * share] = visible_BHQK[b, g * share : (g + 1) * share, :, place]
    with tiled(tiling):
        found = run(call.with_leaves(**{where: leaf}), backend)
    # A value counts only by its weight, which may have underflowed to 0.
    if where == "value":
        reached_BHQ &= dense.attend(call)["weights"][..., place] > 1e-30
    assert found["output"].isnan().any(-1)[reached_BHQ].all()
    if where != "value":
        assert found["lse"].isnan()[reached_BHQ].all()


@pytest.mark.parametrize("tiling", TILINGS)
def test_a_sample_of_length_zero_does_not_end_the_process(backend, tiling):
    generator = torch.Generator().manual_seed(0)
    tensors = (torch.randn(3, 2, 7, 5, generator=generator) for _ in range(3))
    call = Call(*tensors, parts=(Lengths(torch.tensor([7, 0, 3])),), asked={"peak": True})
    with tiled(tiling):
        assert_law_1(call, run(call, backend))
        without = replace(call, parts=(Lengths(torch.tensor([0, 0, 0]), torch.tensor([7, 0, 3])),))
        assert_law_1(without, run(without, backend))


@pytest.mark.parametrize("keys", [5, 17])
def test_a_query_that_is_nan_beside_few_keys_arrives(backend, keys):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 1, 200, 8, generator=generator), torch.randn(1, 1, keys, 8, generator=generator)
    query[0, 0, 3, 0] = torch.nan
    found = run(Call(query, key, key), backend)
    for name in ("output", "lse"):
        wrong = found[name].view(200, -1).isnan().any(-1)
        assert wrong.nonzero().flatten().tolist() == [3], name
