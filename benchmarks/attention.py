"""Time attention and the multi-head layer beside PyTorch's, forward and backward, side by side in one run.

python benchmarks/attention.py --write
python benchmarks/attention.py --write --only fwd --section attend --name attention-forward
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import DTYPES, Contestant, Report, begin, geometric_mean, number, options, side_by_side
from headwise import Mask, MultiHeadAttention, attend

Shape = tuple[int, int, int, int]

SHAPES = "64x8x32x64,32x8x64x64,8x8x128x64,4x12x256x64,2x8x512x64,1x12x1024x64,1x8x2048x64,1x8x8192x64"
QUICK_SHAPES = "2x2x8x16,1x2x13x8"
LONGEST_OF_A_LAYER = 1024
CASES = ("no mask", "causal", "padded", "dropout 0.1")
PASSES = {"fwd": "forward", "fb": "fwd + bwd"}
TOLERANCE = {"float32": 1e-3, "bfloat16": 6e-2}
"""Largest difference between contestants that compute the same, beside the largest number."""

BAR, FLOOR, SHORT_FLOOR, SHORT_MS = 1.5, 0.95, 0.85, 0.1


class Setting(NamedTuple):
    """Name one row of a table."""

    phase: str
    dtype: str
    case: str
    shape: Shape

    @property
    def backward(self) -> bool:
        return self.phase == PASSES["fb"]

    @property
    def rate(self) -> float:
        return 0.1 if self.case == "dropout 0.1" else 0.0

    @property
    def lengths(self) -> Tensor:
        """Half of the samples, every second one, are half padding."""
        batch, _, length, _ = self.shape
        return torch.tensor([length // 2 if b % 2 == 0 else length for b in range(batch)])

    @property
    def mask(self) -> Mask | None:
        return {"causal": Mask.causal(), "padded": Mask.lengths(self.lengths)}.get(self.case)

    @property
    def padding(self) -> Tensor:
        """Tell which keys are padding: shape (B, T)."""
        return torch.arange(self.shape[2]) >= self.lengths[:, None]

    @property
    def cells(self) -> tuple[str, ...]:
        return (*self[:3], "x".join(map(str, self.shape)))


class Way(NamedTuple):
    """Hold one way to compute a row."""

    name: str
    run: Callable[[], Tensor]
    leaves: Sequence[Tensor]
    backend: SDPBackend | None = None

    def contestant(self, grad: Tensor | None) -> Contestant:
        """Make it a call to be timed; backward runs from `grad`, where there is one."""

        def call() -> Tensor:
            for leaf in self.leaves:
                leaf.grad = None
            output = self.run()
            if grad is not None:
                output.backward(grad)
            return output

        return Contestant(self.name, call, partial(self._context, grad is not None))

    @contextmanager
    def _context(self, backward: bool) -> Iterator[None]:
        with torch.inference_mode(not backward), nullcontext() if self.backend is None else sdpa_kernel(self.backend):
            yield


def attention_ways(setting: Setting) -> list[Way]:
    """List ours, PyTorch's default, its backends, and attention written out."""
    leaves = [torch.randn(setting.shape).to(DTYPES[setting.dtype]) for _ in range(3)]
    leaves = [x.requires_grad_(setting.backward) for x in leaves]
    seen = ~setting.padding[:, None, None] if setting.case == "padded" else None
    causal, rate = setting.case == "causal", setting.rate
    fused = partial(F.scaled_dot_product_attention, *leaves, seen, rate, causal)
    if causal:
        seen = torch.ones(setting.shape[2], setting.shape[2], dtype=torch.bool).tril()
    hidden = None if seen is None else ~seen
    return [
        Way("ours", partial(attend, *leaves, setting.mask, dropout=rate), leaves),
        Way("F.sdpa", fused, leaves),
        Way("FLASH", fused, leaves, SDPBackend.FLASH_ATTENTION),
        Way("MATH", fused, leaves, SDPBackend.MATH),
        Way("written", partial(written_out, *leaves, hidden, rate), leaves),
    ]


