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
from headwise.errors import InputError
from headwise.heads import HeadTable, observe
from headwise.recipes import Run, RunConfig
from headwise.recipes.batches import cut_rows
from headwise.training import Runtime
from headwise.web.looking import check_head, head_links, hearing, layers_of, strongest, switched, table_of, tile_of
from headwise.web.words import Piece, pieces
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
        return [self._looked(rows) for rows in payloads if not stopped()]

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
        self._settings = run.config.data
        self.name, self.run, self.batch_tokens = name, run, batch_tokens
        self._runtime, self._occlusions = runtime, occlusions
        self._answer = _Answer(self)
        self._mask = run.tokenizer.inner.token_to_id("[MASK]") or run.tokenizer.unknown_id
        self._layers = layers_of(run.model.to(runtime.device).eval())

    def about(self) -> Mapping[str, Any]:
        """Tell what clients may know of the model."""
        settings = self._settings
        told = {"name": self.name, "task": self.task, "labels": list(self.run.labels.names)}
        return {**told, "tokens": settings.max_tokens, "layers": self._layers}

    @torch.inference_mode()
    def logits(self, ids_B: Sequence[Sequence[int]], off_B: Sequence[tuple[HeadId, ...]]) -> Tensor:
        """Give the logits of some sequences, each with its own heads off, shape (B, C)."""
        length_B = torch.tensor([len(ids) for ids in ids_B])
        tokens_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in ids_B], batch_first=True)
        model, device = self.run.model, self._runtime.device
        with self._runtime.autocast(), switched(model, off_B):
            logits_BC: Tensor = model(tokens_BT.to(device), length_B.to(device))
        return logits_BC.float().cpu()

    def predict(self, texts: Sequence[str], off: Sequence[HeadId], writing: Writing, *, cut: bool) -> TextReport:
        """Plan the answers for some texts while heads are switched off."""
        self._check(off)
        ids_N, lost = self._encoded(texts, cut=cut)
        work = self._rows(ids_N, off)

        def join(logits_NC: Tensor) -> dict[str, Any]:
            return {"answers": [answer._asdict() for answer in self.run.labels.predictions(logits_NC)], "cut": lost}

        return TextReport((work,), join)

    def explain(self, text: str, off: Sequence[HeadId]) -> TextReport:
        """Plan what shows how the answer comes about.

        A word mattered as much as the probability of the answer drops when the word is masked. The head named beside it
        is the one whose queries together looked at it most: where a head looks explains nothing by itself.
        """
        self._check(off)
        (ids,), lost = self._encoded([text], cut=True)
        found = pieces(text, self._spans(text), self._occlusions)
        masked = [self._without(ids, piece) for piece in found]
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
        self._check([*off, view.head])
        (ids,), _ = self._encoded([text], cut=True)
        spans = self._spans(text)
        work = Work(_Look(self, Statistics(links=3), view.cells), _Rows([ids], tuple(off)), 1, len(ids))

        def join(look: tuple[HeadTable, dict[str, Seen]]) -> dict[str, Any]:
            table, heard = look
            links = head_links(heard, self._layers, view.head)
            # Attention pooling has one query, which stands for the whole text.
            queries = spans if len(links) == len(spans) else [(0, len(text))]
            return {"queries": queries, "keys": spans, "links": links, "map": tile_of(table, view)}

        return TextReport((work,), join)

    def _check(self, heads: Sequence[HeadId]) -> None:
        for head in heads:
            check_head(self._layers, head)

    def _rows(self, ids_N: Sequence[Sequence[int]], off: Sequence[HeadId]) -> Work:
        return Work(self._answer, _Rows(ids_N, tuple(off)), len(ids_N), max(map(len, ids_N)))

    def _encoded(self, texts: Sequence[str], *, cut: bool) -> tuple[list[list[int]], int]:
        settings = self._settings
        found = self.run.tokenizer.encode(texts, max_tokens=settings.max_tokens, ends=settings.ends)
        if found.cut and not cut:
            told = f"more in {found.cut} of {len(texts)}"
            raise InputError(f"texts must have at most {settings.max_tokens} tokens; got {told}. Set `cut`.")
        return found.ids, found.cut

    def _spans(self, text: str) -> list[tuple[int, int]]:
        settings = self._settings
        return self.run.tokenizer.offsets(text, max_tokens=settings.max_tokens, ends=settings.ends)

    def _without(self, ids: Sequence[int], piece: Piece) -> list[int]:
        return [self._mask if i in piece.tokens else id_ for i, id_ in enumerate(ids)]


def _drop(answer: Any, other: Any) -> float:
    """Tell how far the probability of the answer falls; of several labels or none, that of the likeliest class."""
    label = max(answer.probabilities, key=answer.probabilities.__getitem__)
    return float(answer.probabilities[label] - other.probabilities[label])


def _word(piece: Piece, drop: float, head: dict[str, Any] | None) -> dict[str, Any]:
    return {"begin": piece.begin, "end": piece.end, "drop": drop, "head": head}
