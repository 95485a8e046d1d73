"""Train the same encoder-decoder three ways: tokens a second, and the most memory.

python benchmarks/translation_training.py --write

- plain: `nn.Transformer` in a plain loop: pairs in random order, float32, the whole cross-entropy, AdamW fused.
- better: the same with our batches of like lengths and bf16.
- headwise: our model, batches and loss, bf16.

Pairs are random tokens with lengths like those of Multi30k in pieces, 8 to 30. Dropout is 0.3 and smoothing 0.1. Valid
tokens of both sides are counted, in steps with all but drawing the batch: forward, backward, update. A ratio is our
tokens a second over the peer's. Memory is measured in a fresh process a figure: the highest resident size of a few
steps less the resident size before the model was made.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import Contestant, begin, options, side_by_side
from headwise import EncoderConfig, Seq2Seq, Seq2SeqConfig
from headwise.contracts import PairBatch
from headwise.functional import sinusoidal
from headwise.training.sampler import Sampler

DROPOUT, SMOOTHING, BUDGET, PAIRS = 0.3, 0.1, 4096, 4000
WAYS = ("plain", "better", "headwise")
STEPS = {"plain": 4, "better": 4, "headwise": 8}
"""Steps in one timed call, of batches that differ in size; every call has the same ones."""


class Size(NamedTuple):
    """Hold the sizes of a model."""

    vocabulary: int
    d_model: int
    layers: int
    heads: int
    d_ff: int


SIZES = {"tiny": Size(10_000, 128, 4, 4, 256), "width 512": Size(8_000, 512, 3, 8, 2048)}
QUICK = {"quick": Size(50, 16, 1, 2, 24)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--measure", nargs=2, metavar=("SIZE", "WAY"), help="print the memory of one way, in bytes")
    chosen = parser.parse_args()
    sizes = QUICK if chosen.quick else SIZES
    if chosen.measure:
        torch.set_num_threads(chosen.threads)
        name, way = chosen.measure
        print(json.dumps(memory(sizes[name], way)))
        return
    report = begin("Training a translation model", chosen)
    report.table("model", *[f"{way} tokens/s" for way in WAYS], "x plain", "x better", *[f"{way} MB" for way in WAYS])
    for name, size in sizes.items():
        steps = {way: stepping(size, way) for way in WAYS}
        counted = dict.fromkeys(WAYS, 0.0)
        contestants = [Contestant(way, several(steps[way], counted, way)) for way in WAYS]
        took = side_by_side(contestants, chosen.rounds, warm_up=1)
        speed = {way: counted[way] / took[way] * 1e3 for way in WAYS}
        ratios = [speed["headwise"] / speed[way] for way in WAYS[:2]]
        used = [measured(name, way, chosen.threads, quick=chosen.quick) / 1e6 for way in WAYS]
        report.row(name, *[speed[way] for way in WAYS], *ratios, *used)


def several(step: Callable[[], int], counted: dict[str, float], way: str) -> Callable[[], None]:
    """Take some steps, and note the tokens of the last round of them."""

    def run() -> None:
        counted[way] = float(sum(step() for _ in range(STEPS[way])))

    return run


def stepping(size: Size, way: str) -> Callable[[], int]:
    """Give what takes one step and tells how many tokens it had."""
    torch.manual_seed(0)
    model = build(size) if way == "headwise" else Plain(size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = itertools.cycle(itertools.islice(pairs(size.vocabulary, like=way != "plain"), STEPS[way]))
    lower = way != "plain"

    def step() -> int:
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16) if lower else nullcontext():
            loss = model.loss(batch, smoothing=SMOOTHING).mean if way == "headwise" else model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return int(batch.source_length_B.sum() + batch.target_length_B.sum())

    return step


def build(size: Size) -> Seq2Seq:
    settings = {"norm": "post", "positions": "sinusoidal", "scale_embedding": True, "activation": "relu"}
    settings |= {"dropout": DROPOUT, "attention_dropout": DROPOUT, "feed_forward_dropout": DROPOUT}
    return Seq2Seq(Seq2SeqConfig(EncoderConfig(**size._asdict(), **settings))).train()


class Plain(nn.Module):
    """Be what one writes with `nn.Transformer`: three dropouts a part, as it has them, and the loss over all logits."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.table = nn.Embedding(size.vocabulary, size.d_model)
        nn.init.normal_(self.table.weight, std=size.d_model**-0.5)
        sizes = size.d_model, size.heads, size.layers, size.layers, size.d_ff
        self.transformer = nn.Transformer(*sizes, dropout=DROPOUT, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)

    def embedded(self, tokens_BT: Tensor) -> Tensor:
        x_BTM = self.table(tokens_BT) * math.sqrt(self.table.embedding_dim)
        return self.dropout(x_BTM + sinusoidal(*x_BTM.shape[1:]))

    def forward(self, batch: PairBatch) -> Tensor:
        source_BK, target_BT = batch.source_BK, batch.target_BT[:, :-1]
        hidden_BTM = self.transformer(
            self.embedded(source_BK),
            self.embedded(target_BT),
            tgt_mask=torch.ones(2 * target_BT.shape[1:], dtype=torch.bool).triu(1),
            src_key_padding_mask=source_BK == 0,
            memory_key_padding_mask=source_BK == 0,
            tgt_key_padding_mask=target_BT == 0,
            tgt_is_causal=True,
        )
        logits_NV = F.linear(hidden_BTM, self.table.weight).flatten(0, 1)
        right_N = batch.target_BT[:, 1:].flatten()
        return F.cross_entropy(logits_NV, right_N, ignore_index=0, label_smoothing=SMOOTHING)


