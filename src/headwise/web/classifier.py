"""Serve classifiers: answers, the words that mattered, and what heads do on a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.contracts import Seen, Statistics
from headwise.contracts.layout import HeadId
from headwise.heads import HeadTable, observe
from headwise.recipes import Run, RunConfig
from headwise.recipes.batches import cut_rows
from headwise.training import Runtime
from headwise.web.looking import check_heads, head_links, hearing, layers_of, strongest, switched, table_of, tile_of
from headwise.web.reading import Reader, mask_of, padded
from headwise.web.words import Piece
from headwise.web.work import TILE, HeadView, Stopped, StoppedError, TextReport, Work, Writing

__all__ = ["ServedClassifier"]

_LOOKED = Statistics(received=True)


@dataclass(frozen=True)
class _Rows:
    """Hold token sequences for which the same heads are off."""

    ids_N: Sequence[Sequence[int]]
    off: tuple[HeadId, ...]


@dataclass(frozen=True, eq=False)
class _Answer:
    """Compute logits, for the sequences of many requests together."""

    served: ServedClassifier

    def compute(self, payloads: Sequence[_Rows], stopped: Stopped) -> list[Tensor]:
        rows = [(ids, rows.off) for rows in payloads for ids in rows.ids_N]
        logits_NC = torch.empty(len(rows), len(self.served.run.labels.names))
        for cut in cut_rows(np.array([len(ids) for ids, _ in rows]), self.served.batch_tokens):
            if stopped():
                raise StoppedError
            chosen = cut.tolist()
            logits_NC[chosen] = self.served.logits([rows[i][0] for i in chosen], [rows[i][1] for i in chosen])
        return list(logits_NC.split([len(rows.ids_N) for rows in payloads]))


@dataclass(frozen=True)
class _Look:
    """Look at the heads while the model reads one text; looks at different texts do not mix."""

    served: ServedClassifier
    statistics: Statistics
    cells: int

    def compute(self, payloads: Sequence[_Rows], stopped: Stopped) -> list[tuple[HeadTable, dict[str, Seen]]]:
        looked = []
        for rows in payloads:
            if stopped():
                raise StoppedError
            looked.append(self._looked(rows))
        return looked

    def _looked(self, rows: _Rows) -> tuple[HeadTable, dict[str, Seen]]:
        usual = Statistics(entropy=True, peak=True, distance=True, sink=1, previous=True, local=2, map=self.cells)
        model = self.served.run.model
        with observe(model, usual) as observer, hearing(model, self.statistics) as heard:
            self.served.logits(rows.ids_N, [rows.off])
        return observer.table(), heard


class ServedClassifier:
    """Answer which class a text belongs to.

    Args:
        name: what clients call the model.
        run: the model with its tokenizer and settings.
        runtime: on what it computes.
        batch_tokens: most padded tokens that are computed together.
        occlusions: most pieces that are masked in a text.
    """

    task = "sentiment"

    def __init__(self, name: str, run: Run, runtime: Runtime, *, batch_tokens: int, occlusions: int) -> None:
        assert isinstance(run.config, RunConfig), "a run of a classifier"
        data, mask = run.config.data, mask_of(run.tokenizer)
        self.name, self.run, self.batch_tokens = name, run, batch_tokens
        self._runtime, self._answer = runtime, _Answer(self)
        self._reader = Reader(run.tokenizer, data.max_tokens, occlusions, mask, ends=data.ends)
        self._layers = layers_of(run.model.to(runtime.device).eval())

    def about(self) -> Mapping[str, Any]:
        """Tell what clients may know of the model."""
        told = {"name": self.name, "task": self.task, "labels": list(self.run.labels.names)}
        return {**told, "tokens": self._reader.most, "layers": self._layers}

    @torch.inference_mode()
    def logits(self, ids_B: Sequence[Sequence[int]], off_B: Sequence[tuple[HeadId, ...]]) -> Tensor:
        """Give the logits of some sequences, each with its own heads off, shape (B, C)."""
        with self._runtime.autocast(), switched(self.run.model, off_B):
            logits_BC: Tensor = self.run.model(*padded(ids_B, self._runtime.device))
        return logits_BC.float().cpu()

    def predict(self, texts: Sequence[str], off: Sequence[HeadId], writing: Writing, *, cut: bool) -> TextReport:
        """Plan the answers for some texts while heads are switched off."""
        check_heads(self._layers, off)
        ids_N, lost = self._reader.encoded(texts, cut=cut)
        work = self._rows(ids_N, off)

        def join(logits_NC: Tensor) -> dict[str, Any]:
            return {"answers": [answer._asdict() for answer in self.run.labels.predictions(logits_NC)], "cut": lost}

        return TextReport((work,), join)

    def explain(self, text: str, off: Sequence[HeadId]) -> TextReport:
        """Plan what shows how the answer comes about.

        A word mattered as much as the probability of the answer drops when the word is masked. The head named beside it
        is the one whose queries together looked at it most: where a head looks explains nothing by itself.
        """
        check_heads(self._layers, off)
        (ids,), lost = self._reader.encoded([text], cut=True)
        found = self._reader.pieces(text)
        masked = [self._reader.without(ids, piece) for piece in found]
        rows = _Rows([ids], tuple(off))
        looked = Work(_Look(self, _LOOKED, TILE), rows, 1, len(ids))

        def join(logits_NC: Tensor, look: tuple[HeadTable, dict[str, Seen]]) -> dict[str, Any]:
            answers, (table, heard) = self.run.labels.predictions(logits_NC), look
            words = [
                _word(piece, _drop(answers[0], other), strongest(heard, self._layers, piece.tokens))
                for piece, other in zip(found, answers[1:], strict=True)
            ]
            return {"answer": answers[0]._asdict(), "words": words, "heads": table_of(table), "cut": lost}

        return TextReport((self._rows([ids, *masked], off), looked), join)

    def view(self, text: str, off: Sequence[HeadId], view: HeadView) -> TextReport:
        """Plan what one head does on a text."""
        check_heads(self._layers, [*off, view.head])
        (ids,), _ = self._reader.encoded([text], cut=True)
        spans = self._reader.spans(text)
        work = Work(_Look(self, Statistics(links=3), view.cells), _Rows([ids], tuple(off)), 1, len(ids))

        def join(look: tuple[HeadTable, dict[str, Seen]]) -> dict[str, Any]:
            table, heard = look
            links = head_links(heard, self._layers, view.head)
            # Attention pooling has one query, which stands for the whole text.
            queries = spans if len(links) == len(spans) else [(0, len(text))]
            return {"queries": queries, "keys": spans, "links": links, "map": tile_of(table, view)}

        return TextReport((work,), join)

    def _rows(self, ids_N: Sequence[Sequence[int]], off: Sequence[HeadId]) -> Work:
        return Work(self._answer, _Rows(ids_N, tuple(off)), len(ids_N), max(map(len, ids_N)))


def _drop(answer: Any, other: Any) -> float:
    """Tell how far the probability of the answer falls; of several labels or none, that of the likeliest class."""
    label = max(answer.probabilities, key=answer.probabilities.__getitem__)
    return float(answer.probabilities[label] - other.probabilities[label])


def _word(piece: Piece, drop: float, head: dict[str, Any] | None) -> dict[str, Any]:
    return {"begin": piece.begin, "end": piece.end, "drop": drop, "head": head}
