"""Laws 4, 5 and 12: padded, packed, permuted, split or decoded one by one, attention is the same."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import headwise
from headwise import Mask
from tests.laws import dense
from tests.laws.cases import BACKENDS, TILINGS, arriving, calls, tiled
from tests.laws.checks import Judge, assert_law_1, bias_of, largest, mask_of, run, taking
from tests.laws.dense import Buckets, Call, Causal, Dense, Lengths, Segments, Slopes, Window

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

tilings = st.sampled_from(list(TILINGS))
seeds = st.integers(0, 2**31)
floats = st.sampled_from((torch.float32, torch.float64, torch.bfloat16))
bands = st.sampled_from(((), (Causal(),), (Causal("start"),), (Window(2, 1),), (Causal(), Window(3, None))))
EVERYTHING = {"entropy": True, "peak": True, "position": True, "distance": True, "sink": 2, "diagonal": True}
EVERYTHING |= {"previous": True, "next": True, "local": 1, "received": True, "map": 3, "links": 2}


def drawn_bias(kind: str, heads: int, dtype: torch.dtype) -> dense.Bias:
    """Make a bias that depends on positions alone, so that a shorter call can have the same."""
    if kind == "slopes":
        return Slopes(torch.linspace(0.1, 0.7, heads).to(dtype))
    return Buckets(torch.randn(8, heads).to(dtype), max_distance=9) if kind == "buckets" else None


def alone(call: Call, b: int) -> Call:
    """Take one sample out of its padding: a call without lengths."""
    start, keys, queries = dense.extent(call, b)
    leaves = {
        "query": call.query_BHQD[b : b + 1, :, :queries],
        "key": call.key_BGKD[b : b + 1, :, start : start + keys],
        "value": call.value_BGKE[b : b + 1, :, start : start + keys],
    }
    return call.with_leaves(**leaves).but(parts=tuple(part for part in call.parts if not isinstance(part, Lengths)))


@given(
    call=floats.flatmap(lambda dtype: calls(dtype, most=0, dropout=False)),
    band=bands,
    bias=st.sampled_from(("none", "slopes", "buckets")),
    side=st.sampled_from(("left", "right", "middle")),
    tiling=tilings,
    seed=seeds,
)
@settings(max_examples=80)
def test_padding_changes_no_result(backend, call, band, bias, side, tiling, seed):
    torch.manual_seed(seed)
    samples, heads, queries, keys = call.sizes
    lengths_B = torch.randint(0, keys + 1, (samples,))
    room_B = keys - lengths_B
    start_B = {"left": room_B, "right": None, "middle": room_B // 2}[side]
    queries_B = torch.randint(0, queries + 1, (samples,)) if side == "right" else None
    parts = (*band, Lengths(lengths_B, queries_B, start_B))
    bias = drawn_bias(bias, heads, call.query_BHQD.dtype)
    call = call.but(parts=parts, bias=bias, asked=EVERYTHING)
    given = arriving(call, ("output", "entropy"))
    with tiled(tiling):
        found = run(call, backend, given)
    judge = Judge(call, given)
    for b in range(samples):
        start, count, valid = dense.extent(call, b)
        rows = {name: tensor[b : b + 1, :, :valid] for name, tensor in found.items() if name in PER_QUERY}
        keyed = slice(start, start + count)
        rows["received"] = found["received"][b : b + 1, :, keyed]
        rows["map"], rows["map_count"] = found["map"][b : b + 1], found["map_count"][b : b + 1]
        for name in ("peak_key", "link_key"):
            rows[name] = torch.where(rows[name] < 0, -1, rows[name] - start)
        rows["grad_query"] = found["grad_query"][b : b + 1, :, :valid]
        rows |= {name: found[name][b : b + 1, :, keyed] for name in ("grad_key", "grad_value")}
        arrived = {name: gradient[b : b + 1, :, :valid] for name, gradient in given.items()}
        judge.check_all(rows, dense.solve(alone(call, b), arrived))


PER_QUERY = {"output", "lse", "entropy", "peak", "peak_key", "position", "distance", "sink", "diagonal", "previous"}
PER_QUERY |= {"next", "local", "link_weight", "link_key"}
OF_NO_PLACE = ("output", "lse", "entropy", "peak", "distance", "diagonal", "previous", "next", "local", "link_weight")


@given(call=floats.flatmap(lambda dtype: calls(dtype, most=0, dropout=False, least=1)), data=st.data(), seed=seeds)
@settings(max_examples=60)
def test_packed_sequences_equal_padded_ones(backend, call, data, seed):
    torch.manual_seed(seed)
    samples, heads, _, keys = call.sizes
    query_BHQD = torch.randn(samples, heads, keys, call.query_BHQD.shape[-1]).to(call.query_BHQD.dtype)
    bias = drawn_bias(data.draw(st.sampled_from(("none", "slopes", "buckets"))), heads, query_BHQD.dtype)
    band = data.draw(bands.filter(lambda band: Causal("start") not in band))
    asked = {name: value for name, value in EVERYTHING.items() if name in OF_NO_PLACE or name == "links"}
    call = call.but(query_BHQD=query_BHQD, bias=bias, asked=asked)
    edges = sorted({0, keys, *data.draw(st.lists(st.integers(0, keys), max_size=3))})
    ids_BK = torch.zeros(samples, keys, dtype=torch.int64)
    for edge in edges[1:-1]:
        ids_BK[:, edge:] += 1
    packed = call.but(parts=(*band, Segments(ids_BK)))
    with tiled(data.draw(tilings)):
        found = run(packed, backend)
    judge = Judge(packed)
    for a, z in pairwise(edges):
        leaves = {name: call.leaves[name][:, :, a:z] for name in ("query", "key", "value")}
        wanted = dense.attend(call.with_leaves(**leaves).but(parts=band))
        for name in OF_NO_PLACE:
            judge.check(name, found[name][:, :, a:z], wanted[name])


@given(call=floats.flatmap(lambda dtype: calls(dtype, dropout=False)), data=st.data(), tiling=tilings)
@settings(max_examples=60)
def test_permuted_heads_give_permuted_results(backend, call, data, tiling):
    heads, groups = call.sizes[1], call.key_BGKD.shape[1]
    share = heads // groups
    group_G = torch.tensor(data.draw(st.permutations(range(groups))))
    inside_N = torch.tensor(data.draw(st.permutations(range(share))))
    head_H = (group_G[:, None] * share + inside_N).flatten()
    leaves = dict(call.leaves)
    orders = {
        "query": (1, head_H),
        "key": (1, group_G),
        "value": (1, group_G),
        "slopes": (0, head_H),
        "table": (1, head_H),
    }
    leaves = {name: leaf.index_select(*orders[name]) for name, leaf in leaves.items() if name in orders}
    if isinstance(call.bias, Tensor):
        leaves["bias"] = call.bias if call.bias.shape[1] == 1 else call.bias[:, head_H]
    parts = tuple(
        Dense(part.allowed_BHQK[:, head_H]) if isinstance(part, Dense) and part.allowed_BHQK.shape[1] > 1 else part
        for part in call.parts
    )
    with tiled(tiling):
        found = run(call.with_leaves(**leaves).but(parts=parts), backend)
    back_H = head_H.argsort()
    assert_law_1(call, {name: tensor[:, back_H] for name, tensor in found.items()})


def halves(call: Call, cut: int) -> Iterator[Call]:
    """Split the keys of a call in two, its mask and its bias written out."""
    visible_BHQK = dense.visible(call)
    added_BHQK = dense.added(call, call.query_BHQD.dtype).expand_as(visible_BHQK)
    for keys in (slice(0, cut), slice(cut, None)):
        leaves = {name: call.leaves[name][:, :, keys] for name in ("key", "value")}
        part = Dense(visible_BHQK[..., keys])
        yield call.with_leaves(**leaves).but(parts=(part,), bias=added_BHQK[..., keys], asked={"entropy": True})


@given(
    call=st.sampled_from((torch.float32, torch.float64)).flatmap(lambda dtype: calls(dtype, dropout=False)),
    share=st.floats(0, 1),
    tiling=tilings,
)
@settings(max_examples=60)
def test_two_halves_of_the_keys_merge_to_the_whole(backend, call, share, tiling):
    call = call.but(asked={"entropy": True})
    with tiled(tiling):
        first, second = (run(half, backend) for half in halves(call, int(share * call.sizes[3])))
    lse_BHQ = torch.logaddexp(first["lse"], second["lse"])
    merged = {"lse": lse_BHQ, "output": 0, "entropy": 0}
    for half in (first, second):
        mass_BHQ = (half["lse"] - lse_BHQ).exp().masked_fill(half["lse"] == -torch.inf, 0)
        merged["output"] = merged["output"] + mass_BHQ[..., None] * half["output"]
        merged["entropy"] = merged["entropy"] + mass_BHQ * half["entropy"] - torch.special.xlogy(mass_BHQ, mass_BHQ)
    judge = Judge(call)
    # Merging adds a handful of roundings to those of the halves.
    slack = 20 * torch.finfo(call.query_BHQD.dtype).eps
    for name, tensor in merged.items():
        judge.check(name, tensor, slack=slack * (1 + largest(judge.wanted[name].nan_to_num(neginf=0))))


def one_by_one(call: Call, backend: str, *, static: bool) -> Tensor:
    """Decode: each query alone, beside the keys up to its own; `static` for a cache of full length."""
    samples, _, queries, keys = call.sizes
    start_B = call.parts[0].start_B if call.parts and isinstance(call.parts[0], Lengths) else None
    band = Mask.causal() if mask_of(call) is None else mask_of(call.but(parts=call.parts[1:]))
    steps = []
    for i in range(queries):
        filled = keys - queries + i + 1
        valid_B = filled - (torch.zeros(samples, dtype=torch.int64) if start_B is None else start_B)
        part = Mask.lengths(valid_B.clamp(min=0), key_start=start_B if start_B is None else start_B.clamp(max=filled))
        shown = slice(None) if static else slice(0, filled)
        tensors = call.query_BHQD[:, :, i : i + 1], call.key_BGKD[:, :, shown], call.value_BGKE[:, :, shown]
        mask = band & part if static or start_B is not None else band
        steps.append(
            headwise.attend(*tensors, mask, bias=bias_of(call), scale=call.scale, backend=taking(call, backend))
        )
    return torch.cat(steps, 2)


@given(
    call=st.sampled_from((torch.float32, torch.float64)).flatmap(lambda dtype: calls(dtype, most=0, dropout=False)),
    data=st.data(),
    seed=seeds,
)
@settings(max_examples=50)
def test_decoding_equals_full_recomputation(backend, call, data, seed):
    torch.manual_seed(seed)
    samples, heads, queries, keys = call.sizes
    assume(0 < queries <= keys)
    bias = drawn_bias(data.draw(st.sampled_from(("none", "slopes", "buckets"))), heads, call.query_BHQD.dtype)
    padded = data.draw(st.booleans())
    lengths_B = torch.randint(1, keys + 1, (samples,))
    window = data.draw(st.sampled_from(((), (Window(3, None),))))
    padding = Lengths(lengths_B, None, keys - lengths_B) if padded else Lengths(torch.full((samples,), keys))
    call = call.but(parts=(padding, Causal(), *window), bias=bias, asked={})
    with tiled(data.draw(tilings)):
        output = one_by_one(call, backend, static=data.draw(st.booleans()))
    assert_law_1(call, {"output": output})


@given(call=floats.flatmap(lambda dtype: calls(dtype, dropout=False)), tiling=tilings)
@settings(max_examples=40)
def test_a_batch_equals_its_samples_one_by_one(backend, call, tiling):
    single = [cut(call, b) for b in range(call.sizes[0])]
    with tiled(tiling):
        found = [run(sample, backend) for sample in single]
    assert_law_1(call, {name: torch.cat([each[name] for each in found]) for name in found[0]})


def cut(call: Call, b: int) -> Call:
    """Take one sample of a call."""

    def of(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or len(tensor) == 1 else tensor[b : b + 1]

    parts = []
    for part in call.parts:
        fields = {name: of(value) if isinstance(value, Tensor) else value for name, value in vars(part).items()}
        parts.append(type(part)(**fields))
    leaves = {name: of(call.leaves[name]) for name in ("query", "key", "value")}
    if isinstance(call.bias, Tensor):
        leaves["bias"] = of(call.bias)
    return call.with_leaves(**leaves).but(parts=tuple(parts))
