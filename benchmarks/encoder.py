"""MiniLM in headwise's modules against transformers: the same hidden states, and how fast.

The sentences are the first 1,000 of SST-2's dev and test files, in the folder that HEADWISE_DATA names; their tokens
fill the texts of the timings; --quick needs no file. A ratio is the peer's time over ours: above 1, ours is faster.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import Tensor

from benchmarks.common import DTYPES, Contestant, Report, begin, geometric_mean, options, side_by_side
from headwise import Encoder, load_encoder
from headwise.models import locate

SENTENCES, BATCH = 1_000, 50
SIZES = {32: 32, 128: 16, 512: 4}
"""Texts in a batch by their length."""
PEERS = ("sdpa", "eager")
FEW = ["a gripping , funny and deeply moving film .", "no .", "the plot is thin , and the jokes are thinner ."] * 4
MOST_DIFFERENT = 1e-4
"""Hidden states are of the size of 1; float32 rounding through six layers gives some 1e-6."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="*", default=["float32", "bfloat16"])
    chosen = parser.parse_args()
    report = begin("MiniLM: headwise against transformers", chosen)
    report.line(f"- transformers: {transformers.__version__}")
    transformers.logging.set_verbosity_error()
    texts = FEW if chosen.quick else sentences(SENTENCES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(locate("minilm"))
    batches = [encoded(tokenizer, texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
    agreement(report, batches, len(texts))
    pool = torch.cat([tokens[row, :n] for tokens, length in batches for row, n in enumerate(length.tolist())])
    for dtype in chosen.dtype:
        speed(report, dtype, pool, chosen.rounds, quick=chosen.quick)


def sentences(count: int) -> list[str]:
    """Read the first sentences of SST-2's dev and test files, in turn, as people write them."""
    data = os.environ.get("HEADWISE_DATA")
    if data is None:
        sys.exit("the sentences must be in the folder that HEADWISE_DATA names; got no such variable. Set it.")
    found: list[str] = []
    for name in ("dev", "test"):
        with Path(data, "sst", f"sst2.{name}.tsv").open(encoding="utf-8", newline="") as file:
            found += [row["text"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return found[:count]


def encoded(tokenizer: Callable[..., dict[str, Tensor]], texts: list[str]) -> tuple[Tensor, Tensor]:
    given = tokenizer(texts, padding=True, return_tensors="pt")
    return given["input_ids"], given["attention_mask"].sum(1)


def peer(attention: str) -> torch.nn.Module:
    return transformers.AutoModel.from_pretrained(locate("minilm"), attn_implementation=attention).eval()


@torch.inference_mode()
def agreement(report: Report, batches: list[tuple[Tensor, Tensor]], count: int) -> None:
    """Compare the hidden states of every valid token; texts are padded to the longest of their batch."""
    ours = load_encoder("minilm")
    report.section(f"Hidden states of {count:,} SST sentences, float32")
    report.table("peer", "tokens", "largest", "mean size", "largest difference")
    for name in PEERS:
        theirs, most, largest, sizes, tokens = peer(name), 0.0, 0.0, 0.0, 0
        for tokens_BT, length_B in batches:
            valid_BT = torch.arange(tokens_BT.shape[1]) < length_B[:, None]
            expected = theirs(tokens_BT, attention_mask=valid_BT.long()).last_hidden_state[valid_BT]
            most = max(most, float((ours(tokens_BT, length_B)[valid_BT] - expected).abs().max()))
            largest, sizes = max(largest, float(expected.abs().max())), sizes + float(expected.abs().sum())
            tokens += expected.shape[0]
        report.row(name, f"{tokens:,}", largest, sizes / tokens / expected.shape[1], most)
        if not most < MOST_DIFFERENT:
            sys.exit(f"{name}: hidden states must differ by less than {MOST_DIFFERENT}; got {most}.")


@torch.inference_mode()
def speed(report: Report, dtype: str, pool: Tensor, rounds: int, *, quick: bool) -> None:
    """Time forward passes over texts of one length, whole and padded: half of a padded batch is half as long."""
    ours = load_encoder("minilm").to(DTYPES[dtype])
    theirs = {name: peer(name).to(DTYPES[dtype]) for name in PEERS}
    report.section(f"Forward pass, {dtype}")
    report.table("texts x tokens", "headwise ms", *[f"{name} ms" for name in PEERS], *PEERS, first=1)
    ratios: list[float] = []
    for batch, length, padded in cases(quick=quick):
        tokens_BT = pool[: batch * length].view(batch, length)
        length_B = torch.full((batch,), length)
        if padded:
            length_B[::2] = length // 2
        took = side_by_side(contestants(ours, theirs, tokens_BT, length_B), rounds)
        name = f"{batch} x {length}{', padded' if padded else ''}"
        found = [took[peer] / took["headwise"] for peer in PEERS]
        ratios += found
        report.row(name, took["headwise"], *[took[peer] for peer in PEERS], *found)
    report.line(f"Geometric mean of the ratios: {geometric_mean(ratios):.2f}; the least: {min(ratios):.2f}.")


def cases(*, quick: bool) -> Iterator[tuple[int, int, bool]]:
    for length, batch in {16: 2}.items() if quick else SIZES.items():
        yield batch, length, False
        yield batch, length, True


def contestants(
    ours: Encoder, theirs: dict[str, torch.nn.Module], tokens_BT: Tensor, length_B: Tensor
) -> list[Contestant]:
    valid_BT = (torch.arange(tokens_BT.shape[1]) < length_B[:, None]).long()
    calls = [Contestant("headwise", lambda: ours(tokens_BT, length_B))]
    for name, model in theirs.items():
        calls.append(Contestant(name, lambda model=model: model(tokens_BT, attention_mask=valid_BT)))
    return calls


if __name__ == "__main__":
    main()
