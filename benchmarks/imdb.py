"""Training speed on IMDB: headwise's loop against the same model in `nn.TransformerEncoder`, in loops of its own.

The peers take their steps in the pauses of ours, some at a time. The plain loop, as people write it, draws a fixed
number of texts a step, in float32; the tuned one has our batches, our precision and fused AdamW. Tokens are those of
the texts, padding not counted. The texts are those of imdb.train.tsv.gz in the folder that HEADWISE_DATA names;
--quick takes the bundled reviews.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import begin, options
from headwise import recipes
from headwise.contracts import Batch
from headwise.data import reviews
from headwise.models import EncoderConfig
from headwise.tasks.sentiment import TextExamples
from headwise.training import Runtime, start
from headwise.training.sampler import Sampler

LONGEST, RATE, DROPOUT = 512, 5e-4, 0.1
SAME = (
    "model.encoder.positions=learned",
    *(f"model.encoder.{name}={DROPOUT}" for name in ("dropout", "attention_dropout", "feed_forward_dropout")),
    f"model.dropout={DROPOUT}",
)
"""What makes our model that of `nn.TransformerEncoderLayer`, which drops attention weights and inner values too."""
TEXTS = 16
"""Texts of a batch of the plain loop: about as many tokens as one of ours."""


class Peer(nn.Module):
    """Classify texts with PyTorch's own encoder."""

    def __init__(self, config: EncoderConfig, classes: int) -> None:
        super().__init__()
        d_model, heads = config.d_model, len(config.head_names[0])
        layer = nn.TransformerEncoderLayer(
            d_model, heads, config.d_ff, DROPOUT, "gelu", batch_first=True, norm_first=True
        )
        self.tokens = nn.Embedding(config.vocabulary, d_model, padding_idx=0)
        self.positions = nn.Embedding(LONGEST, d_model)
        self.encoder = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(d_model), enable_nested_tensor=False)
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(d_model, classes)

    def forward(self, tokens_BT: Tensor, length_B: Tensor) -> Tensor:
        place_T = torch.arange(tokens_BT.shape[1])
        hidden_BT = place_T >= length_B[:, None]
        x_BTM = self.dropout(self.tokens(tokens_BT) + self.positions(place_T))
        x_BTM = self.encoder(x_BTM, src_key_padding_mask=hidden_BT)
        mean_BM = x_BTM.masked_fill(hidden_BT[:, :, None], 0).sum(1) / length_B[:, None]
        logits_BC: Tensor = self.output(self.dropout(mean_BM))
        return logits_BC


@dataclass
class Loop:
    """Train a peer, some steps at a time."""

    model: Peer
    examples: TextExamples
    draw: Iterator[np.ndarray]
    runtime: Runtime | None = None

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, fused=self.runtime is not None)

    def steps(self, count: int) -> int:
        """Take steps, and count their tokens."""
        tokens = 0
        for _ in range(count):
            batch = self.examples.batch(next(self.draw).tolist())
            assert batch.target is not None
            self.optimizer.zero_grad()
            if self.runtime is None:
                loss = F.cross_entropy(self.model(batch.tokens_BT, batch.length_B), batch.target)
            else:
                with self.runtime.autocast():
                    loss = F.cross_entropy(self.model(batch.tokens_BT, batch.length_B), batch.target)
            loss.backward()
            self.optimizer.step()
            tokens += int(batch.length_B.sum())
        return tokens


class Watched:
    """Give examples to our loop, and tell of every batch that it takes."""

    def __init__(self, examples: TextExamples, taken: Callable[[int], None]) -> None:
        self.examples, self.taken = examples, taken
        self.length_N = examples.length_N

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: Sequence[int]) -> Batch:
        self.taken(int(self.length_N[rows].sum()))
        return self.examples.batch(rows)


