"""Translate and summarize: what is peculiar to tasks that turn one text into another."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headwise.contracts import PairBatch, Scored
from headwise.errors import ConfigError
from headwise.models import Seq2Seq, Seq2SeqConfig
from headwise.recipes.aligning import WordLinks, align_texts
from headwise.recipes.batches import batches_of_pass, checked_texts, in_batches, in_order, lexicon_batches
from headwise.recipes.beginnings import Freeze, put, vectors_of
from headwise.recipes.cards import Card
from headwise.recipes.pair_config import PRETRAINED, PairConfig
from headwise.recipes.plans import Plan, Save, Unanswered, check_dev
from headwise.recipes.pretrained import open_writer
from headwise.recipes.run import Run
from headwise.tasks.align import Aligner
from headwise.tasks.data import Table
from headwise.tasks.decoding import Decoding
from headwise.tasks.encoding import Tokens
from headwise.tasks.guide import guided, teacher
from headwise.tasks.pairs import PairExamples, PairTask, PreparedPairs, encode_pairs, open_pairs, prepare_pairs
from headwise.tasks.sources import ALL, Source
from headwise.tasks.summarization import SUMMARIZATION
from headwise.tasks.text_metrics import TextScore
from headwise.tasks.tokenizer import Tokenizer
from headwise.tasks.translation import TRANSLATION
from headwise.training import Job, Runtime

__all__ = [
    "Rewritten",
    "Written",
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
    "rewritten",
    "scores",
    "texts_of",
    "unanswered",
]

_log = logging.getLogger("headwise")

_TASKS: dict[str, PairTask] = {task.name: task for task in (TRANSLATION, SUMMARIZATION)}
_COMMANDS = "headwise predict . --data texts.txt\nheadwise evaluate . --data pairs.tsv"
_CARDS = {
    "translation": Card("translation", "A translator of texts", _COMMANDS),
    "summarization": Card("summarization", "A writer of summaries", _COMMANDS),
}


class Written(NamedTuple):
    """Hold a text that was written."""

    text: str
    """The text."""
    score: float
    """Its log-probability, divided by its length as `Decoding.length_penalty` says; at most 0."""
    links: WordLinks | None = None
    """Which of its words belong to which of what was read; none where nobody asked."""


class Rewritten(NamedTuple):
    """Hold what was written for a table of pairs."""

    texts: list[str]
    """What was written, a text a pair."""
    references: list[str]
    """What should have been."""
    sources: list[str]
    """What was read."""


def _config(held: Plan | Run) -> PairConfig:
    assert isinstance(held.config, PairConfig), "a run on pairs"
    return held.config


def _model(held: Plan | Run) -> Seq2Seq:
    assert isinstance(held.model, Seq2Seq), "a run on pairs"
    return held.model


def plan(source: Source, config: PairConfig, *, quiet: bool = False) -> Plan:
    """Read the data and build the model; vocabulary, tokens at the ends and the width of vectors are filled in."""
    if config.init.startswith("pretrained"):
        return _going_on(source, config, quiet=quiet)
    torch.manual_seed(config.training.seed)
    prepared = prepare_pairs(source, config.data, _TASKS[config.task], quiet=quiet)
    check_dev(prepared.examples)
    train, tokenizer = prepared.examples["train"], prepared.tokenizer
    vectors = vectors_of(config.vectors, tokenizer, train.counts_V, quiet=quiet)
    width = config.model.encoder.embedding_width if vectors is None else vectors.matrix_VM.shape[1]
    model = Seq2Seq(_fitting(config, tokenizer, width))
    if vectors is not None:
        put(vectors, model.encoder.tokens, frozen=config.frozen_passes == -1)
    planned = Plan(replace(config, model=model.config), prepared, model)
    _tell(planned)
    return planned


def _going_on(source: Source, config: PairConfig, *, quiet: bool) -> Plan:
    """Begin from a model that writes already, with its tokenizer."""
    name = config.init.removeprefix(PRETRAINED)
    if name == config.init:
        raise ConfigError(f"`init` must name what is trained further; got {name}. Write {PRETRAINED}FOLDER.")
    longest, most = max(config.data.max_source, config.data.max_target), config.model.encoder.max_positions
    if longest > most:
        raise ConfigError(f"`data.max_source` and `max_target` must be at most {most} here; got {longest}. Lower them.")
    begun, tokenizer = open_writer(name)
    torch.manual_seed(config.training.seed)
    model = Seq2Seq(config.model)
    model.load_state_dict(begun.state_dict())
    planned = again(Run(config, model, tokenizer), source, quiet=quiet)
    check_dev(planned.prepared.examples)
    _tell(planned)
    return planned


def _tell(planned: Plan) -> None:
    """Log how much there is of everything."""
    examples: Any = planned.prepared.examples
    counts = ", ".join(f"{len(held)} {name}" for name, held in examples.items())
    parameters = sum(each.numel() for each in planned.model.parameters())
    _log.info("%s pairs; %d tokens; %s parameters", counts, planned.prepared.tokenizer.size, f"{parameters:,}")
    _tell_cut(examples["train"], _config(planned))


def _fitting(config: PairConfig, tokenizer: Tokenizer, width: int | None) -> Seq2SeqConfig:
    """Fill in what the data decides."""
    asked, longest = config.model.encoder, max(config.data.max_source, config.data.max_target)
    if asked.vocabulary not in (0, tokenizer.size):
        told = f"what the data gives, {tokenizer.size}; got {asked.vocabulary}"
        raise ConfigError(f"`model.encoder.vocabulary` must be {told}. Leave it out.")
    positions = max(asked.max_positions, longest)
    encoder = replace(asked, vocabulary=tokenizer.size, embedding_width=width, max_positions=positions)
    ends: dict[str, Any] = {"begin": tokenizer.begin_id, "end": tokenizer.end_id, "pad": 0}
    return replace(config.model, encoder=encoder, target_vocabulary=tokenizer.size, **ends)


def _tell_cut(held: PairExamples, config: PairConfig) -> None:
    for name, tokens in (("source", held.source), ("target", held.target)):
        if tokens is not None and tokens.cut:
            most = getattr(config.data, f"max_{name}")
            _log.warning("%d texts were longer than data.max_%s, %d, and lost their end", tokens.cut, name, most)


def job(planned: Plan, runtime: Runtime, save: Save) -> Job:
    """Say how the model is trained and validated: by the loss, and by texts that it writes for some dev pairs."""
    config, prepared, model = _config(planned), planned.prepared, _model(planned)
    assert isinstance(prepared, PreparedPairs), "planned here"
    steps = config.frozen_passes * batches_of_pass(prepared.examples["train"], config.training)
    metrics: dict[str, Literal["higher", "lower"]] = {"loss": "lower"}
    if config.sample:
        metrics.update(dict.fromkeys(_TASKS[config.task].figures, "higher"))
    return Job(
        model=model,
        examples=prepared.examples["train"],
        loss=_training_loss(prepared.examples["train"], config, quiet=not runtime.first),
        validate=partial(_validate, planned, runtime),
        save=save,
        metrics=metrics,
        on_step=Freeze(model.encoder.tokens.table.weight, steps if config.vectors else 0),
        methods=("loss", "listen", "read"),
    )


def _training_loss(train: PairExamples, config: PairConfig, *, quiet: bool) -> Callable[[nn.Module, PairBatch], Scored]:
    loss = partial(_loss, smoothing=config.training.label_smoothing, rdrop=config.training.rdrop)
    if not config.training.guided_alignment:
        return loss
    lexicon = teacher(lexicon_batches(train, quiet=quiet))
    return guided(loss, lexicon, weight=config.training.guided_alignment)


def _loss(model: nn.Module, batch: PairBatch, *, smoothing: float, rdrop: float = 0.0) -> Scored:
    assert isinstance(model, Seq2Seq), "the model of the job"
    return model.loss(batch, smoothing=smoothing, rdrop=rdrop)


def _validate(planned: Plan, runtime: Runtime, model: nn.Module) -> dict[str, float]:
    """Compute the loss on the dev pairs, and the figures of what is written greedily for some of them."""
    config, prepared = _config(planned), planned.prepared
    assert isinstance(prepared, PreparedPairs), "planned here"
    assert isinstance(model, Seq2Seq), "the model of the job"
    held, rows = prepared.examples["dev"], prepared.table.rows("dev")
    scores = [model.loss(batch, smoothing=0.0) for batch in in_batches(held, runtime)]
    nothing = Scored(torch.zeros((), device=runtime.device), torch.zeros((), device=runtime.device))
    figures = {"loss": float(runtime.total(sum(scores, nothing)).mean)}
    if config.sample:
        some = rows if config.sample < 0 else rows[: config.sample]
        first = held.select(np.arange(len(some)))
        asked = config.decoding
        greedy = Decoding(max_length=asked.max_length, max_ratio=asked.max_ratio, prefix=asked.prefix)
        run = Run(config, model, prepared.tokenizer)
        texts = [best[0].text for best in _write(run, first, runtime, greedy, packed=False)]
        _, references = _sides(prepared.table, some)
        figures |= _TASKS[config.task].score(texts, references, config.data)
    return figures


def _write(
    run: Run, held: PairExamples, runtime: Runtime, decoding: Decoding, *, packed: bool, told: str = ""
) -> list[list[Written]]:
    """Write texts for every source, in their order; a model whose weights stay as they are is packed on a CPU."""
    model, tokenizer = _model(run).to(runtime.device).eval(), run.tokenizer
    packed = packed and runtime.device.type == "cpu"
    writer = run.packed(runtime.dtype) if packed else model
    found: list[tuple[Tensor, list[list[Written]]]] = []
    with torch.inference_mode(), nullcontext() if packed else runtime.autocast():
        for batch in in_batches(held, runtime, told=told):
            source = batch.source_BK, batch.source_length_B
            lists = run.write(*source, decoding, writer=writer, row_B=batch.row_B)
            texts = [[Written(tokenizer.decode(each.ids), each.score) for each in best] for best in lists]
            found.append((batch.row_B.cpu(), texts))
    return in_order(found, len(held), runtime)


def examples(run: Run, source: Source, *, split: str | None = None, quiet: bool = False) -> PairExamples:
    """Read pairs: heads are looked at while both sides are known."""
    table = open_pairs(source, _config(run).data, _TASKS[run.config.task], quiet=quiet)
    return _encoded(run, table, quiet=quiet).select(table.chosen(split))


def again(run: Run, source: Source, *, quiet: bool = False) -> Plan:
    """Read pairs for a model to go on learning from."""
    config, tokenizer = _config(run), run.tokenizer
    task, ends = _TASKS[config.task], _ends(run)
    prepared = prepare_pairs(source, config.data, task, tokenizer=tokenizer, ends=ends, quiet=quiet)
    return Plan(run.config, prepared, run.model)


known = examples
"""Read pairs with what is to be written: as they are looked at."""


def losses(model: nn.Module, batch: PairBatch) -> Tensor:
    """Give the mean cross-entropy of the tokens of a pair, shape (1,)."""
    assert len(batch.row_B) == 1, "pairs come one by one"
    return _loss(model, batch, smoothing=0.0).mean[None]


def _encoded(run: Run, table: Table, *, quiet: bool) -> PairExamples:
    return encode_pairs(table, run.tokenizer, _config(run).data, ends=_ends(run), quiet=quiet)


def _ends(run: Run) -> tuple[int, int]:
    """Give the tokens around what is written: the model's, since a pretrained one has a begin token of its own."""
    return _model(run).config.begin, _model(run).config.end


