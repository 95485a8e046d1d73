"""PyTorch's transforms see one ordinary operation: derivatives, batching, compiling, exporting, autocast."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import headwise
from headwise import Alibi, BackendError, Dropout, Mask, Seen, Statistics
from tests.laws import dense
from tests.laws.cases import BACKENDS, TILINGS, tiled
from tests.laws.checks import assert_law_1, gap, observed
from tests.laws.dense import Buckets, Call, Causal, Lengths, Slopes

backends = pytest.mark.parametrize("backend", BACKENDS)
ENTROPY = Statistics(entropy=True)


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def kind(backend: str) -> torch.dtype:
    """Give the most exact type that a backend takes."""
    return torch.float32 if backend == "native" else torch.float64


def doubles(bias: str) -> Call:
    """Make a small call in float64 with a dead row, shared heads and a bias."""
    biases = {"none": None, "tensor": numbers(1, 2, 3, 1), "slopes": Slopes(torch.rand(2, dtype=torch.float64))}
    biases["buckets"] = Buckets(numbers(4, 2), max_distance=3)
    tensors = numbers(2, 2, 3, 2), numbers(2, 1, 4, 2), numbers(2, 1, 4, 3)
    parts = Causal(), Lengths(torch.tensor([4, 2]))
    return Call(*tensors, parts=parts, bias=biases[bias], rate=0.3, seed=3, asked={"entropy": True})


def function_of(call: Call, backend: str) -> tuple:
    """Give a function of the leaves alone, and the leaves."""
    names = list(call.leaves)

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        output, seen = observed(call.with_leaves(**dict(zip(names, leaves, strict=True))), backend)
        return output, seen.lse_BHQ.masked_fill(~seen.live_BHQ, 0), seen.entropy_BHQ

    return function, [leaf.clone().requires_grad_() for leaf in call.leaves.values()]


@pytest.mark.parametrize("bias", ["none", "tensor", "slopes", "buckets"])
@backends
def test_first_derivatives_are_those_of_differences(backend, bias):
    function, leaves = function_of(doubles(bias), backend)
    for tiling in ("whole",) if backend == "reference" else ("whole", "flash in parts"):
        with tiled(tiling):
            assert gradcheck(function, leaves)


@pytest.mark.parametrize("bias", ["none", "tensor", "slopes", "buckets"])
def test_second_derivatives_are_those_of_differences(bias):
    function, leaves = function_of(doubles(bias), "reference")
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("tiling", TILINGS)
def test_second_derivatives_are_refused_by_the_fused_backend(tiling):
    query = numbers(1, 2, 3, 2).requires_grad_()
    with tiled(tiling):
        output = headwise.attend(query, query, query, backend="fused")
        (gradient,) = torch.autograd.grad(output.sum(), query, create_graph=True)
        with pytest.raises(BackendError, match=r'second derivatives need backend="reference"; got .*\. Pass '):
            torch.autograd.grad(gradient.sum(), query)


def test_second_derivatives_are_refused_under_func_too():
    query = numbers(1, 2, 3, 2)

    def total(x: Tensor) -> Tensor:
        return headwise.attend(x, x, x, backend="fused").sum()

    with pytest.raises(BackendError, match="second derivatives"):
        torch.func.grad(lambda x: torch.func.grad(total)(x).sum())(query)


def looked(query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, backend: str) -> Tensor:
    """Give one number that depends on output, log-sum-exp and entropy."""
    output, seen = headwise.attend(query, key, value, mask, statistics=ENTROPY, backend=backend)
    lse_BHQ = seen.lse_BHQ.masked_fill(seen.lse_BHQ == -torch.inf, 0)
    return output.square().sum() + lse_BHQ.sin().sum() + seen.entropy_BHQ.square().sum()


MASKS = {
    "none": lambda: None,
    "causal": Mask.causal,
    "lengths": lambda: Mask.lengths(torch.tensor([3, 0, 5]), torch.tensor([2, 3, 3])),
    "dense": lambda: Mask.dense(torch.arange(15).reshape(3, 5) % 4 > 0),
}


@pytest.mark.parametrize("mask", MASKS)
@backends
def test_func_grad_is_autograd(backend, mask):
    tensors = [numbers(*shape, dtype=kind(backend)) for shape in ((3, 4, 3, 2), (3, 2, 5, 2), (3, 2, 5, 2))]
    found = torch.func.grad(lambda *x: looked(*x, MASKS[mask](), backend), argnums=(0, 1, 2))(*tensors)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    wanted = torch.autograd.grad(looked(*leaves, MASKS[mask](), backend), leaves)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dims", [(0, 0, 0), (0, None, None), (None, 1, 0), (2, 3, None)])
@backends
def test_vmap_is_a_loop(backend, mask, dims):
    shapes = (3, 4, 3, 2), (3, 2, 5, 2), (3, 2, 5, 2)
    tensors = [numbers(*shape, dtype=kind(backend)) for shape in shapes]
    stacked = [
        tensor if dim is None else torch.stack([tensor, tensor * 2, tensor - 1], dim)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]

    def chosen(i: int) -> list[Tensor]:
        return [x if dim is None else x.select(dim, i) for x, dim in zip(stacked, dims, strict=True)]

    def one(*x: Tensor) -> tuple[Tensor, Tensor]:
        output, seen = headwise.attend(*x, MASKS[mask](), statistics=ENTROPY, backend=backend)
        return output, seen.entropy_BHQ

    for found, wanted in zip(
        torch.func.vmap(one, in_dims=dims)(*stacked),
        zip(*(one(*chosen(i)) for i in range(3)), strict=True),
        strict=True,
    ):
        torch.testing.assert_close(found, torch.stack(wanted))
    argnums = tuple(i for i, dim in enumerate(dims) if dim is not None)
    slope = torch.func.grad(lambda *x: looked(*x, MASKS[mask](), backend), argnums=argnums)
    each = [slope(*chosen(i)) for i in range(3)]
    for found, wanted in zip(torch.func.vmap(slope, in_dims=dims)(*stacked), zip(*each, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(wanted))


@backends
def test_vmap_over_what_is_added_dropped_and_hidden(backend):
    shapes = (2, 4, 3, 2), (2, 2, 5, 2), (3, 1, 4, 3, 5)
    query, key, bias = (numbers(*shape, dtype=kind(backend)) for shape in shapes)
    slopes, allowed = torch.rand(3, 4, dtype=kind(backend)), torch.rand(3, 1, 1, 3, 5) < 0.6
    seeds, lengths = torch.tensor([3, 4, 5]), torch.tensor([[3, 0], [5, 1], [4, 4]])
    ways = {
        "bias": (lambda x: headwise.attend(query, key, key, bias=x, backend=backend), bias),
        "slopes": (lambda x: headwise.attend(query, key, key, bias=Alibi(x), backend=backend), slopes),
        "mask": (lambda x: headwise.attend(query, key, key, Mask.dense(x), backend=backend), allowed),
        "lengths": (lambda x: headwise.attend(query, key, key, Mask.lengths(x), backend=backend), lengths),
        "dropout": (lambda x: headwise.attend(query, key, key, dropout=Dropout(0.4, x), backend=backend), seeds),
    }
    for name, (way, varied) in ways.items():
        wanted = torch.stack([way(x) for x in varied])
        torch.testing.assert_close(torch.func.vmap(way)(varied), wanted, msg=lambda told, name=name: f"{name}: {told}")


@backends
def test_per_sample_gradients_are_those_of_samples_alone(backend):
    weight, samples = numbers(2, 2, dtype=kind(backend)), numbers(4, 1, 2, 5, 2, dtype=kind(backend))

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return headwise.attend(x @ weight, x, x, Mask.causal(), backend=backend).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, samples)
    wanted = torch.stack([torch.func.grad(loss)(weight, x) for x in samples])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@backends
def test_autocast_lowers_the_precision(backend, dtype):
    call = Call(
        *(numbers(2, 3, 7, 5, dtype=torch.float32) for _ in range(3)), parts=(Causal(),), asked={"entropy": True}
    )
    with torch.autocast("cpu", dtype):
        output, seen = observed(call, backend)
        doubled = headwise.attend(*(numbers(1, 2, 3, 2) for _ in range(3)))
    assert output.dtype == dtype
    assert seen.entropy_BHQ.dtype == torch.float32
    assert doubled.dtype == torch.float64
    lowered = call.with_leaves(**{name: leaf.to(dtype) for name, leaf in call.leaves.items()})
    assert_law_1(lowered, {"output": output, "lse": seen.lse_BHQ, "entropy": seen.entropy_BHQ})


@backends
def test_autocast_gives_gradients_in_the_leaves_own_type(backend):
    leaves = [numbers(2, 3, 7, 5, dtype=torch.float32).requires_grad_() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        output = headwise.attend(*leaves, backend=backend)
    gradients = torch.autograd.grad(output.float().square().sum(), leaves)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3


@backends
def test_no_gradient_is_computed_where_none_is_wanted(backend):
    leaves = [numbers(1, 2, 3, 2, dtype=kind(backend)) for _ in range(3)]
    leaves[2].requires_grad_()
    output, seen = headwise.attend(
        *leaves, statistics=Statistics(entropy=True, peak=True, received=True), backend=backend
    )
    assert output.requires_grad
    assert not seen.peak_BHQ.requires_grad
    assert not seen.received_BHK.requires_grad
    (gradient,) = torch.autograd.grad(output.sum(), leaves[2])
    assert (
        gap(gradient, dense.attend(Call(*leaves))["weights"].detach().sum(2)[..., None].expand(1, 2, 3, 2))
        < 64 * torch.finfo(kind(backend)).eps
    )
    with torch.no_grad():
        assert not headwise.attend(*leaves, backend=backend).requires_grad


def test_results_are_leaves_of_a_tree():
    _, seen = headwise.attend(*numbers(3, 1, 2, 3, 2), statistics=ENTROPY)
    doubled = torch.utils._pytree.tree_map(lambda x: x * 2, seen)
    assert isinstance(doubled, Seen)
    assert torch.equal(doubled.entropy_BHQ, seen.entropy_BHQ * 2)
    assert doubled.peak_BHQ is None


def test_the_operation_is_one_that_pytorch_knows():
    tensors = [numbers(2, 4, 3, 2), numbers(2, 2, 5, 2), numbers(2, 2, 5, 2)]
    lengths, start, seed = torch.tensor([3, 5]), torch.tensor([1, 0]), torch.tensor(3)
    nothing = [None] * 6
    arguments = {
        "plain": [*tensors, *nothing[:4], *nothing, None, None, False, 0.5, 0.0, "", "auto", True],
        "full": [
            *(*tensors, numbers(1, 4, 3, 5), torch.rand(4), numbers(4, 7), seed),
            *(lengths, None, start, None, None, torch.rand(1, 1, 3, 5) < 0.7),
            *(
                2,
                0,
                True,
                0.5,
                0.3,
                Statistics(entropy=True, peak=True, map=3, links=2, received=True).asked,
                "fused",
                True,
            ),
        ],
    }
    for given in arguments.values():
        torch.library.opcheck(torch.ops.headwise.attend.default, given)
        results = torch.ops.headwise.attend(*given)
        entropy = results[2] if "entropy" in given[-3] else None
        needs = [x is not None for x in given[3:6]]
        arrived = [torch.randn_like(results[0]), torch.randn_like(results[1]), entropy, *results[:2], entropy, needs]
        torch.library.opcheck(torch.ops.headwise.attend_backward.default, [*arrived, *given])


class Seeing(TorchDispatchMode):
    """Note the operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradient", [False, True])
def test_who_looks_on_sees_one_operation(gradient):
    x = numbers(1, 2, 3, 2).requires_grad_(gradient)
    with Seeing() as mode:
        output = headwise.attend(x, x, x)
        if gradient:
            output.sum().backward()
    assert "headwise.attend.default" in mode.seen
    assert ("headwise.attend_backward.default" in mode.seen) == gradient
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        headwise.attend(x, x, x)
    assert "headwise::attend" in {event.key for event in profile.key_averages()}


def test_tensors_without_numbers_get_shapes():
    with FakeTensorMode():
        x = torch.empty(2, 4, 3, 6)
    assert headwise.attend(x, x, x).shape == (2, 4, 3, 6)
    x = torch.empty(2, 4, 3, 6, device="meta")
    output, seen = headwise.attend(x, x, x, statistics=ENTROPY)
    assert output.shape == (2, 4, 3, 6)
    assert seen.entropy_BHQ.device.type == "meta"
