"""Time attention and the multi-head layer beside PyTorch's, forward and backward, side by side in one run.

python benchmarks/attention.py --write
python benchmarks/attention.py --write --only fwd --section attend --name attention-forward
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.attention_ways import CASES, PASSES, Setting, Shape, Way, attention_ways, layer_ways
from benchmarks.common import DTYPES, Contestant, Report, begin, geometric_mean, number, options, side_by_side

SHAPES = (
    "64x8x32x64,32x8x64x64,8x8x128x64,4x12x256x64,2x8x512x64,1x12x1024x64,1x8x2048x64,1x8x8192x64,"
    "4x8x256x32,1x16x1024x128,2x6x512x80,1x32/8x1024x64"
)
SINGLE_QUERIES = "1x8x1:512x64,1x8x1:4096x64,1x8x1:32768x64"
QUICK_SHAPES = "2x2x8x16,1x4/2x13x8"
QUICK_SINGLE_QUERIES = "1x2x1:9x8"
SHAPES_OF_SHARES = "1x8x2048x64,1x8x8192x64,1x8x2048x128"
SQUARES = (1024, 2048, 4096)
LONGEST_OF_A_LAYER = 1024
TOLERANCE = {"float32": 1e-3, "bfloat16": 6e-2}
"""Largest difference between contestants that compute the same, beside the largest number."""

HOPELESS = 4
"""A way that takes so many times as long as the fastest, and more than a second, is timed by one call."""

BAR, FLOOR, SHORT_FLOOR, SHORT_MS = 1.5, 0.95, 0.85, 0.1


def results(ways: Sequence[Way], grad: Tensor | None, shared: int) -> dict[str, tuple[float, list[Tensor]]]:
    """Run each way once: seconds, output and gradients of its first `shared` leaves; one that refuses is left out."""
    found = {}
    for way in ways:
        contestant = way.contestant(grad)
        with warnings.catch_warnings(), contestant.context():
            warnings.simplefilter("ignore", UserWarning)  # a backend warns of its reasons before it refuses
            start = time.perf_counter()
            try:
                output = contestant.call().detach()
            except RuntimeError as error:
                if way.backend is None or "No available kernel" not in str(error):
                    raise
                continue
            took = time.perf_counter() - start
        found[way.name] = took, [output, *(x.grad for x in way.leaves[:shared] if grad is not None)]
    return found


def check_same(found: dict[str, list[Tensor]], tolerance: float) -> None:
    """Raise unless all ways give the same as the first peer."""
    wanted = list(found.values())[1]
    for name, given in found.items():
        for i, (have, want) in enumerate(zip(given, wanted, strict=True)):
            error, size = float((have - want).abs().max()), float(want.abs().max())
            if not error <= tolerance * size:
                raise AssertionError(f"{name}: result {i} differs by {error:.1e} of {size:.1e}")


def measure(setting: Setting, ways: Sequence[Way], shared: int, rounds: int) -> dict[str, float]:
    """Time the ways of a row, after checking that they compute the same; hopeless ones get one call more."""
    dtype = DTYPES[setting.dtype]
    grad = torch.randn(ways[0].run().shape).to(dtype) if setting.backward else None
    found = results(ways, grad, shared)
    if not setting.rate:
        check_same({name: tensors for name, (_, tensors) in found.items()}, TOLERANCE[setting.dtype])
    first = {name: seconds for name, (seconds, _) in found.items()}
    del found
    limit = max(1, HOPELESS * min(first.values()))
    slow = [way for way in ways if first.get(way.name, 0) > limit]
    # Once more: what a process does for the first time takes longer.
    again = {name: seconds for name, (seconds, _) in results(slow, grad, shared).items()}
    once = {name: 1e3 * seconds for name, seconds in again.items() if seconds > limit}
    names = first.keys() - once.keys()
    return once | side_by_side([way.contestant(grad) for way in ways if way.name in names], rounds)


class Row(NamedTuple):
    """Hold what a row found: milliseconds of ours, of the first peer and of the fastest one."""

    setting: Setting
    ours: float
    first: float
    best: float

    @property
    def floor(self) -> float:
        return SHORT_FLOOR if self.best < SHORT_MS else FLOOR


def section(report: Report, settings: Sequence[Setting], peers: Sequence[str], rounds: int) -> list[Row]:
    """Run one section's rows: attention where there are several peers, else the layer."""
    many = len(peers) > 1
    ratios = (f"x {peers[0]}", "x best") if many else (f"x {peers[0]}",)
    report.table("pass", "dtype", "case", "shape BxHxTxD", "ours ms", *(f"{x} ms" for x in peers), *ratios, first=4)
    rows = []
    for setting in settings:
        ways = attention_ways(setting) if many else layer_ways(setting)
        took = measure(setting, ways, 3 if many else 1, rounds)
        row = Row(setting, took["ours"], took[peers[0]], min(took[x] for x in peers if x in took))
        found = (row.first / row.ours, row.best / row.ours)[: len(ratios)]
        report.row(*setting.cells, row.ours, *(took.get(x) for x in peers), *found)
        rows.append(row)
    summary(report, rows, ratios)
    return rows


def summary(report: Report, rows: Sequence[Row], ratios: Sequence[str]) -> None:
    """Average the ratios of each group of rows."""
    report.line("Geometric means of each group, and the least of each:")
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.setting[:3]].append(row)
    report.table("pass", "dtype", "case", *ratios, *(f"least {x}" for x in ratios), first=3)
    for name, held in groups.items():
        found = [[x.first / x.ours for x in held], [x.best / x.ours for x in held]][: len(ratios)]
        report.row(*name, *map(geometric_mean, found), *map(min, found))


