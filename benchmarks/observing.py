"""What it costs to see every head: an attached model observed, beside itself, and beside eager attention's weights.

The models are BERT-base in shape with few layers, so that the weights of 4,096 tokens fit the memory; what is compared
is the same in each layer. The peer asks for `output_attentions` and computes the same statistics from the weights,
vectorised. A peak is the growth of a process of its own. --long observes a GPT-2-shaped body at 32,768 tokens.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import Tensor

from benchmarks.common import DTYPES, Contestant, Report, begin, options, side_by_side
from headwise import Statistics
from headwise.heads import observe
from headwise.integrations.transformers import attach

SIZES = {128: 8, 512: 2, 4096: 1}
"""Texts in a batch by their length."""
USUAL = Statistics(
    entropy=True, peak=True, distance=True, sink=1, diagonal=True, previous=True, next=True, local=2, map=16
)
PLAIN = Statistics(entropy=True, peak=True, distance=True, sink=1, diagonal=True, previous=True, next=True, local=2)
MORE = Statistics(
    entropy=True, peak=True, distance=True, sink=1, diagonal=True, received=True, previous=True, next=True,
    local=2, map=16, links=3,
)  # fmt: skip
WAYS = ("model", "observed", "observed, all", "weights")
LONG = 32_768


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--peak", nargs=3, metavar=("WAY", "LENGTH", "DTYPE"), help="measure one peak, and print it")
    chosen = parser.parse_args()
    transformers.logging.set_verbosity_error()
    sizes = {16: 2} if chosen.quick else SIZES
    if chosen.peak:
        way, length, dtype = chosen.peak[0], int(chosen.peak[1]), chosen.peak[2]
        print(json.dumps(peak(way, length, sizes.get(length, 1), dtype, chosen.layers)))
        return
    report = begin("Seeing every head: what it costs", chosen)
    report.line(f"- transformers: {transformers.__version__}; layers: {chosen.layers}")
    for dtype in chosen.dtype:
        if chosen.long:
            length = 64 if chosen.quick else LONG
            report.section(f"A GPT-2-shaped body, {dtype}, {length:,} tokens")
            report.table("way", "MB", "ms")
            found = peak_apart("long", length, dtype, chosen.layers, quick=chosen.quick)
            report.row("observed", found["megabytes"], found["milliseconds"])
        else:
            time_and_memory(report, dtype, sizes, chosen)


def time_and_memory(report: Report, dtype: str, sizes: dict[int, int], chosen: object) -> None:
    """Set times side by side, and the peaks of processes of their own."""
    columns = [f"{way} ms" for way in WAYS]
    report.section(f"Forward pass, {dtype}: time")
    report.line("observed: statistics of the same pass; all: with received, map and links; weights: eager attention.")
    report.table("texts x tokens", *columns, "observed / model", "all / model", "weights / all")
    for length, batch in sizes.items():
        took = side_by_side(contestants(dtype, length, batch, chosen.layers), 3 if length > 1000 else chosen.rounds)
        ratios = took["observed"] / took["model"], took["observed, all"] / took["model"]
        row = [took[way] for way in WAYS]
        report.row(f"{batch} x {length}", *row, *ratios, took["weights"] / took["observed, all"])
    report.section(f"Forward pass, {dtype}: growth of memory, MB")
    report.table("texts x tokens", *WAYS)
    for length, batch in sizes.items():
        found = [peak_apart(way, length, dtype, chosen.layers, quick=chosen.quick)["megabytes"] for way in WAYS]
        report.row(f"{batch} x {length}", *found)


def bert(length: int, dtype: str, layers: int, attention: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(num_hidden_layers=layers, max_position_embeddings=length)
    config._attn_implementation = attention
    return transformers.BertModel(config, add_pooling_layer=False).eval().to(DTYPES[dtype])


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(1000, 30_000, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def seen(model: torch.nn.Module, tokens_BT: Tensor, statistics: Statistics) -> object:
    with observe(model, statistics) as observer:
        model(tokens_BT)
    return observer


@torch.inference_mode()
def plain(model: torch.nn.Module, tokens_BT: Tensor) -> object:
    return model(tokens_BT)


@torch.inference_mode()
def from_weights(model: torch.nn.Module, tokens_BT: Tensor) -> list[dict[str, Tensor]]:
    """Compute the same statistics from all weights, each at once."""
    return [described(weights_BHQK) for weights_BHQK in model(tokens_BT, output_attentions=True).attentions]


def described(weights_BHQK: Tensor) -> dict[str, Tensor]:
    weights_BHQK = weights_BHQK.float()
    count = weights_BHQK.shape[-1]
    gap_QK = torch.arange(count)[:, None] - torch.arange(count)
    cells = torch.nn.functional.adaptive_avg_pool2d(weights_BHQK, 16) if count >= 16 else weights_BHQK
    found = {
        "entropy": torch.special.entr(weights_BHQK).sum(-1),
        "distance": (weights_BHQK * gap_QK.abs()).sum(-1),
        "sink": weights_BHQK[..., 0],
        "diagonal": weights_BHQK.diagonal(dim1=-2, dim2=-1),
        "previous": weights_BHQK.diagonal(-1, -2, -1),
        "next": weights_BHQK.diagonal(1, -2, -1),
        "local": (weights_BHQK * (gap_QK.abs() <= 2)).sum(-1),
        "peak": weights_BHQK.max(-1).values,
        "received": weights_BHQK.sum(-2),
        "links": weights_BHQK.topk(3, -1).values,
        "map": cells,
    }
    return {name: each.sum((0, 2)) for name, each in found.items()}


def calls(way: str, dtype: str, length: int, batch: int, layers: int) -> Callable[[], object]:
    """Build the model of a way, and give the call that is measured."""
    tokens_BT = tokens(batch, length)
    if way == "weights":
        eager = bert(length, dtype, layers, "eager")
        return lambda: from_weights(eager, tokens_BT)
    if way == "long":
        torch.manual_seed(0)
        config = transformers.GPT2Config(n_layer=layers, n_positions=length)
        body = attach(transformers.GPT2Model(config).eval().to(DTYPES[dtype]))
        return lambda: seen(body, tokens_BT, USUAL)
    model = attach(bert(length, dtype, layers, "sdpa"))
    statistics = {"observed": PLAIN, "observed, all": MORE}
    return (lambda: plain(model, tokens_BT)) if way == "model" else (lambda: seen(model, tokens_BT, statistics[way]))


def contestants(dtype: str, length: int, batch: int, layers: int) -> list[Contestant]:
    check(dtype, layers)
    return [Contestant(way, calls(way, dtype, length, batch, layers)) for way in WAYS]


def check(dtype: str, layers: int) -> None:
    """End where what is observed is not what the weights say, within the digits of the type."""
    tokens_BT, room = tokens(2, 16), {"float32": 1e-4, "bfloat16": 0.1}[dtype]
    rows = list(seen(attach(bert(16, dtype, layers, "sdpa")), tokens_BT, MORE).table().rows())
    expected = from_weights(bert(16, dtype, layers, "eager"), tokens_BT)
    for name in ("entropy", "sink", "distance", "local", "peak"):
        wanted = torch.cat([each[name] for each in expected]) / tokens_BT.numel()
        found = torch.tensor([row[name] for row in rows])
        if not float((found - wanted).abs().max()) <= room * float(wanted.abs().max()):
            sys.exit(f"{name}: observed and computed from the weights must agree; got {found} and {wanted}.")


def peak(way: str, length: int, batch: int, dtype: str, layers: int) -> dict[str, float]:
    """Run a call once, and give the growth of this process's memory in MB, and the milliseconds."""
    call = calls(way, dtype, length, batch, layers)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model, and that of the parent
    before = status("VmRSS")
    took = side_by_side([Contestant(way, call)], 1, 1)[way]
    return {"megabytes": (status("VmHWM") - before) / 1024, "milliseconds": took}


def status(name: str) -> int:
    """Read what Linux says of this process, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak_apart(way: str, length: int, dtype: str, layers: int, *, quick: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--peak", way, str(length), dtype, "--layers", str(layers)]
    done = subprocess.run(command + ["--quick"] * quick, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
