"""Measure what exact statistics cost: memory from 1 to 32 thousand tokens, and time, beside materialised weights.

python benchmarks/statistics.py --write

Memory is measured in a fresh process a figure: the highest resident size during the call less the resident size
before it, after the inputs were made and a small call has warmed the library up.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import DTYPES, Contestant, Report, begin, number, options, side_by_side
from headwise import Statistics, attend

HEADS, WIDTH = 8, 64
TOKENS, TIMED_TOKENS = (1024, 2048, 4096, 8192, 16384, 32768), (512, 2048, 8192)
QUICK_TOKENS, QUICK_TIMED_TOKENS = (256, 512), (64,)
TYPES = ("bfloat16", "float32")
WARM_UP_TOKENS = 128
LARGEST = 12e9
"""Bytes from which on weights are not materialised."""
MATRICES = 3
"""Matrices of heads x tokens x tokens float32 that exist at once: scores or weights, and what is made of them."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}

SINK, LOCAL, CELLS, LINKS = 1, 8, 64, 4
SAME_PASS = f"lse, entropy, peak, position, distance, sink={SINK}, diagonal, previous, next, local={LOCAL}"
ALL = Statistics.parse(f"{SAME_PASS}, received, map={CELLS}, links={LINKS}")

Results = dict[str, Tensor]


def ours(query: Tensor, key: Tensor, value: Tensor) -> Results:
    """Compute attention with all statistics."""
    output, seen = attend(query, key, value, statistics=ALL)
    return {"output_BHQE": output} | {name: x for name, x in vars(seen).items() if x is not None}


def materialised(query: Tensor, key: Tensor, value: Tensor) -> Results:
    """Compute the same from float32 weights that are kept whole, in plain PyTorch."""
    scores_BHQK = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-1, -2)
    lse_BHQ = scores_BHQK.logsumexp(-1)
    weights_BHQK = scores_BHQK.softmax(-1)
    del scores_BHQK
    output_BHQE = (weights_BHQK @ value.float()).to(value.dtype)
    return {"output_BHQE": output_BHQE, "lse_BHQ": lse_BHQ} | numbers_of(weights_BHQK)


def numbers_of(weights_BHQK: Tensor) -> Results:
    """Compute every statistic from the weights, each in the fastest plain way we know."""
    length = weights_BHQK.shape[-1]
    place = torch.arange(length)
    distance_QK = (place - place[:, None]).abs()
    cell_KP = F.one_hot(place * CELLS // length, CELLS).float()
    peak, peak_key = weights_BHQK.max(-1)
    link_weight, link_key = weights_BHQK.topk(LINKS, -1)
    return {
        "entropy_BHQ": torch.special.entr(weights_BHQK).sum(-1),
        "peak_BHQ": peak,
        "peak_key_BHQ": peak_key,
        "position_BHQ": weights_BHQK @ place.float(),
        "distance_BHQ": (weights_BHQK * distance_QK).sum(-1),
        "sink_BHQ": weights_BHQK[..., :SINK].sum(-1),
        "diagonal_BHQ": weights_BHQK.diagonal(0, -2, -1).clone(),
        "previous_BHQ": F.pad(weights_BHQK.diagonal(-1, -2, -1), (1, 0)),
        "next_BHQ": F.pad(weights_BHQK.diagonal(1, -2, -1), (0, 1)),
        "local_BHQ": sum(F.pad(weights_BHQK.diagonal(n, -2, -1), _missing(n)) for n in range(-LOCAL, LOCAL + 1)),
        "received_BHK": weights_BHQK.sum(-2),
        "map_BHPP": cell_KP.T @ (weights_BHQK @ cell_KP),
        "map_count_BHP": cell_KP.sum(0).long().expand(*weights_BHQK.shape[:2], CELLS).clone(),
        "link_weight_BHQN": link_weight,
        "link_key_BHQN": link_key,
    }


def _missing(offset: int) -> tuple[int, int]:
    """Count the rows that a diagonal lacks at its start and its end."""
    return max(-offset, 0), max(offset, 0)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Results]] = {"ours": ours, "materialised": materialised}


def inputs(tokens: int, dtype: str) -> list[Tensor]:
    return [torch.randn(1, HEADS, tokens, WIDTH).to(DTYPES[dtype]) for _ in range(3)]


def check_same(dtype: str, tokens: int) -> None:
    """Raise unless both ways give the same numbers; near ties may give other keys, so their weights speak for keys."""
    given = inputs(tokens, dtype)
    found, wanted = ours(*given), materialised(*given)
    if missing := found.keys() ^ wanted.keys():
        raise AssertionError(f"not computed by both: {sorted(missing)}")
    for name, want in wanted.items():
        error, size = float((found[name] - want).abs().max()), float(want.abs().max())
        if "key_" not in name and not error <= TOLERANCE[dtype] * max(size, 1):
            raise AssertionError(f"{name} differs by {error:.1e} of {size:.1e}")


def needed(tokens: int) -> float:
    """Estimate the bytes that materialising takes."""
    return MATRICES * 4.0 * HEADS * tokens**2


def measure_here(way: str, tokens: int, dtype: str) -> dict[str, int]:
    """Measure one call in this process, which must be fresh: bytes."""
    with torch.inference_mode():
        WAYS[way](*inputs(WARM_UP_TOKENS, dtype))
        given = inputs(tokens, dtype)
        before = resident()
        results = WAYS[way](*given)
        extra = highest() - before
    given_bytes, found_bytes = (sum(x.nbytes for x in held) for held in (given, results.values()))
    return {"extra": extra, "inputs": given_bytes, "results": found_bytes}


