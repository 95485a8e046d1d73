"""The native kernel is there and chosen, and right on every instruction set, in forks and in threads."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from headwise import Alibi, Dropout, Mask, Statistics, attend, explain
from headwise.errors import BackendError
from headwise.kernels import native

EVERYTHING = Statistics(
    entropy=True, peak=True, position=True, distance=True, sink=2, diagonal=True, previous=True, next=True, local=3,
    received=True, map=5, links=3,
)  # fmt: skip
SLACK = {torch.float32: 4e-6, torch.bfloat16: 2e-2}


def isas() -> list[str]:
    """List the instruction sets of this machine."""
    found = []
    for isa in ("avx512_bf16", "avx512", "avx2", "portable"):
        try:
            native.LIBRARY.choose(isa)
            found.append(isa)
        except BackendError:
            continue
    native.LIBRARY.choose("")
    return found


ISAS = isas() if native.LIBRARY.missing is None else ["missing"]


@pytest.fixture(params=ISAS)
def isa(request):
    native.LIBRARY.choose(request.param)
    yield request.param
    native.LIBRARY.choose("")


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def tensors(generator: torch.Generator, dtype: torch.dtype, *sizes: int) -> list[Tensor]:
    samples, heads, groups, queries, keys, width, value_width = sizes
    shapes = (samples, queries, heads, width), (samples, keys, groups, width), (samples, keys, groups, value_width)
    made = [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]
    return [x.requires_grad_() for x in made]


def drawn(generator: torch.Generator, most: int) -> tuple[list[int], Mask | None]:
    """Draw the sizes and the mask of a call."""

    def number(least: int, last: int) -> int:
        return int(torch.randint(least, last + 1, (), generator=generator))

    groups = number(1, 3)
    queries, keys = number(1, most), number(1, most)
    sizes = [number(1, 3), groups * number(1, 3), groups, queries, keys, number(1, 80), number(1, 80)]
    lengths = torch.randint(keys + 1, (sizes[0],), generator=generator)
    masks = [
        None,
        Mask.causal(),
        Mask.window(number(0, 40), number(0, 9)),
        Mask.lengths(lengths) & Mask.window(number(0, 40)),
        Mask.causal(align="start") & Mask.lengths(lengths, key_start=keys - lengths),
        Mask.segments(
            torch.randint(3, (sizes[0], keys), generator=generator).sort(-1).values,
            torch.randint(3, (sizes[0], queries), generator=generator),
        ),
        Mask.dense(torch.rand(1, sizes[1], queries, keys, generator=generator) < 0.7) & Mask.causal(),
    ]
    return sizes, masks[number(0, len(masks) - 1)]


def solve(x: list[Tensor], backend: str, *, asked: Statistics = EVERYTHING, **settings: object) -> dict[str, Tensor]:
    """Compute a call and its gradients through output, log-sum-exp and entropy."""
    output, seen = attend(*x, statistics=asked, backend=backend, **settings)
    live = seen.live_BHQ
    loss = (output.double() * torch.linspace(-1, 1, output.shape[-1]).double()).sum()
    loss = loss + torch.where(live, seen.lse_BHQ, 0).sum() + seen.entropy_BHQ.sum()
    gradients = torch.autograd.grad(loss, x)
    found = {name: value for name, value in vars(seen).items() if value is not None}
    return found | {"output": output.detach(), **dict(zip(("query", "key", "value"), gradients, strict=True))}


def check(x: list[Tensor], slack: float, **settings: object) -> None:
    found = solve(x, "native", **settings)
    exact = [y.detach().double().requires_grad_() for y in x]
    wanted = solve(exact, "reference", **settings)
    for name in set(found) - {"peak_key_BHQ", "link_key_BHQN"}:
        mine, right = found[name].double(), wanted[name].double()
        hidden = right.isinf()
        assert torch.equal(mine.isinf(), hidden), name
        mine, right = mine.masked_fill(hidden, 0), right.masked_fill(hidden, 0)
        error = (mine - right).abs().max() if mine.numel() else torch.zeros(())
        bound = slack * (1 + right.abs().max())
        assert error <= bound, f"{name} is off by {error:.3g}, allowed {bound:.3g}"


def test_it_is_there_and_chosen():
    x = torch.randn(1, 2, 5, 8)
    assert native.LIBRARY.missing is None
    assert explain(x, x, x).backend == "native"
    assert explain(x.bfloat16(), x.bfloat16(), x.bfloat16(), Mask.causal()).backend == "native"


def test_what_it_does_not_take_it_refuses_with_the_reason():
    x = torch.randn(1, 2, 5, 8)
    with pytest.raises(BackendError, match="native: it computes float32 and bfloat16, not float64"):
        attend(x.double(), x.double(), x.double(), backend="native")
    wide = torch.randn(1, 2, 5, 300)
    with pytest.raises(BackendError, match="native: it takes widths of 1 to 256, not 300 and 300"):
        attend(wide, wide, wide, backend="native")
    assert explain(wide, wide, wide).backend == "fused"


def test_an_unknown_instruction_set_is_an_error():
    with pytest.raises(BackendError, match="must name an instruction set that this machine has; got 'mmx'"):
        native.LIBRARY.choose("mmx")


@pytest.mark.parametrize("dtype", SLACK, ids=str)
def test_random_calls_equal_the_reference(isa, dtype):
    generator = torch.Generator().manual_seed(1)
    for turn in range(40):
        sizes, mask = drawn(generator, 700 if turn % 8 == 0 else 90)
        bias = Alibi(torch.rand(sizes[1], generator=generator)) if turn % 3 == 0 else None
        dropout = Dropout(0.3, 2**40 + turn) if turn % 4 == 1 else 0.0
        scale = (None, 0.0, -0.4)[turn % 3 if turn % 5 == 0 else 0]
        x = tensors(generator, dtype, *sizes)
        check(x, SLACK[dtype], mask=mask, bias=bias, dropout=dropout, scale=scale)


@pytest.mark.parametrize("sizes", [(1, 2, 1, 300, 300, 16, 16), (1, 1, 1, 777, 130, 64, 64), (3, 4, 4, 33, 65, 8, 24)])
def test_threads_change_nothing_that_matters(threads, sizes):
    x = tensors(torch.Generator().manual_seed(2), torch.float32, *sizes)
    settings = {"mask": Mask.causal(), "dropout": Dropout(0.2, 5)}
    check(x, 4e-6, **settings)
    first, again = (solve(x, "native", **settings) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_several_python_threads_compute_at_once():
    x = tensors(torch.Generator().manual_seed(3), torch.float32, 2, 4, 2, 150, 150, 32, 32)
    alone = attend(*x, Mask.causal(), backend="native")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: attend(*x, Mask.causal(), backend="native"), range(32)))
    assert all(torch.equal(alone, other) for other in found)


FORK = """
import os, torch
from headwise import attend
x = torch.randn(2, 8, 300, 64)
before = attend(x, x, x, backend="native")
child = os.fork()
if child == 0:
    same = attend(x, x, x, backend="native").tolist() == before.tolist()
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_computes_on_one_thread():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60, env=dict(os.environ))


@pytest.mark.parametrize("way", ["strided", "expanded", "wide steps"])
def test_any_strides_are_read(way):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 3, 37, 2 * 16, generator=generator)
    made = {
        "strided": x[..., ::2],
        "expanded": x[:1, :1, :, :16].expand(2, 3, 37, 16),
        "wide steps": x[:, :, ::3, 5:21],
    }[way]
    check([made.clone().requires_grad_(), made.detach().requires_grad_(), made.detach().requires_grad_()], 4e-6)


@pytest.mark.parametrize("place", ["query", "key", "value"])
def test_nan_reaches_only_who_may_look(isa, place):
    x = dict(zip(("query", "key", "value"), torch.randn(3, 1, 1, 90, 16), strict=True))
    x[place][0, 0, 40, 3] = math.nan
    output = attend(*x.values(), Mask.window(2, 0), backend="native")
    reached = output[0, 0].isnan().any(-1).nonzero().flatten().tolist()
    assert reached == ([40] if place == "query" else [40, 41, 42])