def judge(report: Report, rows: Sequence[Row]) -> None:
    """Hold the rows against the bar."""
    tried = [x for x in rows if x.setting[:3] == (PASSES["fb"], "bfloat16", "no mask") and x.setting.shape.keys <= 1024]
    if tried:
        mean = geometric_mean(x.first / x.ours for x in tried)
        verdict = "met" if mean >= BAR else "missed"
        where = "forward + backward, bf16, up to 1,024 tokens, no mask"
        report.line(f"Bar {verdict}: {where}: {number(mean)}x of the default; at least {BAR}x wanted.")
    below = [x for x in rows if x.best / x.ours < x.floor]
    wanted = f"{FLOOR}x of PyTorch's best path ({SHORT_FLOOR}x where that takes less than {1e3 * SHORT_MS:.0f} us)"
    report.line(f"Floor {'missed' if below else 'met'}: {len(below)} of {len(rows)} rows below {wanted}.")
    for x in below:
        report.line(f"- {', '.join(x.setting.cells)}: {number(x.best / x.ours)}x")


def shares(report: Report, dtypes: Sequence[str], shapes: Sequence[Shape], sizes: Sequence[int], rounds: int) -> None:
    """Tabulate the operations a second of full attention beside those of the best square product."""
    report.section("Operations a second, beside the best square product's")
    report.line("Attention counts 4 B H Q K D operations, a product of n x n matrices 2 n^3. G: thousand million.")
    report.table("dtype", "shape BxHxTxD", "attention G/s", "F.sdpa G/s", "product G/s", "its n", "share", first=2)
    for dtype in dtypes:
        for shape in shapes:
            ours, peer, *_ = attention_ways(Setting(PASSES["fwd"], dtype, "no mask", shape))
            squares = {str(n): torch.randn(n, n).to(DTYPES[dtype]) for n in sizes}
            products = [Contestant(n, partial(torch.mm, x, x), torch.inference_mode) for n, x in squares.items()]
            took = side_by_side([ours.contestant(None), peer.contestant(None), *products], rounds)
            count = 4 * shape.batch * shape.heads * shape.queries * shape.keys * shape.width
            rates = {n: 2 * int(n) ** 3 / took[n] / 1e6 for n in squares}
            best = max(rates, key=lambda n: rates[n])
            mine, other = count / took[ours.name] / 1e6, count / took[peer.name] / 1e6
            report.row(dtype, str(shape), mine, other, rates[best], int(best), mine / rates[best])


def settings_of(chosen: argparse.Namespace) -> list[Setting]:
    """List the rows that the options ask for; single queries come forward and without a mask."""
    phases = [PASSES[chosen.only]] if chosen.only else list(PASSES.values())
    cases = [chosen.case] if chosen.case else CASES
    shapes, single = shapes_of(QUICK_SHAPES), shapes_of(QUICK_SINGLE_QUERIES)
    if not chosen.quick:
        shapes, single = shapes_of(SHAPES), shapes_of(SINGLE_QUERIES)
    held = chosen.shapes or [*shapes, *single]
    rows = [Setting(a, b, c, d) for a in phases for b in dtypes_of(chosen) for c in cases for d in held]
    plain = PASSES["fwd"], "no mask"
    return [x for x in rows if x.shape.queries == x.shape.keys or (x.phase, x.case) == plain]


def dtypes_of(chosen: argparse.Namespace) -> list[str]:
    return [chosen.dtype] if chosen.dtype else list(TOLERANCE)


def shapes_of(text: str) -> list[Shape]:
    """Read shapes such as `64x8x32x64,1x32/8x2048x64,1x8x1:4096x64`."""
    try:
        shapes = [Shape.read(item) for item in text.split(",")]
    except ValueError:
        shapes = []
    if not shapes or min(map(min, shapes)) < 1:
        raise argparse.ArgumentTypeError(f"shapes must be written BxHxTxD,...; got {text!r}. 1x8x2048x64 is one.")
    return shapes


def is_of_a_layer(setting: Setting) -> bool:
    """Tell whether a layer has this row: it drops nothing in evaluation, and PyTorch's has no groups."""
    shape, drops = setting.shape, setting.rate and not setting.backward
    whole = shape.groups == shape.heads and shape.queries == shape.keys
    return whole and shape.keys <= LONGEST_OF_A_LAYER and not drops


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", choices=PASSES, help="forward alone, or forward and backward together")
    parser.add_argument("--dtype", choices=TOLERANCE, help="one type only")
    parser.add_argument("--case", choices=CASES, help="one case only")
    parser.add_argument("--shapes", type=shapes_of, help="BxHxTxD,... in place of the usual ones")
    parser.add_argument("--section", choices=("attend", "layer", "share"), help="one section only")
    chosen = parser.parse_args()
    settings = settings_of(chosen)
    report = begin("Attention beside PyTorch's", chosen)
    if chosen.section in (None, "attend"):
        report.section("headwise.attend")
        rows = section(report, settings, ("F.sdpa", "FLASH", "MATH", "written", "sliced"), chosen.rounds)
        judge(report, rows)
    if chosen.section in (None, "layer"):
        report.section("headwise.MultiHeadAttention beside nn.MultiheadAttention")
        section(report, list(filter(is_of_a_layer, settings)), ("nn.MHA",), chosen.rounds)
    if chosen.section in (None, "share"):
        shapes = chosen.shapes or shapes_of(QUICK_SHAPES if chosen.quick else SHAPES_OF_SHARES)
        shares(report, dtypes_of(chosen), shapes, (32, 64) if chosen.quick else SQUARES, chosen.rounds)


if __name__ == "__main__":
    main()
