"""Compare output, gradients and statistics with float64, beside attention written out in PyTorch in the same type.

python benchmarks/accuracy.py --write

Law 1: err <= 2 x err_peer + 4 eps(dtype) x max|reference|. The program exits with 1 where a figure breaks it. The peer
in float64 is the reference itself with every sum taken in reverse: what rounding alone does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import DTYPES, Report, begin, options
from benchmarks.dense import (
    BATCH,
    CELLS,
    HEADS,
    LINKS,
    LOCAL,
    SINK,
    SLOPES,
    WIDTH,
    Case,
    Results,
    cases,
    written_backwards,
    written_out,
)
from headwise import Alibi, Statistics, attend

LENGTHS, QUICK_LENGTHS = (67, 263), (13,)
SEEDS = 3
NATIVE = ("float32", "bfloat16")
"""Types that the native kernel computes."""
MEASURED = Statistics.parse(
    f"entropy, peak, position, distance, sink={SINK}, diagonal, previous, next, local={LOCAL}, received, "
    f"map={CELLS}, links={LINKS}"
)


def with_gradients(compute: Callable[[list[Tensor]], Results], leaves: list[Tensor], given: list[Tensor]) -> Results:
    """Add the gradients of the inputs, through the output and through the entropy."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    results = compute(leaves)
    output, entropy = results["output"], results["entropy"]
    found = torch.autograd.grad(output, leaves, given[0].to(output.dtype), retain_graph=True)
    found += torch.autograd.grad(entropy, leaves[:2], given[1].to(entropy.dtype))
    names = [f"gradient of {x}" for x in ("query", "key", "value", "bias")[: len(leaves)]]
    names += [f"entropy's gradient of {x}" for x in ("query", "key")]
    return {name: x.detach() for name, x in (*results.items(), *zip(names, found, strict=True))}


def ours(case: Case, leaves: list[Tensor], backend: str) -> Results:
    query, key, value, *rest = leaves
    bias = rest[0] if rest else Alibi(SLOPES) if case.sloped else None
    held = {"bias": bias, "dropout": case.dropout or 0.0, "statistics": MEASURED, "backend": backend}
    output, seen = attend(query, key, value, case.mask, **held)
    return {"output": output} | {name.rpartition("_")[0]: x for name, x in vars(seen).items() if x is not None}


def exact(case: Case, leaves: list[Tensor]) -> Results:
    return written_out(case, *leaves, *([] if case.biased else [None]))[0]


def peer(case: Case, leaves: list[Tensor]) -> Results:
    if leaves[0].dtype != torch.float64:
        return exact(case, leaves)
    return written_backwards(case, *leaves, *([] if case.biased else [None]))


def weighed(results: Results, weights_BHQK: Tensor) -> Results:
    """Put in place of each key the weight that it truly has, as keys of equal weight may swap; all in float64."""
    named = {name: x.double() for name, x in results.items()}
    for name in ("peak_key", "link_key"):
        key = results[name]
        key_BHQN = key.unsqueeze(-1) if key.dim() == 3 else key
        named[name] = weights_BHQK.gather(-1, key_BHQN.clamp(min=0)).masked_fill(key_BHQN < 0, 0).reshape(key.shape)
    return named


def error(found: Tensor, wanted: Tensor) -> float:
    """Give the largest difference; infinite where one is NaN or infinite and the other is not."""
    gap = torch.where(found == wanted, 0, (found - wanted).abs())
    return float(gap.nan_to_num(nan=torch.inf).max())


class Finding(NamedTuple):
    """Hold one error beside the peer's and what law 1 allows."""

    share: float
    err: float
    peer: float
    allowed: float
    case: str


def backends(dtype: str) -> tuple[str, ...]:
    """List the backends that compute in a type."""
    return ("native", "fused", "reference") if dtype in NATIVE else ("fused", "reference")