def written_out(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, rate: float) -> Tensor:
    """Compute softmax(QK)V in plain PyTorch."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = scores.softmax(-1)
    if rate:
        weights = F.dropout(weights, rate)
    return weights @ value


def layer_ways(setting: Setting) -> list[Way]:
    """List our layer and PyTorch's, with the same weights."""
    batch, heads, length, width = setting.shape
    model, dtype = heads * width, DTYPES[setting.dtype]
    peer = nn.MultiheadAttention(model, heads, dropout=setting.rate, batch_first=True).to(dtype)
    ours = MultiHeadAttention(model, heads, dropout=setting.rate).to(dtype)
    projections = zip(peer.in_proj_weight.chunk(3), peer.in_proj_bias.chunk(3), strict=True)
    with torch.no_grad():
        for mine, (weight, bias) in zip((ours.query, ours.key, ours.value), projections, strict=True):
            mine.weight.copy_(weight)
            mine.bias.copy_(bias)
    ours.output.load_state_dict(peer.out_proj.state_dict())
    x = torch.randn(batch, length, model).to(dtype).requires_grad_(setting.backward)
    causal = setting.case == "causal"
    told = {
        "need_weights": False,
        "key_padding_mask": setting.padding if setting.case == "padded" else None,
        "attn_mask": torch.ones(length, length, dtype=torch.bool).triu(1) if causal else None,
        "is_causal": causal,
    }
    for layer in (ours, peer):
        layer.train(setting.backward)
    return [
        Way("ours", partial(ours, x, mask=setting.mask), [x, *ours.parameters()]),
        Way("nn.MHA", lambda: peer(x, x, x, **told)[0], [x, *peer.parameters()]),
    ]


def results(ways: Sequence[Way], grad: Tensor | None, shared: int) -> dict[str, list[Tensor]]:
    """Run each way once: output and gradients of its first `shared` leaves; a backend that refuses is left out."""
    found = {}
    for way in ways:
        contestant = way.contestant(grad)
        with warnings.catch_warnings(), contestant.context():
            warnings.simplefilter("ignore", UserWarning)  # a backend warns of its reasons before it refuses
            try:
                output = contestant.call().detach()
            except RuntimeError as error:
                if way.backend is None or "No available kernel" not in str(error):
                    raise
                continue
        found[way.name] = [output, *(x.grad for x in way.leaves[:shared] if grad is not None)]
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
    """Time the ways of a row, after checking that they compute the same."""
    dtype = DTYPES[setting.dtype]
    grad = torch.randn(ways[0].run().shape).to(dtype) if setting.backward else None
    found = results(ways, grad, shared)
    if not setting.rate:
        check_same(found, TOLERANCE[setting.dtype])
    names = list(found)
    del found
    return side_by_side([way.contestant(grad) for way in ways if way.name in names], rounds)


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
    tried = [x for x in rows if x.setting[:3] == (PASSES["fb"], "bfloat16", "no mask") and x.setting.shape[2] <= 1024]
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


def settings_of(chosen: argparse.Namespace) -> list[Setting]:
    """List the rows that the options ask for."""
    phases = [PASSES[chosen.only]] if chosen.only else PASSES.values()
    dtypes = [chosen.dtype] if chosen.dtype else TOLERANCE
    shapes = chosen.shapes or shapes_of(QUICK_SHAPES if chosen.quick else SHAPES)
    return [Setting(a, b, c, d) for a in phases for b in dtypes for c in CASES for d in shapes]


def shapes_of(text: str) -> list[Shape]:
    """Read shapes such as `64x8x32x64,1x8x2048x64`."""
    shapes = [tuple(map(int, item.split("x"))) for item in text.split(",")]
    if any(len(shape) != 4 or min(shape) < 1 for shape in shapes):
        raise argparse.ArgumentTypeError(f"shapes must be written BxHxTxD,...; got {text!r}. 1x8x2048x64 is one.")
    return shapes


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", choices=PASSES, help="forward alone, or forward and backward together")
    parser.add_argument("--dtype", choices=TOLERANCE, help="one type only")
    parser.add_argument("--shapes", type=shapes_of, help="BxHxTxD,... in place of the usual ones")
    parser.add_argument("--section", choices=("attend", "layer"), help="one section only")
    chosen = parser.parse_args()
    settings = settings_of(chosen)
    report = begin("Attention beside PyTorch's", chosen)
    if chosen.section != "layer":
        report.section("headwise.attend")
        rows = section(report, settings, ("F.sdpa", "FLASH", "MATH", "written"), chosen.rounds)
        judge(report, rows)
    if chosen.section != "attend":
        report.section("headwise.MultiHeadAttention beside nn.MultiheadAttention")
        # Layers drop nothing in evaluation, so dropout has no forward row.
        short = [x for x in settings if x.shape[2] <= LONGEST_OF_A_LAYER and (x.backward or not x.rate)]
        section(report, short, ("nn.MHA",), chosen.rounds)


if __name__ == "__main__":
    main()
