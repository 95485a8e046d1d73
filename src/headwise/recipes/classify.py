"""Classify texts: what is peculiar to it among the tasks that the recipes serve."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.contracts import Batch, Scored, twice
from headwise.errors import ConfigError, InputError
from headwise.models import Classifier, load_classifier, locate
from headwise.models.pretrained import encoder_config
from headwise.recipes.batches import all_logits, batches_of_pass, checked_texts
from headwise.recipes.beginnings import Freeze, put, vectors_of
from headwise.recipes.cards import Card
from headwise.recipes.config import RunConfig
from headwise.recipes.plans import Plan, Save, Unanswered, check_dev
from headwise.recipes.run import Run
from headwise.tasks.encoding import Tokens
from headwise.tasks.labels import SKIPPED, Prediction
from headwise.tasks.metrics import score
from headwise.tasks.sentiment import Prepared, SentimentSettings, TextExamples, encode, open_texts, prepare
from headwise.tasks.sources import Source
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import Job, Runtime

__all__ = [
    "again",
    "card",
    "examples",
    "forward",
    "job",
    "known",
    "line",
    "losses",
    "plan",
    "predict_texts",
    "report",
    "unanswered",
]

_log = logging.getLogger("headwise")

_METRICS: dict[bool, dict[str, Literal["higher", "lower"]]] = {
    False: {"accuracy": "higher", "macro_f1": "higher", "loss": "lower"},
    True: {"micro_f1": "higher", "macro_f1": "higher", "accuracy": "higher", "loss": "lower"},
}
_CARD = Card(
    "text-classification",
    "A classifier of texts",
    'headwise predict . --text "..."\nheadwise observe . --data texts.tsv',
)


def plan(source: Source, config: RunConfig, *, quiet: bool = False) -> Plan:
    """Read the data and build the model; classes, vocabulary and the width of vectors are filled in."""
    pretrained = config.pretrained
    if pretrained:
        config = _fitting(config, pretrained)
    tokenizer = Tokenizer.pretrained(str(locate(pretrained))) if pretrained else None
    torch.manual_seed(config.training.seed)
    prepared = prepare(source, config.data, tokenizer=tokenizer, vectors=config.vectors, quiet=quiet)
    check_dev(prepared.examples)
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
    asked, most = config.data.max_tokens, encoder_config(pretrained).max_positions
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
    counted = prepared.examples["train"].tokens.counts_V
    vectors = vectors_of(config.vectors, prepared.tokenizer, counted, quiet=quiet)
    encoder = replace(model_config.encoder, vocabulary=prepared.tokenizer.size)
    if encoder.max_positions < config.data.max_tokens:
        encoder = replace(encoder, max_positions=config.data.max_tokens)
    if vectors is not None:
        encoder = replace(encoder, embedding_width=vectors.matrix_VM.shape[1])
    model = Classifier(replace(model_config, encoder=encoder))
    if vectors is not None:
        put(vectors, model.encoder.tokens, frozen=config.frozen_passes == -1)
    return model


def _tell(prepared: Prepared, model: nn.Module) -> None:
    counts = ", ".join(f"{len(held)} {name}" for name, held in prepared.examples.items())
    names = prepared.labels.names
    told = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    parameters = sum(each.numel() for each in model.parameters())
    _log.info("%s rows; classes %s; %s parameters", counts, told, f"{parameters:,}")
    if cut := prepared.examples["train"].tokens.cut:
        _log.warning("%d texts were longer than data.max_tokens and lost their end", cut)


def job(planned: Plan, runtime: Runtime, save: Save) -> Job:
    """Say how the classifier is trained and validated."""
    config, prepared, model = planned.config, planned.prepared, planned.model
    assert isinstance(config, RunConfig), "planned here"
    assert isinstance(prepared, Prepared), "planned here"
    steps = config.frozen_passes * batches_of_pass(planned.prepared.examples["train"], config.training)
    return Job(
        model=model,
        examples=prepared.examples["train"],
        loss=partial(_loss, smoothing=config.training.label_smoothing, rdrop=config.training.rdrop),
        validate=lambda held: _figures(held, prepared.examples["dev"], runtime),
        save=save,
        metrics=_METRICS[prepared.labels.several],
        on_step=Freeze(model.encoder.tokens.table.weight, steps if config.vectors else 0),
    )


def _loss(model: nn.Module, batch: Batch, *, smoothing: float, rdrop: float = 0.0) -> Scored:
    """Sum the cross-entropy of a batch, of several labels that of each, and with `rdrop` what parts two readings."""
    if not rdrop:
        return _cross_entropy(model, batch, smoothing)[0]
    scored, logits_BC = _cross_entropy(model, twice(batch), smoothing)
    assert batch.target is not None, "training data has labels"
    one_BC, two_BC = logits_BC.tensor_split(2)
    share = partial(torch.softmax, dim=-1) if batch.target.dim() == 1 else torch.sigmoid
    # The normalisers of a softmax are constants over the classes, and differences of shares sum to 0.
    apart = ((share(one_BC) - share(two_BC)) * (one_BC - two_BC)).sum() / 2
    return Scored(scored.sum + rdrop * apart, scored.count)


def _cross_entropy(model: nn.Module, batch: Batch, smoothing: float) -> tuple[Scored, Tensor]:
    """Give the summed cross-entropy, and the logits."""
    logits_BC, target = _read(model, batch)
    count = torch.tensor(len(logits_BC), device=logits_BC.device)
    if target.dim() == 1:
        summed = F.cross_entropy(logits_BC, target, reduction="sum", label_smoothing=smoothing)
        return Scored(summed, count), logits_BC
    soft_BC = target * (1 - smoothing) + smoothing / 2
    return Scored(F.binary_cross_entropy_with_logits(logits_BC, soft_BC, reduction="sum"), count), logits_BC


def _read(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Give the logits of a batch, and its labels."""
    assert batch.target is not None, "read with its labels"
    return model(batch.tokens_BT, batch.length_B).float(), batch.target


