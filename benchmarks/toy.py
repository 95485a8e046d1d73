"""A run of a second or two that has all a real one has: what the tests of training and `kills.py` train.

Run with `python -m benchmarks.toy OUT`; `torchrun --nproc-per-node 2 -m benchmarks.toy OUT` shares the work.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from headwise import Mask, MultiHeadAttention, Scored
from headwise.contracts import Batch
from headwise.contracts import settings as settings_of
from headwise.training import Job, Runtime, TrainingConfig, start, train

VOCABULARY, CLASSES, LONGEST = 13, 2, 23


class Toy(nn.Module):
    """Embed, look around, and average into two classes."""

    def __init__(self, dropout: float = 0.1, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.layers = nn.ModuleList([MultiHeadAttention(16, 2, dropout=dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(16)
        self.output = nn.Linear(16, CLASSES)

    def forward(self, tokens_BT: Tensor, length_B: Tensor) -> Tensor:
        x_BTM = self.embedding(tokens_BT)
        for layer in self.layers:
            x_BTM = x_BTM + layer(x_BTM, mask=Mask.lengths(length_B))
        valid_BT1 = (torch.arange(tokens_BT.shape[1]) < length_B[:, None])[:, :, None]
        mean_BM = (self.norm(x_BTM) * valid_BT1).sum(1) / length_B[:, None]
        logits_BC: Tensor = self.output(mean_BM)
        return logits_BC


@dataclass(frozen=True)
class ToyExamples:
    """Hold texts of random tokens; the class is whether token 3 is among them."""

    length_N: np.ndarray
    tokens_NT: np.ndarray

    @classmethod
    def random(cls, rows: int, seed: int) -> ToyExamples:
        random = np.random.default_rng(seed)
        length_N = random.integers(1, LONGEST + 1, rows).astype(np.int32)
        tokens_NT = random.integers(1, VOCABULARY, (rows, LONGEST))
        return cls(length_N, tokens_NT * (np.arange(LONGEST) < length_N[:, None]))

    def batch(self, rows: Sequence[int]) -> Batch:
        length_B = torch.from_numpy(self.length_N[rows]).long()
        tokens_BT = torch.from_numpy(self.tokens_NT[rows][:, : int(length_B.max())])
        return Batch(tokens_BT, length_B, torch.tensor(rows), (tokens_BT == 3).any(1).long())


def loss(model: nn.Module, batch: Batch) -> Scored:
    logits_BC = model(batch.tokens_BT, batch.length_B)
    assert batch.target is not None
    return Scored(F.cross_entropy(logits_BC.float(), batch.target, reduction="sum"), torch.tensor(len(batch.row_B)))


def toy_job(runtime: Runtime, *, rows: int = 601, dropout: float = 0.1) -> Job:
    """Make the job anew, with the same parameters each time."""
    torch.manual_seed(1)
    model, held_out = Toy(dropout), ToyExamples.random(211, seed=1)

    def validate(model: nn.Module) -> dict[str, float]:
        mine = runtime.share(range(len(held_out.length_N)))
        batch = held_out.batch(list(mine))
        logits_BC = model(batch.tokens_BT, batch.length_B)
        assert batch.target is not None
        right = runtime.total(Scored((logits_BC.argmax(1) == batch.target).sum().double(), torch.tensor(len(mine))))
        return {"accuracy": float(right.mean), "loss": float(runtime.total(loss(model, batch)).mean)}

    def save(model: nn.Module, folder: Path, figures: Mapping[str, float]) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "metrics.json").write_text(json.dumps(figures))

    examples = ToyExamples.random(rows, seed=0)
    return Job(model, examples, loss, validate, save, metrics={"accuracy": "higher", "loss": "lower"})


TOY = TrainingConfig(
    steps=60,
    batch_tokens=256,
    learning_rate=1e-2,
    validate_every=20,
    log_every=10,
    save_every=10,
    average=2,
    precision="float32",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on from the last state")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--set", action="append", default=[], help="a setting of training, such as steps=20")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = asdict(TOY)
    for assignment in given.set:
        config = settings_of.override(config, assignment)
    chosen = settings_of.read(TrainingConfig, config)
    with start("cpu", chosen.precision) as runtime:
        job = toy_job(runtime, dropout=given.dropout)
        outcome = train(job, chosen, given.out, runtime, resume=given.resume, quiet=True)
    if runtime.first:
        print(outcome)


if __name__ == "__main__":
    main()