def texts_of(run: Run, source: Source, *, split: str | None = None, quiet: bool = False) -> tuple[list[str], list[str]]:
    """Read both sides of pairs as they are written; of a split, or all."""
    table = open_pairs(source, _config(run).data, _TASKS[run.config.task], quiet=quiet)
    return _sides(table, table.chosen(split or ALL))


def _sides(table: Table, rows: np.ndarray) -> tuple[list[str], list[str]]:
    """Read what is to be read and what is to be written in these rows."""
    sources, targets = (list(chain.from_iterable(table.texts(role, rows))) for role in ("source", "target"))
    return sources, targets


def forward(model: nn.Module, batch: PairBatch) -> object:
    """Have the model read a batch."""
    return model(batch.source_BK, batch.source_length_B, batch.target_BT[:, :-1], batch.target_length_B - 1)


def rewritten(run: Run, source: Source, runtime: Runtime, *, split: str | None = None) -> Rewritten:
    """Write a text for every source of a table of pairs; of a split, or of `test` where there is one, else of all."""
    config, quiet = _config(run), not runtime.first
    table = open_pairs(source, config.data, _TASKS[config.task], quiet=quiet)
    rows = table.chosen(split)
    held = _encoded(run, table, quiet=quiet)
    _tell_cut(held, config)
    written = _write(run, held.select(rows), runtime, config.decoding, packed=True, told="evaluate")
    sources, references = _sides(table, rows)
    return Rewritten([best[0].text for best in written], references, sources)


