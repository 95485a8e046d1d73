"""The native kernel is there and chosen, and right on every instruction set, in forks and in threads."""

import itertools
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from headwise import Alibi, Dropout, Mask, RelativeBias, Statistics, attend, attention_weights, explain
from headwise.errors import BackendError
from headwise.kernels import fused, native

EVERYTHING = Statistics(
    entropy=True, peak=True, position=True, distance=True, sink=2, diagonal=True, previous=True, next=True, local=3,
    received=True, map=5, links=3,
)  # fmt: skip
SLACK = {torch.float32: 4e-6, torch.bfloat16: 2e-2}


def isas() -> list[str]:
    """List the instruction sets of this machine."""
    found = []
    for isa in ("amx", "avx512_bf16", "avx512", "avx2", "portable"):
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
    loss = loss + torch.where(live, seen.lse_BHQ, 0).sum() + (seen.entropy_BHQ.sum() if asked.entropy else 0)
    bias = settings.get("bias")
    added = getattr(bias, "slopes_H", getattr(bias, "table_NH", bias))
    leaves = dict(zip(("query", "key", "value"), x, strict=True)) | {"bias": added}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    found = {name: value for name, value in vars(seen).items() if value is not None}
    return found | {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


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


def biases(generator: torch.Generator, dtype: torch.dtype, sizes: tuple[int, ...]) -> list[object]:
    """Give every kind of bias that learns: tensors that share any of their axes, slopes, and tables, short and long."""
    samples, heads, _, queries, keys, _, _ = sizes

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    made = []
    for shared in itertools.product((False, True), repeat=4):
        bias = numbers(*(1 if one else n for one, n in zip(shared, (samples, heads, queries, keys), strict=True)))
        made.append(bias.masked_fill_(torch.rand(bias.shape, generator=generator) < 0.1, -math.inf).requires_grad_())
    tables = [RelativeBias(numbers(n, heads).requires_grad_(), both, far) for n, both, far in TABLES]
    return [*made, Alibi((numbers(heads).abs() / 20).requires_grad_()), *tables]


TABLES = (8, True, 5), (32, False, 128)


@pytest.fixture
def alone(monkeypatch):
    """Let no other backend help out."""
    monkeypatch.delattr(fused, "backward")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("dtype", SLACK, ids=str)
def test_gradients_of_biases_equal_the_reference(isa, dtype):
    generator = torch.Generator().manual_seed(6)
    sizes = 2, 4, 2, 37, 101, 17, 8
    lengths = torch.tensor([101, 60])
    masks = [None, Mask.causal(), Mask.lengths(lengths, key_start=101 - lengths) & Mask.window(9, 3)]
    for turn, bias in enumerate(biases(generator, dtype, sizes)):
        x = tensors(generator, dtype, *sizes)
        dropout = Dropout(0.3, turn) if turn % 4 == 1 else 0.0
        asked = Statistics(entropy=dtype == torch.bfloat16, received=True)
        check(x, SLACK[dtype], mask=masks[turn % 3], bias=bias, dropout=dropout, asked=asked)


@pytest.mark.usefixtures("alone")
def test_gradients_of_biases_are_the_same_again(threads):
    generator = torch.Generator().manual_seed(7)
    sizes = 3, 2, 1, 150, 71, 8, 8
    for bias in biases(generator, torch.float32, sizes):
        x = tensors(generator, torch.float32, *sizes)
        check(x, 4e-6, bias=bias, asked=Statistics())
        first, again = (solve(x, "native", bias=bias, asked=Statistics()) for _ in range(2))
        assert torch.equal(first["bias"], again["bias"])


@pytest.mark.usefixtures("alone")
def test_thousands_of_scores_meet_in_one_number_of_a_bias():
    generator = torch.Generator().manual_seed(8)
    x = tensors(generator, torch.float32, 4, 4, 4, 1500, 67, 4, 4)
    for bias in (torch.zeros(1, 1, 1, 67), RelativeBias(torch.zeros(8, 4), True, 5), Alibi(torch.zeros(4))):
        leaf = getattr(bias, "slopes_H", getattr(bias, "table_NH", bias))
        leaf.requires_grad_()
        right = solve([y.detach().double() for y in x], "reference", asked=Statistics(), bias=bias)["bias"]
        found = solve(x, "native", asked=Statistics(), bias=bias)["bias"]
        assert (found - right).abs().max() <= 2e-7 * right.abs().max()


def test_learning_a_bias_is_no_reason_for_another_backend():
    x = torch.randn(3, 1, 2, 5, 8).bfloat16().unbind()
    for bias in biases(torch.Generator().manual_seed(9), torch.bfloat16, (1, 2, 2, 5, 5, 8, 8)):
        told = explain(*x, bias=bias)
        assert told.backend == "native"
        assert "fused" not in str(told.how)


@pytest.mark.parametrize("links", [1, 4, 23])
@pytest.mark.parametrize("repeated", [False, True], ids=["different", "equal by twos"])
def test_the_strongest_of_many_keys_are_found(isa, links, repeated):
    queries, keys, values = tensors(torch.Generator().manual_seed(links), torch.float32, 1, 2, 2, 67, 1_103, 16, 16)
    if repeated:
        keys = keys[:, :, :552].repeat_interleave(2, dim=2)[:, :, :1_103]
    mask, asked = Mask.window(600, 500), Statistics(links=links, map=5)
    seen = attend(queries, keys, values, mask, statistics=asked, backend="native")[1]
    weights = attention_weights(queries, keys, mask)
    torch.testing.assert_close(seen.link_weight_BHQN, weights.topk(links).values, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights.gather(-1, seen.link_key_BHQN), seen.link_weight_BHQN, atol=1e-6, rtol=1e-5)
    assert (seen.link_key_BHQN.sort(-1).values.diff(dim=-1) > 0).all(), "a key is found twice"
    assert seen.map_count_BHP.sum(-1).eq(67).all()


@pytest.mark.parametrize("keys", [7, 33, 128, 509, 513])
@pytest.mark.parametrize("dtype", SLACK, ids=str)
def test_short_and_long_ways_give_the_same_bits(isa, dtype, keys):
    x = [y.detach() for y in tensors(torch.Generator().manual_seed(5), dtype, 2, 6, 3, 71, keys, 24, 40)]
    masks = [
        None,
        Mask.causal(),
        Mask.window(9, 2),
        Mask.lengths(torch.tensor([keys, keys // 2]), key_start=torch.tensor([0, keys // 3])),
        Mask.lengths(torch.tensor([0, keys])) & Mask.causal(),
    ]
    for mask in masks:
        short, seen = attend(*x, mask, backend="native"), attend(*x, mask, statistics=EVERYTHING, backend="native")
        assert torch.equal(short, seen[0])
        again = attend(*x, mask, statistics=Statistics(entropy=True), backend="native")
        assert torch.equal(again[1].lse_BHQ, seen[1].lse_BHQ)


def test_a_value_that_is_not_finite_reaches_who_weighs_it(isa):
    x = torch.randn(3, 1, 2, 40, 16).unbind()
    x[2][0, 1, 7, 5] = math.inf
    output = attend(*x, Mask.causal(), backend="native")
    assert output[0, 0].isfinite().all()
    assert output[0, 1].isnan().all(-1).tolist() == [i >= 7 for i in range(40)]


@pytest.mark.parametrize("dtype", SLACK, ids=str)
@pytest.mark.parametrize("hidden", ["dense", "bias", "lengths"])
def test_a_key_that_is_seen_alone_gives_queries_and_keys_no_gradient(isa, dtype, hidden):
    q, k, v = tensors(torch.Generator().manual_seed(0), dtype, 2, 2, 2, 7, 70, 5, 11)
    seen_K = torch.arange(70) == (0 if hidden == "lengths" else 67)
    given = {
        "dense": {"mask": Mask.dense(seen_K.expand(2, 1, 7, 70))},
        "bias": {"bias": torch.zeros(1, 1, 1, 70, dtype=dtype).masked_fill(~seen_K, -math.inf)},
        "lengths": {"mask": Mask.lengths(torch.tensor([1, 1]))},
    }[hidden]
    output = attend(q, k, v, backend="native", **given)
    grads = torch.autograd.grad(output, (q, k), torch.randn(output.shape).to(dtype))
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_rows_at_any_distance_are_read(steps):
    x = torch.randn(3, 2, 2, 39, 16 * steps + 1).to(torch.bfloat16)[..., 1 : 1 + 16 * steps : steps].unbind()
    check([y.clone().requires_grad_() if steps > 1 else y.detach().requires_grad_() for y in x], 2e-2)


@pytest.mark.parametrize("sizes", [(1, 2, 1, 300, 300, 16, 16), (1, 1, 1, 777, 130, 64, 64), (3, 4, 4, 33, 65, 8, 24)])
def test_threads_change_nothing_that_matters(threads, sizes):
    x = tensors(torch.Generator().manual_seed(2), torch.float32, *sizes)
    settings = {"mask": Mask.causal(), "dropout": Dropout(0.2, 5)}
    check(x, 4e-6, **settings)
    first, again = (solve(x, "native", **settings) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_more_threads_than_the_library_takes_are_not_asked_for():
    before, x = torch.get_num_threads(), torch.randn(1, 2, 5, 8)
    wanted = attend(x, x, x, backend="native")
    torch.set_num_threads(2000)
    try:
        torch.testing.assert_close(attend(x, x, x, backend="native"), wanted)
    finally:
        torch.set_num_threads(before)


def test_several_python_threads_compute_at_once():
    x = tensors(torch.Generator().manual_seed(3), torch.float32, 2, 4, 2, 150, 150, 32, 32)
    alone = attend(*x, Mask.causal(), backend="native")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: attend(*x, Mask.causal(), backend="native"), range(32)))
    assert all(torch.equal(alone, other) for other in found)


def test_the_tiles_of_another_library_stay_as_they_were(isa):
    """AMX keeps one set of shapes a thread, and PyTorch's own products of bfloat16 count on theirs."""
    x = [y.detach() for y in tensors(torch.Generator().manual_seed(5), torch.bfloat16, 1, 2, 2, 70, 70, 24, 24)]
    left, right = torch.randn(2, 90, 90, generator=torch.Generator().manual_seed(6)).bfloat16()
    product, output = left @ right, attend(*x, backend="native")
    for _ in range(3):
        assert torch.equal(left @ right, product)
        assert torch.equal(attend(*x, backend="native"), output)


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
