"""Law 1: every backend equals the float64 reference in output, gradients and statistics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headwise
from tests.laws import dense
from tests.laws.cases import BACKENDS, DTYPES, THROUGH, TILINGS, arriving, calls, tiled
from tests.laws.checks import INDICES, assert_complete, assert_law_1, gap, largest, run

HALVES = (torch.bfloat16, torch.float16)
tilings = st.sampled_from(list(TILINGS))


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(backend, dtype) for backend in BACKENDS for dtype in DTYPES[: 2 if backend == "native" else 3]]
    + [pytest.param(backend, torch.float16, marks=pytest.mark.slow) for backend in ("reference", "fused")],
)
@given(data=st.data(), tiling=tilings, through=st.sampled_from(THROUGH))
@settings(max_examples=150)
def test_a_backend_equals_the_reference(backend, dtype, data, tiling, through):
    """The native kernel computes float32 and bfloat16 and leaves the others to `fused`, which is tried with them."""
    call = data.draw(calls(dtype))
    given = arriving(call, through)
    with tiled(tiling):
        found = run(call, backend, given)
    assert_complete(call, found)
    assert_law_1(call, found, given)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("keys", [3, 9, 40, 200])
def test_gradients_of_heavy_keys_keep_their_digits(keys, offset):
    """The rounding of a log-sum-exp, or of a heavy key's own slope, would show in every draw."""
    draw = torch.Generator().manual_seed(keys)
    query, key, value, grad = (torch.randn(100, 1, n, 7, generator=draw) for n in (2, keys, keys, 2))
    if offset:
        query[..., 0], key[..., 0] = 10.0, key[..., 0] + offset / 10
    leaves, scale = (query, key, value), 1.0 if offset else 3.0

    def slopes(attention, kind):
        held = [leaf.detach().to(kind).requires_grad_() for leaf in leaves]
        return torch.autograd.grad(attention(*held), held, grad.to(kind))

    def written(q, k, v):
        return (q @ k.mT * scale).softmax(-1) @ v

    wanted, peer = slopes(written, torch.float64), slopes(written, torch.float32)
    found = slopes(lambda *tensors: headwise.attend(*tensors, scale=scale), torch.float32)
    for ours, theirs, exact in zip(found, peer, wanted, strict=True):
        error, usual = ((x - exact).abs().flatten(1).amax(1).mean() for x in (ours, theirs))
        assert error <= 2 * usual


bands = calls(torch.float32, fewest=1, most=2, kinds=("causal", "window"), bias=False, dropout=False)


@pytest.mark.parametrize(("backend", "tiling"), [("reference", "whole"), *(("fused", tiling) for tiling in TILINGS)])
@given(call=bands, through=st.sampled_from(THROUGH), scale=st.sampled_from((-1.3, 0.0, 1e-3)))
@settings(max_examples=40)
def test_a_band_keeps_to_the_reference_at_any_scale(backend, tiling, call, through, scale):
    value_BGKE = call.key_BGKD.flip(-1)  # of the keys' width, for which PyTorch has its own kernel
    call = call.but(scale=scale, value_BGKE=value_BGKE)
    given = arriving(call, through)
    with tiled(tiling):
        assert_law_1(call, run(call, backend, given), given)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data(), through=st.sampled_from(THROUGH))
@settings(max_examples=12)
def test_a_backend_equals_the_reference_where_it_is_fused(backend, dtype, data, through):
    call = data.draw(calls(dtype, large=True))
    given = arriving(call, through)
    assert_law_1(call, run(call, backend, given), given)


@pytest.mark.parametrize("backend", BACKENDS)
@given(call=st.sampled_from(HALVES).flatmap(lambda dtype: calls(dtype, dropout=False)), tiling=tilings)
@settings(max_examples=40)
def test_statistics_of_half_precision_are_exact(backend, call, tiling):
    with tiled(tiling):
        found = run(call, backend)
    wanted = dense.attend(call)
    for name in set(found) - {"output", *INDICES}:
        assert found[name].dtype == torch.float32
        size = largest(torch.where(wanted[name].isfinite(), wanted[name], 0))
        error = gap(found[name], wanted[name])
        assert error <= 1e-4 * size + 1e-6, f"`{name}` is off by {error:.3g} of {size:.3g}"


@pytest.mark.fuzz
@given(data=st.data())
@settings(settings.get_profile("long"))
def test_a_backend_equals_the_reference_at_length(data):
    call = data.draw(
        st.sampled_from(DTYPES).flatmap(lambda dtype: calls(dtype, large=data.draw(st.integers(0, 9)) == 9))
    )
    given = arriving(call, data.draw(st.sampled_from(THROUGH)))
    with tiled(data.draw(tilings)):
        assert_law_1(call, run(call, data.draw(st.sampled_from(BACKENDS)), given), given)