def _figures(model: nn.Module, examples: TextExamples, runtime: Runtime) -> dict[str, float]:
    """Compute the figures by which training chooses a model."""
    logits_NC, target = all_logits(model, examples, runtime), _target(examples)
    loss = (F.binary_cross_entropy_with_logits if target.dim() == 2 else F.cross_entropy)(logits_NC, target)
    figures = score(logits_NC, target).report([str(i) for i in range(logits_NC.shape[1])])
    return {name: value for name, value in figures.items() if isinstance(value, float)} | {"loss": float(loss)}


def _target(examples: TextExamples) -> Tensor:
    """Give the class of each text, shape (N,), or, of several labels, 1.0 for each that it has, (N, C)."""
    assert examples.target is not None, "read with its labels"
    target = torch.from_numpy(examples.target)
    return target.float() if target.dim() == 2 else target.long()


def report(run: Run, source: Source, runtime: Runtime, *, split: str | None = None) -> dict[str, Any]:
    """Compute the figures of a classifier on labelled texts.

    Raises:
        InputError: for data that cannot be read, or with labels that the model does not know.
    """
    held = known(run, source, split=split, quiet=not runtime.first)
    logits_NC = all_logits(run.model.to(runtime.device), held, runtime, told="evaluate")
    return score(logits_NC, _target(held)).report(run.labels.names)


def _data(run: Run) -> SentimentSettings:
    assert isinstance(run.config, RunConfig), "the run of a classifier"
    return run.config.data


def unanswered(run: Run, source: Source, *, quiet: bool = False) -> Unanswered:
    """Open texts to classify; in the place of a row that was left out stands `SKIPPED`."""
    return Unanswered(open_texts(source, _data(run), labelled=False, quiet=quiet), "text", SKIPPED)


def predict_texts(run: Run, texts: Sequence[str], runtime: Runtime) -> list[Prediction]:
    """Answer for texts at hand, in their order; processes share the work, so each must be given the same texts.

    Raises:
        InputError: for a text that is not Unicode, such as bytes of another encoding on the command line.
    """
    if not texts:
        return []
    checked_texts(texts)
    settings = _data(run)
    found = run.tokenizer.encode(texts, max_tokens=settings.max_tokens, ends=settings.ends)
    examples = TextExamples(Tokens.of(found))
    return run.labels.predictions(all_logits(run.model.to(runtime.device), examples, runtime))


def examples(run: Run, source: Source, *, split: str | None = None, quiet: bool = False) -> TextExamples:
    """Read texts without their labels."""
    table = open_texts(source, _data(run), labelled=False, quiet=quiet)
    return encode(table, run.tokenizer, _data(run), quiet=quiet).select(table.chosen(split))


def again(run: Run, source: Source, *, quiet: bool = False) -> Plan:
    """Read the data for a classifier to go on learning from.

    Raises:
        InputError: for data with other classes.
    """
    prepared = prepare(source, _data(run), tokenizer=run.tokenizer, quiet=quiet)
    if prepared.labels.names != run.labels.names:
        told = f"{', '.join(prepared.labels.names)} in place of {', '.join(run.labels.names)}"
        raise InputError(f"the data must have the classes of the model; got {told}. Train a new one.")
    return Plan(run.config, prepared, run.model)


def known(run: Run, source: Source, *, split: str | None = None, quiet: bool = False) -> TextExamples:
    """Read texts with their labels."""
    table = open_texts(source, _data(run), quiet=quiet)
    return encode(table, run.tokenizer, _data(run), labels=run.labels, quiet=quiet).select(table.chosen(split))


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Give the cross-entropy of each text; of several labels, the sum over them."""
    logits_BC, target = _read(model, batch)
    if target.dim() == 1:
        return F.cross_entropy(logits_BC, target, reduction="none")
    return F.binary_cross_entropy_with_logits(logits_BC, target.float(), reduction="none").sum(1)


def forward(model: nn.Module, batch: Batch) -> object:
    """Have the model read a batch."""
    return model(batch.tokens_BT, batch.length_B)


def line(answer: Prediction, *, as_json: bool) -> str:
    """Write an answer as one line: the class, and the probability of each; or all of it as JSON."""
    if answer == SKIPPED:
        return json.dumps({"label": None, "skipped": True}) if as_json else "\tskipped"
    if as_json:
        return json.dumps(answer._asdict(), ensure_ascii=False)
    shares = (f"{_on_one_line(name)}={share:.4f}" for name, share in answer.probabilities.items())
    return "\t".join([_on_one_line(answer.label), *shares])


def _on_one_line(label: str) -> str:
    """Write what would break a line or a field of it as an escape; the JSON has labels as they are."""
    return label.translate({ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"})


def card(run: Run, figures: Mapping[str, float]) -> str:
    """Write the model card."""
    assert isinstance(run.model, Classifier), "the run of a classifier"
    encoder = run.model.config.encoder
    facts = {
        "classes": ", ".join(map(_on_one_line, run.model.config.classes)),
        "began from": run.config.init,
        "layers": encoder.layers,
        "heads": ", ".join(str(len(names)) for names in encoder.head_names),
        "width": encoder.d_model,
        "parameters": f"{sum(each.numel() for each in run.model.parameters()):,}",
    }
    return _CARD.filled(facts, figures)
