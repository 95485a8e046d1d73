"""Compiled and exported programs compute the same, at sizes other than those they were traced with."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import headwise
from headwise import Alibi, Mask, RelativeBias, Statistics
from headwise.kernels import fused
from tests.conftest import slow

backends = pytest.mark.parametrize("backend", ["native", "fused", *slow("reference")])
ALL = Statistics(True, True, True, True, True, 2, True, True, True, 1, True, 3, 2)
CROSSING = (7, 5), (fused.FEW_KEYS + 3, fused.FEW_KEYS + 9)
"""Numbers of queries and keys on either side of the length from which on the fused operation is taken."""


def numbers(samples: int, queries: int, keys: int) -> list[Tensor]:
    return [torch.randn(samples, 4, queries, 6), torch.randn(samples, 2, keys, 6), torch.randn(samples, 2, keys, 6)]


def everything(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, backend: str) -> tuple[Tensor, ...]:
    """Use a mask, a bias that carries gradient and all statistics."""
    mask = Mask.causal() & Mask.window(40, None) & Mask.lengths(lengths)
    bias = RelativeBias(query.new_ones(8, 4) * query.mean(), max_distance=20)
    output, seen = headwise.attend(query, key, value, mask, bias=bias, statistics=ALL, backend=backend)
    held = [tensor for tensor in vars(seen).values() if tensor is not None]
    return output, *(x.masked_fill(x == -torch.inf, 0) for x in held)


@backends
def test_a_compiled_call_is_an_eager_one_at_every_size(backend):
    torch.compiler.reset()
    compiled = torch.compile(everything, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples, (queries, keys) in zip((3, 2, 5), (*CROSSING, (2, 3)), strict=True):
        leaves = [x.requires_grad_() for x in numbers(samples, queries, keys)]
        lengths = torch.randint(1, keys + 1, (samples,))
        results = [call(*leaves, lengths, backend) for call in (everything, compiled)]
        for wanted, found in zip(*results, strict=True):
            torch.testing.assert_close(found, wanted)
        slopes = [torch.autograd.grad(sum(x.square().sum() for x in found[:3]), leaves) for found in results]
        torch.testing.assert_close(slopes[1], slopes[0])


@backends
def test_compiling_once_serves_every_size(backend):
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, example: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return headwise.attend(query, key, value, Mask.causal(), bias=Alibi.geometric(4), dropout=0.0, backend=backend)

    compiled = torch.compile(plain, fullgraph=True, dynamic=True, backend=count)
    for samples, (queries, keys) in zip((3, 2, 5), (*CROSSING, (11, 13)), strict=True):
        tensors = numbers(samples, queries, keys)
        torch.testing.assert_close(compiled(*tensors), plain(*tensors))
    assert len(graphs) == 1, f"compiled {len(graphs)} times"


def test_dropout_draws_anew_in_a_compiled_call():
    torch.compiler.reset()
    compiled = torch.compile(lambda x: headwise.attend(x, x, x, dropout=0.5), fullgraph=True, backend="aot_eager")
    query = torch.randn(1, 2, 7, 6)
    torch.manual_seed(1)
    first, second = compiled(query), compiled(query)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(compiled(query), first)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own modules, at the first call
def test_the_compiler_that_users_get_compiles_it():
    torch.compiler.reset()
    compiled = torch.compile(everything, fullgraph=True, dynamic=True)
    leaves = [x.requires_grad_() for x in numbers(3, 7, 5)]
    results = [call(*leaves, torch.tensor([3, 5, 1]), "auto") for call in (everything, compiled)]
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(sum(x.square().sum() for x in found[:3]), leaves) for found in results]
    torch.testing.assert_close(slopes[1], slopes[0])


class Everything(nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        return everything(query, key, value, lengths, self.backend)


@backends
def test_an_exported_call_keeps_its_sizes_free(backend):
    batch, queries, keys = Dim("batch", min=1), Dim("queries", min=1), Dim("keys", min=1)
    module, traced = Everything(backend), (*numbers(3, 7, 5), torch.tensor([3, 5, 1]))
    of_key = {0: batch, 2: keys}
    shapes = {"query": {0: batch, 2: queries}, "key": of_key, "value": of_key, "lengths": {0: batch}}
    program = torch.export.export(module, traced, dynamic_shapes=shapes)
    for samples, (length, width) in zip((2, 4, 1), (*CROSSING, (1, 1)), strict=True):
        given = (*numbers(samples, length, width), torch.randint(1, width + 1, (samples,)))
        for wanted, found in zip(module(*given), program.module()(*given), strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("gradient", [False, True])
@backends
def test_one_tensor_may_be_given_in_several_places(backend, gradient):
    def everywhere(x: Tensor, lengths: Tensor) -> Tensor:
        return headwise.attend(x, x, x, Mask.causal() & Mask.lengths(lengths, lengths), backend=backend)

    torch.compiler.reset()
    compiled = torch.compile(everywhere, fullgraph=True, backend="aot_eager")
    x, lengths = torch.randn(3, 2, 7, 6, requires_grad=gradient), torch.tensor([7, 2, 5])
    wanted, found = everywhere(x, lengths), compiled(x, lengths)
    torch.testing.assert_close(found, wanted)
    if gradient:
        slopes = [torch.autograd.grad(result.square().sum(), x) for result in (wanted, found)]
        torch.testing.assert_close(slopes[1], slopes[0])
