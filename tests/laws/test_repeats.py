"""Laws 7 and 13: looking changes nothing, and the same seed gives the same bits."""

import copy
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import headwise
from headwise import Alibi, Dropout, HeadwiseError, Mask, RelativeBias, Scored, Seen, Statistics
from headwise.kernels import measure, native
from tests.laws import dense
from tests.laws.cases import BACKENDS, DTYPES, TILINGS, arriving, calls, tiled
from tests.laws.checks import assert_law_1, mask_of, run, settings_of, taking, tensors_of
from tests.laws.dense import Call

backends = pytest.mark.parametrize("backend", BACKENDS)
tilings = st.sampled_from(list(TILINGS))
floats = st.sampled_from(DTYPES)
ALL = Statistics(True, True, True, True, True, 2, True, True, True, 1, True, 3, 2)


def blind_run(call: Call, backend: str, given: Tensor, asked: Statistics | None) -> list[Tensor]:
    """Compute output and gradients, with or without looking."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in call.leaves.items()}
    mine = call.with_leaves(**leaves)
    output = headwise.attend(*tensors_of(mine), **settings_of(mine), statistics=asked, backend=taking(mine, backend))
    output = output if asked is None else output[0]
    return [output.detach(), *torch.autograd.grad(output, list(leaves.values()), given, materialize_grads=True)]


def assert_same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.nan_to_num(nan=7), other.nan_to_num(nan=7))


@backends
@given(call=floats.flatmap(calls), tiling=tilings)
@settings(max_examples=60)
def test_looking_changes_no_bit(backend, call, tiling):
    given = arriving(call, ("output",))["output"]
    with tiled(tiling):
        state = torch.get_rng_state()
        blind = blind_run(call, backend, given, None)
        looking = blind_run(call, backend, given, ALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_bits(blind, looking)


@backends
def test_looking_changes_no_bit_where_it_is_fused(backend):
    tensors = [torch.randn(2, 3, 257, 8, dtype=torch.bfloat16) for _ in range(3)]
    call = Call(*tensors, parts=(dense.Causal(),))
    given = arriving(call, ("output",))["output"]
    assert_same_bits(blind_run(call, backend, given, None), blind_run(call, backend, given, ALL))


@backends
def test_a_rate_draws_one_seed_whether_or_not_anyone_looks(backend):
    query, key, value = torch.randn(3, 2, 3, 5, 7).unbind()
    results, states = [], []
    for asked in (None, ALL):
        torch.manual_seed(5)
        found = headwise.attend(query, key, value, dropout=0.5, statistics=asked, backend=backend)
        results.append(found if asked is None else found[0])
        states.append(torch.get_rng_state())
    assert torch.equal(*results)
    assert torch.equal(*states)
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, ())
    assert torch.equal(torch.get_rng_state(), states[0])
    drawn = headwise.attend(query, key, value, dropout=Dropout(0.5, seed), backend=backend)
    assert torch.equal(drawn, results[0])


@contextmanager
def broken_statistics() -> Iterator[None]:
    broken = {"side_effect": RuntimeError("broken on purpose")}
    with patch.object(measure, "of_tile", **broken), patch.object(native.LIBRARY, "forward", **broken):
        yield


@backends
def test_nothing_is_left_behind_by_an_exception(backend):
    query, key, value = torch.randn(3, 2, 3, 5, 7).unbind()
    before = headwise.attend(query, key, value, Mask.causal(), backend=backend)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    with broken_statistics(), pytest.raises(RuntimeError, match="broken on purpose"):
        headwise.attend(query, key, value, Mask.causal(), statistics=ALL, backend=backend)
    with pytest.raises(HeadwiseError):
        headwise.attend(query, key, value[:, :2], Mask.causal(), statistics=ALL, backend=backend)
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()) == (threads, grad, dtype)
    assert torch.equal(headwise.attend(query, key, value, Mask.causal(), backend=backend), before)


@backends
@given(call=floats.flatmap(calls), tiling=tilings)
@settings(max_examples=40)
def test_inputs_are_left_as_they_were(backend, call, tiling):
    kept = {name: leaf.clone() for name, leaf in call.leaves.items()}
    with tiled(tiling):
        run(call, backend, arriving(call, ("output", "lse", "entropy")))
    assert_same_bits(list(kept.values()), list(call.leaves.values()))


@backends
@given(call=floats.flatmap(calls), tiling=tilings)
@settings(max_examples=40)
def test_the_same_seed_gives_the_same_bits(backend, call, tiling):
    given = arriving(call, ("output", "entropy"))
    with tiled(tiling):
        first, second = run(call, backend, given), run(call, backend, given)
    assert_same_bits(list(first.values()), list(second.values()))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@backends
@given(call=calls(torch.float32, large=True))
@settings(max_examples=5)
def test_any_number_of_threads_gives_the_same_within_law_1(backend, call):
    for count in (1, 2):
        with threads(count):
            assert_law_1(call, {"output": run(call.but(asked={}), backend)["output"]})


@backends
@pytest.mark.parametrize("tiling", TILINGS)
@given(rate=st.sampled_from((0.1, 0.5, 0.97, 1.0, 1e-6)), seed=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=6)
def test_dropout_keeps_the_same_weights_everywhere(backend, tiling, rate, seed):
    query, key = torch.randn(3, 4, 13, 5), torch.randn(3, 2, 19, 5)
    value = torch.eye(19).expand(3, 2, -1, -1)  # the output is then the weights themselves
    call = Call(query, key, value, rate=rate, seed=seed)
    kept_BHQK = dense.keep(call) if rate < 1 else torch.zeros(3, 4, 13, 19, dtype=torch.bool)
    for count in (1, 2):
        with tiled(tiling), threads(count):
            weights_BHQK = run(call, backend)["output"]
        assert torch.equal(weights_BHQK != 0, kept_BHQK)


def test_dropout_drops_at_its_rate():
    call = Call(*torch.zeros(3, 2, 3, 89, 2), rate=0.3, seed=11)
    kept_BHQK = headwise.attend(
        call.query_BHQD, call.key_BGKD, torch.eye(89).expand(2, 3, -1, -1), dropout=Dropout(0.3, 11)
    )
    share = (kept_BHQK != 0).double().mean().item()
    assert abs(share - 0.7) < 4 * (0.21 / kept_BHQK.numel()) ** 0.5
    torch.testing.assert_close(kept_BHQK.amax().item() * 89, 1 / 0.7, rtol=1e-5, atol=0)


def plain_data() -> list[object]:
    lengths = torch.tensor([3, 2])
    joined = Mask.window(2, 1) & Mask.lengths(lengths, key_start=lengths) & Mask.causal("start")
    joined = (
        joined & Mask.segments(torch.zeros(2, 5, dtype=torch.int64)) & Mask.dense(torch.ones(5, 5, dtype=torch.bool))
    )
    biases = Alibi.geometric(3), RelativeBias(torch.randn(8, 3), False, 20)
    return [
        Mask(),
        joined,
        *biases,
        Dropout(0.1, torch.tensor(3)),
        ALL,
        Scored(torch.ones(2), torch.ones(2)),
        Seen(lengths),
    ]


def saved(value: object) -> object:
    memory = io.BytesIO()
    torch.save(value, memory)
    memory.seek(0)
    return torch.load(memory, weights_only=False)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), saved])
def test_plain_data_survives_copying_and_pickling(way):
    for value in plain_data():
        other = way(value)
        assert type(other) is type(value)
        for name, held in vars(value).items():
            same = getattr(other, name)
            assert torch.equal(same, held) if isinstance(held, Tensor) else same == held


def test_a_copied_mask_hides_the_same():
    call = Call(*torch.randn(3, 2, 3, 5, 7), parts=(dense.Window(2, 1), dense.Lengths(torch.tensor([3, 5]))))
    mask = mask_of(call)
    assert torch.equal(mask.visible(5, 5), copy.deepcopy(mask).visible(5, 5))