def report(run: Run, source: Source, runtime: Runtime, *, split: str | None = None) -> dict[str, Any]:
    """Write a text for every source of a table of pairs, and compute the figures."""
    config, found = _config(run), rewritten(run, source, runtime, split=split)
    return {**_TASKS[config.task].report(*found, config.data), "count": len(found.texts)}


def scores(run: Run, texts: Sequence[str], references: Sequence[str]) -> dict[str, TextScore]:
    """Score texts against those that should have been written, as the run says that its own are scored."""
    return _TASKS[run.config.task].scores(texts, references, _config(run).data)


def unanswered(run: Run, source: Source, *, quiet: bool = False) -> Unanswered:
    """Open texts to read; in the place of a row that was left out nothing is written."""
    table = open_pairs(source, _config(run).data, _TASKS[run.config.task], paired=False, quiet=quiet)
    return Unanswered(table, "source", [])


def predict_texts(run: Run, texts: Sequence[str], runtime: Runtime) -> list[list[Written]]:
    """Write a text for each of these, in their order; an empty one for an empty one.

    Raises:
        InputError: for a text that is not Unicode, such as bytes of another encoding on the command line.
    """
    config = _config(run)
    checked_texts(texts)
    full = [text for text in texts if text.strip()]
    found = run.reader.encode(full, max_tokens=config.data.max_source - 1)
    held = PairExamples(Tokens.of(found), None, *_ends(run))
    _tell_cut(held, config)
    written = _write(run, held, runtime, config.decoding, packed=True) if full else []
    if run.aligner is not None:
        written = _linked(run, run.aligner, full, written, runtime)
    answers = iter(written)
    return [next(answers) if text.strip() else [] for text in texts]


