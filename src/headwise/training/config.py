"""Hold the settings of a training run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["TrainingConfig"]


@dataclass(frozen=True)
class TrainingConfig:
    """Say how a model is trained, whatever the task."""

    passes: int = 3
    """Passes over the data."""
    steps: int | None = None
    """Steps to train, in place of passes."""
    batch_tokens: int = 4096
    """Padded tokens of a step, over all processes and micro-batches together."""
    accumulation: int = 1
    """Micro-batches in which each process works through its share of a step; more need less memory."""
    learning_rate: float = 5e-4
    """Largest learning rate; 2e-5 to 5e-5 suits a pretrained model."""
    schedule: Literal["cosine", "linear", "inverse_sqrt", "constant"] = "linear"
    """How the learning rate falls after the warm-up: to 0 at the end, or with the square root of the steps."""
    warmup: float = 0.1
    """Steps in which the learning rate rises from 0; below 1, a part of all steps."""
    weight_decay: float = 0.01
    """Decay of the matrices; biases, norms and embeddings do not decay."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """How long AdamW remembers gradients and their squares."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 clips nothing."""
    label_smoothing: float = 0.0
    """Part of the target's weight that is spread over all classes, 0 to 1."""
    rdrop: float = 0.0
    """Weight by which two readings of a batch, dropped out apart, are drawn together (R-Drop): twice the cost."""
    guided_alignment: float = 0.0
    """Weight by which a head of a translator is taught to align, as IBM-1 does on the training data; 0 teaches none."""
    validate_every: int = 0
    """Steps between validations; 0 validates after every pass."""
    gate_penalty: float = 0.0
    """Weight of the share of heads in use, added to the loss: each head learns a gate; 0 trains without gates."""
    patience: int = 0
    """Validations without a better figure after which training stops; 0 never stops early."""
    keep_best: str = ""
    """Figure of validation by which the best model is kept; the task's first where empty."""
    average: int = 0
    """Average the parameters at the last so many validations, and keep that if it is better; 0 does not."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Type of the matrix products; auto takes bf16 where the processor multiplies it natively."""
    seed: int = 0
    """Seed of the order of the data and of every random number drawn in training."""
    threads: int = 0
    """Threads of each process; 0 leaves them as they are."""
    shard: bool = False
    """Spread parameters and optimizer over the processes (FSDP2), where they do not fit one."""
    compile: bool = False
    """Compile the model; pays on long runs."""
    log_every: int = 50
    """Steps between lines of the log."""
    save_every: int = 0
    """Steps between saved states; 0 goes by the clock alone."""
    save_minutes: float = 5.0
    """Minutes between saved states; 0 goes by steps alone."""
    tensorboard: bool = False
    """Write the log for TensorBoard too."""

    def problems(self) -> Iterator[str]:
        """Yield a line for each value that cannot be."""
        for name, least, remedy in _LEAST:
            value = getattr(self, name)
            if value is not None and not value >= least:
                yield f"`{name}` must be at least {least}; got {value}. {remedy}"
            elif value is not None and not value <= _MOST.get(name, 2**53):
                yield f"`{name}` must be at most {_MOST.get(name, 2**53)}; got {value}. {remedy}"
        if not 0 < self.learning_rate < float("inf"):
            yield f"`learning_rate` must be above 0 and finite; got {self.learning_rate}. 5e-4 is usual."
        if not 0 <= self.label_smoothing < 1:
            yield f"`label_smoothing` must lie in [0, 1); got {self.label_smoothing}. 0.1 is usual."
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield f"`betas` must be two numbers in [0, 1); got {list(self.betas)}. [0.9, 0.999] is usual."


_MOST = {"seed": 2**63 - 1, "threads": 1024, "clip": float("inf")}
"""The largest values that can be, where it is not 2**53."""

_LEAST = (
    ("passes", 1, "3 is usual for a pretrained model."),
    ("steps", 1, "Leave it out to train by passes."),
    ("batch_tokens", 1, "4096 is usual."),
    ("accumulation", 1, "1 does a step's share at once."),
    ("warmup", 0, "0 begins with the largest learning rate."),
    ("weight_decay", 0, "0.01 is usual."),
    ("clip", 0, "0 clips nothing."),
    ("validate_every", 0, "0 validates after every pass."),
    ("rdrop", 0, "0 reads once; 5 is usual for translation."),
    ("guided_alignment", 0, "0 teaches no head; 0.3 was measured."),
    ("gate_penalty", 0, "0 trains without gates."),
    ("patience", 0, "0 never stops early."),
    ("average", 0, "0 averages nothing."),
    ("seed", 0, "Any whole number from 0 will do."),
    ("threads", 0, "0 leaves them as they are."),
    ("log_every", 1, "50 is usual."),
    ("save_every", 0, "0 goes by the clock alone."),
    ("save_minutes", 0, "0 goes by steps alone."),
)
