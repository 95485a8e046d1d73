"""Serve models that write: translations and summaries, and which words each word was written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headwise.contracts import Seen, Statistics
from headwise.contracts.layout import HeadId
from headwise.errors import InputError
from headwise.heads import HeadTable, observe
from headwise.models import Seq2Seq
from headwise.recipes import PairConfig, Run
from headwise.tasks.decoding import Decoding, Hypothesis
from headwise.training import Runtime
from headwise.web.looking import check_heads, head_links, hearing, layers_of, off_for_all, strongest, table_of, tile_of
from headwise.web.reading import Reader, padded
from headwise.web.words import Piece, pieces, spans_of
from headwise.web.work import TILE, HeadView, Stopped, StoppedError, TextReport, Work, Writing

__all__ = ["ServedWriter"]

_RECEIVED = Statistics(received=True)

_LEAST = 0.05
"""Nats by which a source word must matter to be linked to a written one."""
_SHARE = 0.3
"""Share of the most that any source word matters to a written one, by which another must matter to be linked too."""


class _Stoppable:
    """Write with a model as long as somebody waits for it."""

    def __init__(self, model: Seq2Seq, stopped: Stopped) -> None:
        self._model, self._stopped = model, stopped

    def begin(self, source_BK: Tensor, source_length_B: Tensor) -> Any:
        return self._model.begin(source_BK, source_length_B)

    def step(self, token_BW: Tensor, state: Any) -> Tensor:
        if self._stopped():
            raise StoppedError
        return self._model.step(token_BW, state)


@dataclass(frozen=True)
class _Write:
    """Write texts for the sources of many requests together."""

    served: ServedWriter
    decoding: Decoding
    off: tuple[HeadId, ...]

    def compute(self, payloads: Sequence[Sequence[Sequence[int]]], stopped: Stopped) -> list[list[list[Hypothesis]]]:
        every = [ids for sources in payloads for ids in sources]
        found = iter(self.served.write(every, self.decoding, self.off, stopped) if every else [])
        return [[next(found) for _ in sources] for sources in payloads]


class _Traced(NamedTuple):
    """Hold what was written for one source, and what it was written from."""

    found: list[Hypothesis]
    drop_NT: Tensor
    """For each masked piece, how much less likely each written token is, the end token last; in nats."""
    table: HeadTable
    heard: dict[str, Seen]


@dataclass(frozen=True)
class _Source:
    ids: list[int]
    masked: list[list[int]]


@dataclass(frozen=True)
class _Trace:
    """Write one text, mask its source piece by piece, and look at the heads."""

    served: ServedWriter
    decoding: Decoding
    off: tuple[HeadId, ...]
    statistics: Statistics
    cells: int

    def compute(self, payloads: Sequence[_Source], stopped: Stopped) -> list[_Traced]:
        return [self.served.traced(source, self, stopped) for source in payloads]


class ServedWriter:
    """Write a text for a text.

    Args:
        name: what clients call the model.
        run: the model with its tokenizer and settings.
        runtime: on what it computes.
        occlusions: most pieces that are masked in a text.
    """

    def __init__(self, name: str, run: Run, runtime: Runtime, *, occlusions: int) -> None:
        assert isinstance(run.config, PairConfig), "a run on pairs"
        assert isinstance(run.model, Seq2Seq), "a run on pairs"
        self.name, self.run = name, run
        self.task: str = run.config.task
        self._config, self._model = run.config, run.model.to(runtime.device).eval()
        self._runtime, self._most = runtime, run.config.data.max_source
        end, unknown = run.model.config.end, run.tokenizer.unknown_id
        self._reader = Reader(run.reader, self._most - 1, occlusions, unknown, after=(end,))
        self._layers = layers_of(self._model)
        self._read = [layer for layer in self._layers if layer["kind"] != "decoder"]

    def about(self) -> Mapping[str, Any]:
        """Tell what clients may know of the model."""
        return {"name": self.name, "task": self.task, "tokens": self._most, "layers": self._layers}

    def predict(self, texts: Sequence[str], off: Sequence[HeadId], writing: Writing, *, cut: bool) -> TextReport:
        """Plan the texts that are to be written; an empty source has none."""
        check_heads(self._layers, off)
        full = [text for text in texts if text.strip()]
        sources, lost = self._reader.encoded(full, cut=cut)
        decoding = self._decoding(writing)
        read = [self._reader.pieces(text) for text in full] if writing.align else []
        works = [self._trace(ids, found, off, decoding) for ids, found in zip(sources, read, strict=False)]
        if not writing.align:
            rows, longest = decoding.beams * len(sources), max(map(len, sources), default=1)
            works = [Work(_Write(self, decoding, tuple(off)), sources, rows, longest)]

        def join(*results: Any) -> dict[str, Any]:
            # Links point into the text that was traced: one that was written in another batch might differ.
            answers = map(self._linked, read, results) if writing.align else map(self._answer, results[0])
            return {"answers": [next(answers) if text.strip() else {"texts": []} for text in texts], "cut": lost}

        return TextReport(tuple(works), join)

    def explain(self, text: str, off: Sequence[HeadId]) -> TextReport:
        """Plan what shows where each written word comes from, and which heads looked at the source."""
        check_heads(self._layers, off)
        (ids,), lost = self._reader.encoded([text], cut=True)
        found = self._reader.pieces(text)
        work = self._trace(ids, found, off, self._decoding(Writing()))

        def join(traced: _Traced) -> dict[str, Any]:
            words = [
                {
                    "begin": piece.begin,
                    "end": piece.end,
                    "drop": float(drop_T.sum()),
                    "head": strongest(traced.heard, self._read, piece.tokens),
                }
                for piece, drop_T in zip(found, traced.drop_NT, strict=True)
            ]
            answer = self._linked(found, traced) if text.strip() else {"texts": []}
            return {"answer": answer, "words": words, "heads": table_of(traced.table), "cut": lost}

        return TextReport((work,), join)

    def view(self, text: str, off: Sequence[HeadId], view: HeadView) -> TextReport:
        """Plan what one head does while the model reads a text and writes another."""
        check_heads(self._layers, [*off, view.head])
        (ids,), _ = self._reader.encoded([text], cut=True)
        spans_K = self._reader.spans(text)
        kind = next(layer["kind"] for layer in self._layers if layer["place"] == view.head.place)
        looked = Statistics(links=3, received=True), view.cells
        work = self._trace(ids, (), off, self._decoding(Writing()), looked)

        def join(traced: _Traced) -> dict[str, Any]:
            written, spans_T = self._written(traced.found[0])
            read, wrote = [*spans_K, (0, 0)], [(0, 0), *spans_T]
            links = head_links(traced.heard, self._layers, view.head)
            sides = {"queries_written": kind != "encoder", "keys_written": kind == "decoder", "written": written}
            spans = {"queries": read if kind == "encoder" else wrote, "keys": wrote if kind == "decoder" else read}
            return {**spans, "links": links, "map": tile_of(traced.table, view), **sides}

        return TextReport((work,), join)

    @torch.inference_mode()
    def write(
        self, sources: Sequence[Sequence[int]], decoding: Decoding, off: tuple[HeadId, ...], stopped: Stopped
    ) -> list[list[Hypothesis]]:
        """Write texts for sources, the best first."""
        with self._runtime.autocast(), off_for_all(self._model, off):
            source = padded(sources, self._runtime.device)
            return self.run.write(*source, decoding, writer=_Stoppable(self._model, stopped))

    @torch.inference_mode()
    def traced(self, source: _Source, asked: _Trace, stopped: Stopped) -> _Traced:
        """Write a text, and see what it rests on."""
        (found,) = self.write([source.ids], asked.decoding, asked.off, stopped)
        ids = [*found[0].ids, self._model.config.end]
        with self._runtime.autocast(), off_for_all(self._model, asked.off):
            score_BT = self._scores([source.ids, *source.masked], ids, stopped)
            usual = Statistics(entropy=True, peak=True, distance=True, sink=1, previous=True, local=2, map=asked.cells)
            with observe(self._model, usual) as observer, hearing(self._model, asked.statistics) as heard:
                target = padded([[self._model.config.begin, *found[0].ids]], self._runtime.device)
                self._model(*padded([source.ids], self._runtime.device), *target)
        return _Traced(found, score_BT[0] - score_BT[1:], observer.table(), heard)

    def _scores(self, sources: Sequence[Sequence[int]], ids: Sequence[int], stopped: Stopped) -> Tensor:
        """Give the log-probability of each of these tokens after each source, shape (B, T)."""
        model = _Stoppable(self._model, stopped)
        state = model.begin(*padded(sources, self._runtime.device))
        token_BW = torch.full((len(sources), 1), self._model.config.begin, device=self._runtime.device)
        scores = []
        for id_ in ids:
            logits_BV = model.step(token_BW, state)[:, 0].float()
            scores.append(logits_BV[:, id_] - logits_BV.logsumexp(-1))
            token_BW = torch.full_like(token_BW, id_)
        return torch.stack(scores, 1).cpu()

    def _trace(
        self,
        ids: list[int],
        read: Sequence[Piece],
        off: Sequence[HeadId],
        decoding: Decoding,
        looked: tuple[Statistics, int] = (_RECEIVED, TILE),
    ) -> Work:
        """Plan what is written for a source, and what each of its pieces does to it."""
        masked = [self._reader.without(ids, piece) for piece in read]
        group = _Trace(self, decoding, tuple(off), *looked)
        return Work(group, _Source(ids, masked), 1 + len(masked), len(ids))

    def _decoding(self, writing: Writing) -> Decoding:
        own = self._config.decoding
        beams = writing.beams or max(own.beams, writing.n_best)
        if writing.n_best > beams:
            raise InputError(f"`n_best` must be at most `beams`; got {writing.n_best} of {beams}. Raise `beams`.")
        return replace(own, method="beam", beams=beams, n_best=writing.n_best)

    def _answer(self, found: Sequence[Hypothesis]) -> dict[str, Any]:
        return {"texts": [{"text": self.run.tokenizer.decode(each.ids), "score": each.score} for each in found]}

    def _linked(self, read: Sequence[Piece], traced: _Traced) -> dict[str, Any]:
        return self._answer(traced.found) | {"links": self._links(read, traced)}

    def _links(self, read: Sequence[Piece], traced: _Traced) -> list[dict[str, Any]]:
        """Link each written word to the source words without which it would be much less likely."""
        written, spans = self._written(traced.found[0])
        links = []
        for word in pieces(written, spans, len(written) or 1):
            drop_N = traced.drop_NT[:, list(word.tokens)].sum(-1).tolist()
            least = max(_LEAST, _SHARE * max(drop_N, default=0.0))
            links += [_link(piece, word, drop) for piece, drop in zip(read, drop_N, strict=True) if drop >= least]
        return links

    def _written(self, found: Hypothesis) -> tuple[str, list[tuple[int, int]]]:
        """Give a written text, and the characters of it that each token stands for."""
        decoded = self.run.tokenizer.decode
        return decoded(found.ids), spans_of([decoded(found.ids[: t + 1]) for t in range(len(found.ids))])


def _link(source: Piece, target: Piece, drop: float) -> dict[str, Any]:
    return {"source": (source.begin, source.end), "target": (target.begin, target.end), "drop": drop}