def resident() -> int:
    """Give the bytes that this process holds now, and forget the highest so far where the system can."""
    with suppress(OSError):
        # ru_maxrss starts from the parent's peak, which exec hands on; the kernel's own mark can be set back.
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def highest() -> int:
    """Give the most bytes that this process has held."""
    return _status("VmHWM")


def _status(field: str) -> int:
    """Read a field of /proc/self/status in bytes; without /proc, the peak stands for both."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def measure_apart(way: str, tokens: int, dtype: str, threads: int) -> dict[str, int]:
    """Measure one call in a fresh process."""
    words = ["--child", way, "--tokens", str(tokens), "--dtype", dtype, "--threads", str(threads)]
    # glibc keeps freed blocks for later: what making the inputs left behind would hide what the call takes.
    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=given_back)
    return json.loads(done.stdout)


def memory(report: Report, tokens: Sequence[int], dtypes: Sequence[str], threads: int) -> None:
    """Tabulate the extra memory of all statistics, and say how straight its line is."""
    report.section("Peak extra memory of a call with all statistics")
    report.line(f"1 sequence, {HEADS} heads of width {WIDTH}; {ALL}. Extra: output and statistics count too.")
    columns = ("extra MB", "of it results MB", "inputs + results MB", "extra / those", "materialised MB")
    report.table("dtype", "tokens", *columns, first=2)
    found: dict[str, list[float]] = {}
    for dtype in dtypes:
        for count in tokens:
            mine = measure_apart("ours", count, dtype, threads)
            both = mine["inputs"] + mine["results"]
            other: str | float = f"not run: needs {needed(count) / 1e9:.0f} GB"
            if needed(count) <= LARGEST:
                other = measure_apart("materialised", count, dtype, threads)["extra"] / 1e6
            sizes = (mine["extra"] / 1e6, mine["results"] / 1e6, both / 1e6)
            report.row(dtype, f"{count:,}", *sizes, mine["extra"] / both, other)
            found.setdefault(dtype, []).append(mine["extra"])
    for dtype, extra in found.items() if len(tokens) > 2 else ():
        report.line(f"{dtype}: {straightness(tokens, extra)}")


def straightness(tokens: Sequence[int], extra: Sequence[float]) -> str:
    """Fit a straight line by least squares, and say how far the figures lie from it."""
    x, y = torch.tensor(tokens, dtype=torch.float64), torch.tensor(extra, dtype=torch.float64)
    slope, start = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution.flatten().tolist()
    off = (y - slope * x - start).abs()
    where = int(off.argmax())
    line = f"{number(start / 1e6)} MB + {number(slope / 1e3)} KB per token"
    share = f"{100 * float(off[where] / y.max()):.1f} % of the largest figure, at {tokens[where]:,} tokens"
    return f"line {line}; farthest from it by {number(float(off[where]) / 1e6)} MB ({share})."


def time(report: Report, tokens: Sequence[int], dtypes: Sequence[str], rounds: int) -> None:
    """Tabulate the time of statistics beside none and beside materialising."""
    report.section("Time of a call with statistics")
    report.line(f"Same pass: {SAME_PASS}. All: received, map={CELLS} and links={LINKS} too, in a second pass.")
    columns = ("none ms", "same pass ms", "all ms", "materialised ms", "same pass / none", "all / none")
    report.table("dtype", "tokens", *columns, "x materialised", first=2)
    for dtype in dtypes:
        check_same(dtype, min(tokens))
        for count in tokens:
            given = inputs(count, dtype)
            calls = {"none": partial(attend, *given), "all": partial(ours, *given)}
            calls["same pass"] = partial(attend, *given, statistics=Statistics.parse(SAME_PASS))
            if needed(count) <= LARGEST:
                calls["materialised"] = partial(materialised, *given)
            ways = [Contestant(name, call, torch.inference_mode) for name, call in calls.items()]
            took = side_by_side(ways, rounds)
            none, same, every, other = (took.get(name) for name in ("none", "same pass", "all", "materialised"))
            ratio = None if other is None else other / every
            report.row(dtype, f"{count:,}", none, same, every, other, same / none, every / none, ratio)


def parsed() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--only", choices=("memory", "time"), help="one section only")
    parser.add_argument("--dtype", choices=TYPES, help="one type only")
    parser.add_argument("--tokens", type=lambda text: tuple(map(int, text.split(","))), help="N,... instead")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    chosen = parsed()
    if chosen.child:
        torch.set_num_threads(chosen.threads)
        print(json.dumps(measure_here(chosen.child, chosen.tokens[0], chosen.dtype)))
        return
    report = begin("Exact statistics: memory and time", chosen)
    dtypes = (chosen.dtype,) if chosen.dtype else TYPES
    if chosen.only != "time":
        memory(report, chosen.tokens or (QUICK_TOKENS if chosen.quick else TOKENS), dtypes, chosen.threads)
    if chosen.only != "memory":
        timed = chosen.tokens or (QUICK_TIMED_TOKENS if chosen.quick else TIMED_TOKENS)
        time(report, timed, dtypes, chosen.rounds)


if __name__ == "__main__":
    main()