def findings(case: Case, dtype: str, seed: int) -> Iterator[tuple[str, str, Finding]]:
    """Compare every result of every backend with float64: name, backend, finding."""
    torch.manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        # Of numbers with few digits float64 sums products exactly, so that the reference has no such error of its own.
        numbers = torch.randn(shape)
        return (numbers.bfloat16() if dtype == "float64" else numbers).to(DTYPES[dtype])

    sizes = ((HEADS, case.queries), (case.groups, case.keys), (case.groups, case.keys))
    leaves = [draw(BATCH, *size, WIDTH) for size in sizes]
    if case.biased:
        leaves.append(draw(1, HEADS, case.queries, case.keys))
    shape = BATCH, HEADS, case.queries
    given = [draw(*shape, WIDTH), draw(*shape)]
    precise = [x.double() for x in leaves]
    weights_BHQK = written_out(case, *precise, *([] if case.biased else [None]))[1]

    def run(compute: Callable[[list[Tensor]], Results], leaves: list[Tensor]) -> Results:
        return weighed(with_gradients(compute, leaves, given), weights_BHQK)

    wanted = run(lambda x: exact(case, x), precise)
    beside = run(lambda x: peer(case, x), leaves)
    eps = torch.finfo(DTYPES[dtype]).eps
    for backend in backends(dtype):
        found = run(lambda x, backend=backend: ours(case, x, backend), leaves)
        for name, want in wanted.items():
            err, other = error(found[name], want), error(beside[name], want)
            allowed = 2 * other + 4 * eps * float(want[want.isfinite()].abs().max())
            share = err / allowed if allowed else float("inf" if err else 0)
            yield name, backend, Finding(share, err, other, allowed, f"{case.name}, {case.keys}")


def measure(dtype: str, lengths: tuple[int, ...], seeds: int) -> dict[str, dict[str, list[Finding]]]:
    """Collect the findings of all cases by result and backend."""
    held: dict[str, dict[str, list[Finding]]] = {}
    for length in lengths:
        torch.manual_seed(length)
        for case in cases(length):
            for seed in range(seeds):
                for name, backend, finding in findings(case, dtype, seed):
                    held.setdefault(name, {x: [] for x in backends(dtype)})[backend].append(finding)
    return held


def table(report: Report, held: dict[str, dict[str, list[Finding]]]) -> list[str]:
    """Write the worst case of each result and backend, and list what breaks the law."""
    names = next(iter(held.values()))
    columns = [x for name in names for x in (f"{name} err", "its peer", "of allowed", f"{'worst case':<24}")]
    report.table(f"{'result':<27}", *columns)
    broken: list[str] = []
    for name, found in held.items():
        cells: list[str | float] = []
        for backend, tried in found.items():
            worst = max(tried)
            cells += [worst.err, worst.peer, f"{100 * worst.share:.0f} %", worst.case]
            over = [x for x in tried if not x.share <= 1]
            broken += [f"{backend}, {name}, {x.case}: {x.err:.2e}, allowed {x.allowed:.2e}" for x in over]
        report.row(name, *cells)
    return broken


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--dtype", choices=DTYPES, help="one type only")
    parser.add_argument("--lengths", type=lambda text: tuple(map(int, text.split(","))), help="N,... instead")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"inputs tried for each case (default: {SEEDS})")
    chosen = parser.parse_args()
    report = begin("Error against float64", chosen)
    lengths = chosen.lengths or (QUICK_LENGTHS if chosen.quick else LENGTHS)
    broken, tried = [], 0
    for dtype in (chosen.dtype,) if chosen.dtype else DTYPES:
        report.section(dtype)
        held = measure(dtype, lengths, 1 if chosen.quick else chosen.seeds)
        tried += sum(len(x) for found in held.values() for x in found.values())
        broken += [f"{dtype}, {line}" for line in table(report, held)]
    report.section("Law 1: err <= 2 x err_peer + 4 eps(dtype) x max|reference|")
    report.line(f"{len(broken)} exceptions in {tried:,} comparisons.")
    for line in broken:
        report.line(f"- {line}")
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
