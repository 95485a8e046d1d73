"""What the training loop costs a step besides the work itself: a toy in our loop, and the same steps written out.

The toy is so small that little else is left. Both take the same batches; the bare loop computes loss, gradients, their
norm and fused AdamW, and writes, saves and shows nothing. The bar is 1 ms a step.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.common import begin, options
from benchmarks.toy import TOY, toy_job
from headwise.training import TrainingConfig, start, train
from headwise.training.sampler import Sampler


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=400, help="steps of a round (default: 400)")
    chosen = parser.parse_args()
    chosen.threads, chosen.steps = 1, 5 if chosen.quick else chosen.steps
    report = begin("What the training loop costs a step", chosen)
    config = replace(TOY, steps=chosen.steps, validate_every=10**9, log_every=50, save_every=0, average=0)
    for warm_up in (ours, bare):
        warm_up(replace(config, steps=5))
    pairs = [(ours(config), bare(config)) for _ in range(chosen.rounds)]
    loop, alone = (1e3 * float(np.median(times)) for times in zip(*pairs, strict=True))
    report.table("loop", "ms a step")
    report.row("headwise", loop)
    report.row("bare", alone)
    report.row("difference", loop - alone)


def ours(config: TrainingConfig) -> float:
    """Measure the seconds of one step of our loop, from the first step to the last."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as out, start("cpu", "float32") as runtime:
        job = replace(toy_job(runtime), on_step=lambda _: ends.append(time.perf_counter()))
        train(job, config, Path(out), runtime, quiet=True)
    return (ends[-1] - ends[0]) / (config.steps or 1)


def bare(config: TrainingConfig) -> float:
    """Measure the same steps written out."""
    with start("cpu", "float32") as runtime:
        job = toy_job(runtime)
    model, sampler = job.model.train(), Sampler(job.examples.length_N, tokens=config.batch_tokens, seed=config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    began = time.perf_counter()
    for step in range(config.steps or 0):
        batch = job.examples.batch(sampler.rows(*divmod(step, len(sampler))).tolist())
        scored = job.loss(model, batch)
        (scored.sum / scored.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / (config.steps or 1)


if __name__ == "__main__":
    main()
