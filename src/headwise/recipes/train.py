"""Train a model from a table of texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.contracts import Batch, Scored, Statistics
from headwise.errors import ConfigError
from headwise.heads import observe
from headwise.models import Classifier, load_classifier, load_encoder, locate
from headwise.recipes.config import RunConfig
from headwise.recipes.evaluate import figures_of
from headwise.recipes.run import Run, check_out, save_run, taken
from headwise.tasks.sentiment import Prepared, prepare
from headwise.tasks.sources import Source
from headwise.tasks.tokenizer import Tokenizer
from headwise.tasks.vectors import Vectors, read_vectors
from headwise.training import Job, Outcome, Runtime
from headwise.training import train as run_loop
from headwise.training.sampler import Sampler

__all__ = ["Plan", "plan", "train"]

_log = logging.getLogger("headwise")

_METRICS: dict[bool, dict[str, Literal["higher", "lower"]]] = {
    False: {"accuracy": "higher", "macro_f1": "higher", "loss": "lower"},
    True: {"micro_f1": "higher", "macro_f1": "higher", "accuracy": "higher", "loss": "lower"},
}


@dataclass(frozen=True)
class Plan:
    """Hold all that a run needs before its first step."""

    config: RunConfig
    """The settings, complete."""
    prepared: Prepared
    """The data."""
    model: Classifier
    """The model, with the parameters it begins from."""


def plan(source: Source, config: RunConfig, *, quiet: bool = False) -> Plan:
    """Read the data and build the model.

    Args:
        source: a file, a folder, `hub:NAME`, or one of these for each split.
        config: the settings; classes, vocabulary and the width of vectors are filled in.
        quiet: show no progress.

    Raises:
        InputError: for data, vectors or a pretrained model that cannot be read.
        ConfigError: for a model that cannot be.
    """
    pretrained = config.pretrained
    if pretrained:
        config = _fitting(config, pretrained)
    tokenizer = Tokenizer.pretrained(str(locate(pretrained))) if pretrained else None
    torch.manual_seed(config.training.seed)
    prepared = prepare(source, config.data, tokenizer=tokenizer, quiet=quiet)
    if "dev" not in prepared.examples:
        raise ConfigError("training needs a dev split; got none. Name one with --dev, or set data.dev to a share.")
    _refuse_other(config, prepared)
    model_config = replace(config.model, classes=prepared.labels.names, multi_label=prepared.labels.several)
    if pretrained:
        model = load_classifier(pretrained, model_config, head_dropout=config.model.encoder.head_dropout)
    else:
        model = _from_nothing(config, model_config, prepared, quiet=quiet)
    _tell(prepared, model)
    return Plan(replace(config, model=model.config), prepared, model)


def _fitting(config: RunConfig, pretrained: str) -> RunConfig:
    """Keep texts within the positions that a pretrained encoder has learned."""
    asked, most = config.data.max_tokens, load_encoder(pretrained).config.max_positions
    if asked <= most:
        return config
    _log.warning("data.max_tokens is %d, as many as %s has positions, and not %d", most, pretrained, asked)
    return replace(config, data=replace(config.data, max_tokens=most))


def _refuse_other(config: RunConfig, prepared: Prepared) -> None:
    """Refuse settings that the data decides otherwise; left out, they are filled in."""
    decided: list[tuple[str, Any, Any]] = [
        ("model.classes", config.model.classes, prepared.labels.names),
        ("model.multi_label", config.model.multi_label, prepared.labels.several),
    ]
    if not config.pretrained:
        decided.append(("model.encoder.vocabulary", config.model.encoder.vocabulary, prepared.tokenizer.size))
    wrong = [(name, asked, found) for name, asked, found in decided if asked and asked != found]
    if wrong:
        raise ConfigError(
            "\n".join(
                f"`{name}` must be what the data gives, {found}; got {asked}. Leave it out."
                for name, asked, found in wrong
            )
        )


def _from_nothing(config: RunConfig, model_config: Any, prepared: Prepared, *, quiet: bool) -> Classifier:
    """Build a model of random parameters, its word vectors read from a file where there is one."""
    vectors = _vectors(config, prepared, quiet=quiet)
    encoder = replace(model_config.encoder, vocabulary=prepared.tokenizer.size)
    if encoder.max_positions < config.data.max_tokens:
        encoder = replace(encoder, max_positions=config.data.max_tokens)
    if vectors is not None:
        encoder = replace(encoder, embedding_width=vectors.matrix_VM.shape[1])
    model = Classifier(replace(model_config, encoder=encoder))
    if vectors is not None:
        model.encoder.tokens.load(torch.from_numpy(vectors.matrix_VM), torch.from_numpy(vectors.found_V))
        model.encoder.tokens.table.weight.requires_grad_(config.frozen_passes != -1)
    return model


def _vectors(config: RunConfig, prepared: Prepared, *, quiet: bool) -> Vectors | None:
    if not config.vectors:
        return None
    tokenizer = prepared.tokenizer
    counts_V = prepared.examples["train"].counts_V(tokenizer.size)
    return read_vectors(config.vectors, tokenizer.vocabulary, counts_V=counts_V, quiet=quiet)


def _tell(prepared: Prepared, model: nn.Module) -> None:
    counts = ", ".join(f"{len(held)} {name}" for name, held in prepared.examples.items())
    names = prepared.labels.names
    told = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    parameters = sum(each.numel() for each in model.parameters())
    _log.info("%s rows; classes %s; %s parameters", counts, told, f"{parameters:,}")
    if cut := prepared.examples["train"].cut:
        _log.warning("%d texts were longer than data.max_tokens and lost their end", cut)


def train(planned: Plan, out: Path, runtime: Runtime, *, resume: bool = False, quiet: bool = False) -> Outcome:
    """Train what was planned; the best model stands in `out`, as `open_run` opens it.

    Args:
        planned: data, model and settings.
        out: the folder of the run.
        runtime: on what.
        resume: whether to go on where the run in `out` was stopped.
        quiet: show no progress.

    Raises:
        InputError, ConfigError, HeadwiseError, KeyboardInterrupt: as `headwise.training.train`.
    """
    check_out(out, resume=resume)
    config, prepared, model = planned.config, planned.prepared, planned.model
    run = Run(config, model, prepared.tokenizer)
    freeze = _Freeze(model.encoder.tokens.table.weight)
    steps_frozen = config.frozen_passes * _batches(planned) if config.vectors else 0
    job = Job(
        model=model,
        examples=prepared.examples["train"],
        loss=partial(_loss, smoothing=config.training.label_smoothing),
        validate=lambda held: figures_of(held, prepared.examples["dev"], runtime),
        save=lambda _, folder, figures: save_run(run, folder, figures),
        metrics=_METRICS[prepared.labels.several],
        on_step=lambda step: freeze.set(step < steps_frozen),
        look=_look,
    )
    with taken(out, runtime):
        return run_loop(job, config.training, out, runtime, resume=resume, quiet=quiet)


def _batches(planned: Plan) -> int:
    """Count the batches of a pass."""
    from_length = planned.prepared.examples["train"].length_N
    return len(Sampler(from_length, tokens=planned.config.training.batch_tokens, seed=planned.config.training.seed))


def _loss(model: nn.Module, batch: Batch, *, smoothing: float) -> Scored:
    """Sum the cross-entropy of a batch; of several labels, that of each."""
    logits_BC, target = model(batch.tokens_BT, batch.length_B).float(), batch.target
    assert target is not None, "training data has labels"
    count = torch.tensor(len(logits_BC), device=logits_BC.device)
    if target.dim() == 1:
        return Scored(F.cross_entropy(logits_BC, target, reduction="sum", label_smoothing=smoothing), count)
    soft_BC = target * (1 - smoothing) + smoothing / 2
    return Scored(F.binary_cross_entropy_with_logits(logits_BC, soft_BC, reduction="sum"), count)


def _look(model: nn.Module, batch: Batch) -> Mapping[str, float]:
    """Give the mean entropy of the heads of each layer for the log."""
    with observe(model, Statistics(entropy=True)) as observer:
        model(batch.tokens_BT, batch.length_B)
    return {f"entropy/{seam.place}": float(seam.scored["entropy"].mean.mean()) for seam in observer.table().seams}


class _Freeze:
    """Hold a parameter still by zeroing its gradient: AdamW moves nothing whose gradients were all 0."""

    def __init__(self, parameter: Tensor) -> None:
        self._still = False
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: torch.zeros_like(gradient) if self._still else gradient)

    def set(self, still: bool) -> None:
        self._still = still
