"""Train any model on any examples: the one loop of the project."""

from __future__ import annotations

import copy
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headwise.contracts import Examples, Scored
from headwise.errors import ConfigError, HeadwiseError, InputError
from headwise.training import checkpoint, parallel
from headwise.training.checkpoint import Progress, States, state_tensors
from headwise.training.config import TrainingConfig
from headwise.training.interrupts import Interrupts
from headwise.training.log import Bar, Log
from headwise.training.optimizer import adamw, learning_rate, scale_gradients
from headwise.training.runtime import Runtime, keep_few_products
from headwise.training.sampler import Sampler, split

__all__ = ["Job", "Outcome", "train"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Say what is trained: the model, its examples, and what a task knows and the loop does not."""

    model: nn.Module
    """The model, with the parameters it begins from."""
    examples: Examples[Any]
    """The training data."""
    loss: Callable[[nn.Module, Any], Scored]
    """Gives the summed loss of a batch, and over how many targets it is summed."""
    validate: Callable[[nn.Module], Mapping[str, float]]
    """Gives the figures of the model, in evaluation and without gradients; every process is asked."""
    save: Callable[[nn.Module, Path, Mapping[str, float]], None]
    """Writes the model and its figures into a folder; the first process is asked."""
    metrics: Mapping[str, Literal["higher", "lower"]]
    """Figures of validation by which a model may be chosen, the usual one first, and what is better."""
    extra_loss: Callable[[nn.Module], Tensor] | None = None
    """Gives a scalar that is added to the mean loss."""
    on_step: Callable[[int], None] | None = None
    """Is called with the number of steps done: before the first that is taken, and after each."""
    look: Callable[[nn.Module, Any], Mapping[str, float]] | None = None
    """Gives figures for the log, such as the entropy of the heads, from this process's last batch."""
    methods: tuple[str, ...] = ()
    """Methods besides `forward` by which `loss` calls the model or its layers."""


@dataclass(frozen=True)
class Outcome:
    """Say how a run ended."""

    step: int
    """Steps done."""
    best_step: int
    """Step of the best model, which stands in the folder of the run."""
    best: Mapping[str, float] = field(default_factory=dict)
    """Its figures."""
    averaged: bool = False
    """Whether the best is the average of the last ones."""


def train(
    job: Job, config: TrainingConfig, out: Path, runtime: Runtime, *, resume: bool = False, quiet: bool = False
) -> Outcome:
    """Train, and leave the best model in `out`, the state and the log in `out/training`.

    Resumed runs end as uninterrupted ones do: on CPU bit for bit, with the same threads and versions.

    Args:
        job: what is trained; its model is changed.
        config: how.
        out: the folder of the run.
        runtime: on what.
        resume: whether to go on from the newest whole state in `out`, if there is one.
        quiet: whether to show no progress.

    Raises:
        InputError: when `out` holds a run and `resume` is not set, or its state is of another run.
        ConfigError: when the job has no figure by the name that is to choose the best.
        HeadwiseError: when the loss is no number any more, or the disk is full; the state before is whole.
        KeyboardInterrupt: when SIGINT or SIGTERM has come, after the step is finished and its state is saved.
    """
    states = States(out / "training")
    if states and not resume:
        raise InputError(
            f"`out` must be a new folder; got {out}, which holds a run. Resume it (`--resume`), or choose another."
        )
    if config.shard and not runtime.joined:
        raise ConfigError(
            "`shard` must have processes to spread over; got none. Start with torchrun --nproc-per-node N."
        )
    if config.keep_best and config.keep_best not in job.metrics:
        raise ConfigError(
            f"`keep_best` must be one of {', '.join(job.metrics)}; got {config.keep_best}. Leave it out for the first."
        )
    _log.info("%s on %s, %d processes: %s", runtime.dtype, runtime.device, runtime.processes, runtime.reason)
    keep_few_products()
    with Interrupts(patient=runtime.processes > 1) as interrupts:
        run = _Run(job, config, out, runtime)
        if resume:
            run.restore(states)
        return run.go(interrupts, quiet)


class _Run:
    """Hold what changes while a run goes on."""

    def __init__(self, job: Job, config: TrainingConfig, out: Path, runtime: Runtime) -> None:
        self.job, self.config, self.out, self.runtime = job, config, out, runtime
        self.sampler = Sampler(job.examples.length_N, tokens=config.batch_tokens, seed=config.seed)
        self.steps = config.steps or config.passes * len(self.sampler)
        self.model = job.model.to(runtime.device)
        parallel.synchronize(self.model, runtime)
        self.complete = self.model
        if config.shard:
            # What is saved must be an ordinary model: shards would come out of its `state_dict`.
            self.complete = copy.deepcopy(self.model).cpu()
            parallel.shard(self.model, runtime, job.methods)
        if config.compile:
            self.model.compile()
        self.parameters = list(self.model.parameters())
        self.optimizer = adamw(self.model, config)
        self.states = States(out / "training")
        self.progress = self.saved = Progress()
        self.saved_at = time.monotonic()
        zero = torch.zeros((), device=runtime.device)
        self.sums = {"loss": zero.clone(), "count": zero.clone(), "first_bad": zero - 1, "norm": zero.clone()}
        self.tokens, self.logged_at = 0, time.perf_counter()
        self.last_batch: Any = None

    def restore(self, states: States) -> None:
        """Go on from the newest whole state."""
        state = states.read()
        if state is None:
            _log.warning("no whole state in %s: the run begins anew", states.folder)
            return
        _compare(state.facts, self._facts())
        state.restore(self.model, self.optimizer, self.sums)
        self.progress = self.saved = state.progress
        _log.info("resumed after step %d of %d", self.progress.step, self.steps)

    def go(self, interrupts: Interrupts, quiet: bool) -> Outcome:
        """Take all steps."""
        if self.runtime.first:
            self.states.clear()
            checkpoint.drop_snapshots(self._snapshots, self.progress.validated)
        folder = self.states.folder if self.runtime.first else None
        self.log = Log(folder, self.progress, tensorboard=self.config.tensorboard)
        self.bar = Bar(self.progress.step, self.steps, shown=self.runtime.first and not quiet)
        try:
            self.model.train()
            if self.job.on_step is not None:
                self.job.on_step(self.progress.step)
            while True:
                if self._validation_is_due():
                    self._validate()
                if self._is_over():
                    break
                self._step()
                self._pause(interrupts)
            self._save()
            return self._finish()
        finally:
            self.log.close()
            self.bar.close()

    def _validation_is_due(self) -> bool:
        # Asked before a step and not after one: a run that was stopped in between validates when it goes on.
        step, every = self.progress.step, self.config.validate_every or len(self.sampler)
        return step > self.progress.validated and (step % every == 0 or step == self.steps)

    def _is_over(self) -> bool:
        return self.progress.step >= self.steps or 0 < self.config.patience <= self.progress.stale

    def _step(self) -> None:
        """Go one step: this process's share of a batch, the sum over all, an update."""
        config, runtime, step = self.config, self.runtime, self.progress.step
        self._seed()
        rows = self.sampler.rows(self.progress.passes, self.progress.place)
        total = runtime.total(self._backward(rows))
        parallel.sum_gradients(self.parameters, runtime)
        norm = scale_gradients(self.parameters, total.count, config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count(total, norm)
        ended = self.progress.place + 1 == len(self.sampler)
        passes, place = (self.progress.passes + 1, 0) if ended else (self.progress.passes, self.progress.place + 1)
        self.progress = replace(self.progress, step=step + 1, passes=passes, place=place)
        tokens = int(self.job.examples.length_N[rows].sum())
        self.tokens += tokens
        self.bar.advance(tokens, lambda: float(total.mean))
        if self.job.on_step is not None:
            self.job.on_step(step + 1)

    def _backward(self, rows: np.ndarray[Any, Any]) -> Scored:
        """Add up the gradients of this process's micro-batches, and give the sum of their losses."""
        examples, runtime = self.job.examples, self.runtime
        zero = torch.zeros((), device=runtime.device)
        total = Scored(zero, zero)
        pieces = split(rows, examples.length_N, processes=runtime.processes, rounds=self.config.accumulation)
        for piece in (each[runtime.rank] for each in pieces):
            # A process without rows borrows one and counts it 0 times: shards need every process in every pass.
            self.last_batch = examples.batch((piece if len(piece) else rows[:1]).tolist()).to(runtime.device)
            with runtime.autocast():
                scored = self.job.loss(self.model, self.last_batch)
                if self.job.extra_loss is not None:
                    scored = Scored(scored.sum + self.job.extra_loss(self.model) * scored.count, scored.count)
            weight = 1.0 if len(piece) else 0.0
            (scored.sum * weight).backward()
            total += Scored(scored.sum.detach() * weight, scored.count * weight)
        return total

    def _count(self, total: Scored, norm: Tensor) -> None:
        """Keep the figures of a step on the device, so that nothing waits for it."""
        sums = self.sums
        sums["loss"] += total.sum
        sums["count"] += total.count
        sums["norm"].copy_(norm)
        fresh = ~(total.sum + norm).isfinite() & (sums["first_bad"] < 0)
        sums["first_bad"].masked_fill_(fresh, self.progress.step + 1)

    def _pause(self, interrupts: Interrupts) -> None:
        """Write the log, save, and stop, where it is time to."""
        step, config = self.progress.step, self.config
        if step % config.log_every == 0:
            self._write_log()
        due = bool(config.save_every and step % config.save_every == 0) or self._late()
        stop, due = self.runtime.any(interrupts.asked, due)
        if stop or due:
            self._save()
        if stop:
            raise KeyboardInterrupt(
                f"stopped after step {step} of {self.steps}; its state is in {self.states.folder}. "
                "Resume (the same command with `--resume`) to go on to the same result."
            )

    def _late(self) -> bool:
        return 0 < self.config.save_minutes * 60 <= time.monotonic() - self.saved_at

    def _write_log(self) -> None:
        self._check()
        step, now = self.progress.step, time.perf_counter()
        figures = {
            "loss": float(self.sums["loss"] / self.sums["count"].clamp(min=1)),
            "gradient_norm": float(self.sums["norm"]),
            "learning_rate": learning_rate(self.config, step - 1, self.steps),
            "passes": self.progress.passes + self.progress.place / len(self.sampler),
            "tokens_per_second": self.tokens / (now - self.logged_at),
        }
        if self.job.look is not None:
            with self._evaluating():
                figures |= self.job.look(self.model, self.last_batch)
        self.log.write(step, figures)
        self.sums["loss"].zero_()
        self.sums["count"].zero_()
        self.tokens, self.logged_at = 0, time.perf_counter()

    def _check(self) -> None:
        """Stop a run whose loss or gradient is no number any more, before it is kept."""
        bad = int(self.sums["first_bad"])
        if bad >= 0:
            kept = f"the state of step {self.saved.step} is whole" if self.saved.step else "no state was saved before"
            raise HeadwiseError(
                f"loss and gradient must be finite; got NaN or infinity at step {bad}. "
                f"Lower `learning_rate`, or set `clip`; {kept}."
            )

    def _save(self) -> None:
        """Save the state, unless it is saved."""
        self._check()
        if self.saved == self.progress:
            return
        tensors = state_tensors(self.model, self.optimizer, self.sums)
        if self.runtime.first:
            self.states.write(self.progress, self._facts(), tensors)
        self.saved, self.saved_at = self.progress, time.monotonic()

    def _validate(self) -> None:
        """Validate, keep the model where it is the best so far, and put its parameters aside for the average."""
        self._check()
        step = self.progress.step
        figures = self._figures()
        if better := self._better(figures, self.progress.best):
            self._publish(figures)
            self.progress = replace(self.progress, best_step=step, best=figures)
        self.progress = replace(self.progress, validated=step, stale=0 if better else self.progress.stale + 1)
        if self.config.average:
            tensors = checkpoint.tensors_of(self.model)
            if self.runtime.first:
                checkpoint.snapshot(self._snapshots, step, tensors, self.config.average)
        self.log.write(step, figures, "validation")
        self.bar.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    def _finish(self) -> Outcome:
        """Try the average of the last parameters, and say how the run ended."""
        best, best_step = self.progress.best, self.progress.best_step
        self.runtime.wait()
        if checkpoint.several(self._snapshots):
            checkpoint.fill(self.model, checkpoint.averaged(self._snapshots))
            figures = self._figures()
            self.log.write(self.progress.step, figures, "average")
            if self._better(figures, best):
                self._publish(figures)
                return Outcome(self.progress.step, self.progress.step, figures, averaged=True)
        return Outcome(self.progress.step, best_step, best)

    def _figures(self) -> dict[str, float]:
        self._seed()
        with self._evaluating():
            return self.runtime.from_first(dict(self.job.validate(self.model)))

    def _publish(self, figures: Mapping[str, float]) -> None:
        """Keep the model as the best one."""
        if self.complete is not self.model:
            checkpoint.fill(self.complete, checkpoint.tensors_of(self.model))
        if self.runtime.first:
            checkpoint.publish(lambda folder: self.job.save(self.complete, folder, figures), self.out)
        self.runtime.wait()

    def _better(self, figures: Mapping[str, float], best: Mapping[str, float]) -> bool:
        name = self.config.keep_best or next(iter(self.job.metrics))
        if not best or math.isnan(best[name]):
            return True
        new, old = figures[name], best[name]
        return new > old if self.job.metrics[name] == "higher" else new < old

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        began = time.perf_counter()
        self.model.eval()
        with torch.no_grad(), parallel.whole(self.model), self.runtime.autocast():
            yield
        self.model.train()
        self.logged_at += time.perf_counter() - began

    def _seed(self) -> None:
        """Draw what is random in a step from its number and the process, so that no random state must be kept."""
        words = np.random.SeedSequence((self.config.seed, self.progress.step, self.runtime.rank)).generate_state(1)
        if self.runtime.device.type == "cpu":
            torch.default_generator.manual_seed(int(words[0]))  # torch.manual_seed takes 0.2 ms to note who asked
        else:
            torch.manual_seed(int(words[0]))

    @property
    def _snapshots(self) -> Path:
        return self.states.folder / "snapshots"

    def _facts(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.config),
            "data": self.sampler.fingerprint,
            "machine": {
                "torch": torch.__version__,
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
                "processes": self.runtime.processes,
                "device": self.runtime.device.type,
                "precision": str(self.runtime.dtype),
            },
        }


def _compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other data or another order of it, and tell of all else that changed."""
    changed = {
        name: (before[part].get(name), value)
        for part in ("settings", "machine")
        for name, value in now[part].items()
        if (list(value) if isinstance(value, tuple) else value) != before[part].get(name)
    }
    fixed = [name for name in ("seed", "batch_tokens") if name in changed]
    if before["data"] != now["data"] or fixed:
        what = ", ".join(f"another `{name}`" for name in fixed) or "other data"
        raise InputError(f"a run must go on as it began; got {what}. Resume it as it was, or choose another folder.")
    for name, (old, new) in changed.items():
        _log.warning("resumed with another `%s`, %s in place of %s: the result may differ", name, new, old)