class Clock:
    """Measure tokens a second: of our loop from pause to pause, of the peers in the pauses."""

    def __init__(self, peers: dict[str, Loop], chunk: int) -> None:
        self.peers, self.chunk = peers, chunk
        self.speeds: dict[str, list[float]] = {name: [] for name in ("headwise", *peers)}
        self.calls = self.tokens = 0
        self.began = time.perf_counter()

    def taken(self, tokens: int) -> None:
        """Let the peers run whenever ours has begun another chunk."""
        if self.calls and self.calls % self.chunk == 0:
            self.speeds["headwise"].append(self.tokens / (time.perf_counter() - self.began))
            turns = list(self.peers.items())
            for name, loop in turns if self.calls // self.chunk % 2 else reversed(turns):
                began = time.perf_counter()
                found = loop.steps(self.chunk)
                self.speeds[name].append(found / (time.perf_counter() - began))
            self.tokens, self.began = 0, time.perf_counter()
        self.calls += 1
        self.tokens += tokens


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=200, help="steps of each loop (default: 200)")
    parser.add_argument("--chunk", type=int, default=10, help="steps between two pauses (default: 10)")
    parser.add_argument("--size", default="tiny", help="of the model: tiny, small, base (default: tiny)")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.steps, chosen.chunk = 4, 1
    report = begin("Training speed on IMDB, texts of at most 512 tokens", chosen)
    with start("cpu") as runtime, tempfile.TemporaryDirectory() as out:
        planned = planned_run(chosen)
        clock = raced(planned, runtime, chosen.chunk, Path(out))
        report.line(f"- precision of ours and of the tuned loop: {runtime.dtype} ({runtime.reason})")
    parameters = sum(each.numel() for each in planned.model.parameters())
    report.line(
        f"- model: {chosen.size}, {parameters:,} parameters; {chosen.steps} steps of each, {chosen.chunk} at a time"
    )
    ours = float(np.median(clock.speeds["headwise"]))
    report.table("loop", "tokens/s", "headwise is faster by")
    for name, speeds in clock.speeds.items():
        report.row(name, float(np.median(speeds)), ours / float(np.median(speeds)))


def planned_run(chosen: argparse.Namespace) -> recipes.Plan:
    """Read the data, and build our model."""
    changes = [*SAME, f"data.max_tokens={LONGEST}", "data.dev=0.02", "training.validate_every=1000000"]
    changes += [f"training.steps={chosen.steps + 1}", "training.batch_tokens=4096", f"training.learning_rate={RATE}"]
    changes += ["training.save_minutes=0"]
    config = recipes.resolve("sentiment", size=chosen.size, overrides=changes)
    return recipes.plan(reviews("en") if chosen.quick else imdb(), config, quiet=True)


def imdb() -> Path:
    data = os.environ.get("HEADWISE_DATA")
    if data is None:
        sys.exit("IMDB must be in the folder that HEADWISE_DATA names; got no such variable. Set it.")
    return Path(data, "imdb", "imdb.train.tsv.gz")


def raced(planned: recipes.Plan, runtime: Runtime, chunk: int, out: Path) -> Clock:
    """Train all three side by side."""
    examples = planned.prepared.examples["train"]
    sizes, classes = planned.model.config.encoder, len(planned.model.config.classes)
    peers = {
        "plain": Loop(Peer(sizes, classes), examples, fixed(len(examples))),
        "tuned": Loop(Peer(sizes, classes), examples, ours(examples, planned.config.training.batch_tokens), runtime),
    }
    for loop in peers.values():
        loop.steps(2)
    clock = Clock(peers, chunk)
    watched = replace(planned.prepared, examples={**planned.prepared.examples, "train": Watched(examples, clock.taken)})
    recipes.train(replace(planned, prepared=watched), out, runtime, quiet=True)
    return clock


def fixed(count: int) -> Iterator[np.ndarray]:
    """Draw batches of a fixed number of texts."""
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(count)
        yield from (order[at : at + TEXTS] for at in range(0, count - TEXTS + 1, TEXTS))


def ours(examples: TextExamples, tokens: int) -> Iterator[np.ndarray]:
    """Draw the batches of our sampler, in another order than our loop's."""
    sampler, pass_ = Sampler(examples.length_N, tokens=tokens, seed=1), 0
    while True:
        yield from (sampler.rows(pass_, place) for place in range(len(sampler)))
        pass_ += 1


if __name__ == "__main__":
    main()