def _linked(
    run: Run, aligner: Aligner, sources: Sequence[str], written: Sequence[list[Written]], runtime: Runtime
) -> list[list[Written]]:
    """Link the words of each best text with those of its source; a text without words has no links."""
    rows = [row for row, best in enumerate(written) if best[0].text.strip()]
    texts = [written[row][0].text for row in rows]
    links = align_texts(run, aligner, [sources[row] for row in rows], texts, runtime)
    linked = [list(best) for best in written]
    for row, found in zip(rows, links, strict=True):
        linked[row][0] = linked[row][0]._replace(links=found)
    return linked


def line(answer: Sequence[Written], *, as_json: bool) -> str:
    """Write an answer as one line: the best text, with its links where asked; or all of the n best as JSON."""
    if as_json:
        best, *others = [_listed(each) for each in answer] or [{"text": "", "score": None}]
        return json.dumps({**best, **({"others": others} if others else {})}, ensure_ascii=False)
    if not answer:
        return ""
    text, links = " ".join(answer[0].text.split()), answer[0].links
    return text if links is None else f"{text}\t{links}"


def _listed(answer: Written) -> dict[str, Any]:
    links = {} if answer.links is None else asdict(answer.links)
    return {"text": answer.text, "score": answer.score, **links}


def card(run: Run, figures: Mapping[str, float]) -> str:
    """Write the model card."""
    config = _model(run).config
    facts = {
        "reads and writes": f"{run.config.task}, scored as {_config(run).data.scored_as}",
        "began from": run.config.init,
        "layers": f"{config.encoder.layers} + {config.decoder.layers}",
        "width": config.encoder.d_model,
        "vocabulary": config.target_vocabulary,
        "parameters": f"{sum(each.numel() for each in _model(run).parameters()):,}",
    }
    return _CARDS[run.config.task].filled(facts, figures)