def pairs(vocabulary: int, *, like: bool) -> Iterator[PairBatch]:
    """Give batches without end: of like lengths, or of pairs in random order, as many as fill the same budget."""
    random = np.random.default_rng(0)
    length_N = random.normal(14, 4, PAIRS).clip(8, 30)
    side_N2 = np.stack([length_N, (length_N + random.normal(0, 2, PAIRS)).clip(8, 30)], 1).astype(np.int32)
    sampler = Sampler(side_N2, tokens=BUDGET, seed=0)
    count = round(PAIRS / len(sampler))
    for pass_ in range(1_000_000):
        if like:
            yield from (drawn(side_N2[sampler.rows(pass_, at)], vocabulary) for at in range(len(sampler)))
        else:
            order = random.permutation(PAIRS)
            yield from (drawn(side_N2[order[at : at + count]], vocabulary) for at in range(0, PAIRS - count, count))


def drawn(side_N2: np.ndarray, vocabulary: int) -> PairBatch:
    """Draw the tokens of some pairs."""
    length_2B = torch.from_numpy(side_N2.T).long()
    sides = []
    for length_B in length_2B:
        tokens_BT = torch.randint(3, vocabulary, (len(length_B), int(length_B.max())))
        sides.append(tokens_BT.masked_fill(torch.arange(tokens_BT.shape[1]) >= length_B[:, None], 0))
    return PairBatch(sides[0], length_2B[0], sides[1], length_2B[1], torch.arange(len(side_N2)))


def memory(size: Size, way: str) -> int:
    """Measure in this process; the first step of a small model warms the libraries up."""
    stepping(QUICK["quick"], way)()
    Path("/proc/self/clear_refs").write_text("5")  # the highest is from now on
    before = kilobytes("VmRSS")
    step = stepping(size, way)
    for _ in range(2):
        step()
    return 1024 * (kilobytes("VmHWM") - before)


def kilobytes(name: str) -> int:
    # getrusage would tell of the parent's memory, too.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measured(name: str, way: str, threads: int, *, quick: bool) -> int:
    command = [sys.executable, *sys.orig_argv[1 : sys.orig_argv.index(sys.argv[0]) + 1]]
    command += ["--measure", name, way, "--threads", str(threads)] + ["--quick"] * quick
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
