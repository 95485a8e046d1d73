"""Measure the GPU kernel beside PyTorch's own, FlexAttention and written-out attention, on a CUDA GPU.

python benchmarks/gpu.py --write

Prints TFLOP/s of forward and of forward with backward, what statistics cost, errors against float64, and memory at
length. Without a GPU only `--quick` runs: toy sizes in Triton's interpreter, whose times mean nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"  # before Triton is imported

from benchmarks.common import Contestant, Report, begin, options, side_by_side
from headwise import Mask, Statistics, attend

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
PASSING = Statistics.parse("lse, entropy, peak, position, distance, sink=1, diagonal, previous, next, local=8")
SECOND = Statistics(received=True, map=64 if ON_GPU else 2)
OURS = {"ours": None, "ours, statistics": PASSING, "ours, received and map": SECOND}
PEERS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
SHAPES = ((16, 16, 64), (16, 16, 128), (32, 8, 128))
"""Query heads, groups, width."""
TOKENS = (2048, 4096, 8192, 16384)
MOST_WRITTEN = 8192
"""Tokens up to which attention is written out: its weights are whole matrices."""
LONG = 131_072

Call = Callable[[], object]


def inputs(heads: int, groups: int, tokens: int, width: int, *, training: bool = False) -> list[Tensor]:
    """Make queries, keys and values; of 16,384 tokens in all, so that each call has enough to do."""
    samples = max(1, 16384 // tokens) if ON_GPU else 1
    dtype = torch.bfloat16 if ON_GPU else torch.float16
    shapes = ((samples, n, tokens, width) for n in (heads, groups, groups))
    return [torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=training) for shape in shapes]


def ours(x: list[Tensor], causal: bool, asked: Statistics | None) -> Tensor:
    mask = Mask.causal() if causal else None
    if asked is None:
        return attend(*x, mask, backend="triton")
    return attend(*x, mask, statistics=asked, backend="triton")[0]


def fused(x: list[Tensor], causal: bool, kernel: SDPBackend) -> Tensor:
    with sdpa_kernel(kernel):
        settings = {"is_causal": causal, "enable_gqa": x[0].shape[1] != x[1].shape[1]}
        return torch.nn.functional.scaled_dot_product_attention(*x, **settings)


def written(x: list[Tensor], causal: bool) -> Tensor:
    """Write attention out, with the entropy and the received attention that users most often take from weights."""
    key_BHKD, value_BHKE = (y.repeat_interleave(x[0].shape[1] // y.shape[1], 1) for y in x[1:])
    scores_BHQK = x[0] @ key_BHKD.transpose(-1, -2) * x[0].shape[-1] ** -0.5
    if causal:
        scores_BHQK = scores_BHQK.masked_fill(~Mask.causal().visible(*scores_BHQK.shape[2:], device=DEVICE), -torch.inf)
    weights_BHQK = scores_BHQK.softmax(-1)
    with torch.no_grad():
        torch.special.entr(weights_BHQK).sum(-1), weights_BHQK.sum(-2)
    return weights_BHQK @ value_BHKE


def flex(x: list[Tensor], causal: bool) -> Callable[[], Tensor]:
    """Prepare compiled FlexAttention."""
    tokens = x[0].shape[2]
    seen = create_block_mask(_is_seen, None, None, tokens, tokens, device=DEVICE) if causal else None
    compiled = torch.compile(flex_attention)
    return lambda: compiled(*x, block_mask=seen, enable_gqa=x[0].shape[1] != x[1].shape[1])


def _is_seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


def ways(x: list[Tensor], causal: bool) -> dict[str, Callable[[], Tensor]]:
    """List the contestants that this machine has."""
    found: dict[str, Callable[[], Tensor]] = {name: partial(ours, x, causal, asked) for name, asked in OURS.items()}
    if ON_GPU:
        found |= {name: partial(fused, x, causal, kernel) for name, kernel in PEERS.items()}
        found["flex"] = flex(x, causal)
    if x[0].shape[2] <= MOST_WRITTEN:
        found["written"] = partial(written, x, causal)
    return found


def call_of(way: Callable[[], Tensor], x: list[Tensor]) -> Call:
    """Make a call that ends when the GPU has ended, with the backward pass where inputs want gradients."""

    def call() -> None:
        output = way()
        if x[0].requires_grad:
            torch.autograd.grad(output, x, torch.ones_like(output))
        if ON_GPU:
            torch.cuda.synchronize()

    return call


def speed(report: Report, rounds: int, quick: bool) -> None:
    """Compare speeds: 4 products of a matrix forward, 10 more backward in half of them again where causal."""
    shapes = ((2, 1, 32, 16),) if quick else tuple((h, g, t, d) for h, g, d in SHAPES for t in TOKENS)
    report.section("Speed, TFLOP/s")
    report.table("pass", "shape", "mask", "way", "ms", "TFLOP/s", first=4)
    for training in (False, True):
        for heads, groups, tokens, width in shapes:
            for causal in (False, True):
                x = inputs(heads, groups, tokens, width, training=training)
                calls = [Contestant(name, call_of(way, x)) for name, way in ways(x, causal).items()]
                work = x[0].shape[0] * heads * tokens**2 * width * (14 if training else 4) / (2 if causal else 1)
                for name, took in side_by_side(calls, rounds, 1).items():
                    told = "forward and backward" if training else "forward", f"{heads}/{groups} x {tokens} x {width}"
                    report.row(*told, "causal" if causal else "none", name, took, work / took / 1e9)


def errors(report: Report, quick: bool) -> None:
    """Compare errors against float64, in the output and in every gradient; fail where one is far off."""
    report.section("Largest error against float64")
    report.table("way", "result", "error", "of", first=2)
    x = inputs(2, 1, 17 if quick else 509, 16 if quick else 64, training=True)
    exact = [y.detach().double().requires_grad_() for y in x]
    wanted = _results(partial(written, exact, True), exact)
    found = {name: _results(way, x) for name, way in ways(x, True).items()}
    for name, results in found.items():
        for part, mine, right in zip(("output", "query", "key", "value"), results, wanted, strict=True):
            error, size = float((mine.double() - right).abs().max()), float(right.abs().max())
            report.row(name, part, error, size)
            if not error <= 2e-2 * (1 + size):
                raise AssertionError(f"{name}, {part}: off by {error:.2g} of {size:.2g}")


def _results(way: Callable[[], Tensor], x: list[Tensor]) -> list[Tensor]:
    output = way()
    return [output.detach(), *torch.autograd.grad(output, x, torch.ones_like(output))]


def memory(report: Report, tokens: int) -> None:
    """Tell the memory of one long call with all statistics of one pass."""
    report.section("Memory of one long call with statistics")
    report.table("tokens", "ms", "MB", first=1)
    x = inputs(2, 1, tokens, 64 if ON_GPU else 16)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    took = side_by_side([Contestant("ours", call_of(partial(ours, x, True, PASSING), x))], 1, 1)["ours"]
    report.row(f"{tokens:,}", took, torch.cuda.max_memory_allocated() / 1e6 if ON_GPU else None)


def main() -> None:
    chosen = options(__doc__).parse_args()
    if not (ON_GPU or chosen.quick):
        raise SystemExit("a CUDA GPU must be there; got none. Pass --quick to try the program in the interpreter.")
    report = begin("The GPU kernel", chosen)
    report.line(
        f"- GPU: {torch.cuda.get_device_name() if ON_GPU else 'none; the interpreter, whose times mean nothing'}"
    )
    errors(report, chosen.quick)
    speed(report, chosen.rounds, chosen.quick)
    memory(report, 64 if chosen.quick else LONG)


if __name__ == "__main__":
    main()
