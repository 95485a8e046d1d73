"""Say which words of two texts belong together, by the heads of a translator that turn out to align."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headwise.contracts.files import read_format, write_whole
from headwise.errors import InputError
from headwise.models import Seq2Seq
from headwise.recipes.batches import checked_texts, in_batches
from headwise.recipes.run import Run
from headwise.tasks.align import Aligner, AligningHead, align, by_words
from headwise.tasks.encoding import Tokens
from headwise.tasks.pairs import PairExamples, PairSettings
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import Runtime

__all__ = ["WordLinks", "align_texts", "read_aligner", "save_aligner", "translator"]

_FILE, _FORMAT = "aligner.json", 1
_SPACELESS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
"""A word: what stands between spaces; of Chinese and Japanese, a character."""


@dataclass(frozen=True)
class WordLinks:
    """Hold which words of a text and its translation belong together."""

    source_words: tuple[str, ...]
    """What stands between spaces in the text; of Chinese and Japanese, each character."""
    target_words: tuple[str, ...]
    """The same of the translation."""
    links: tuple[tuple[int, int], ...]
    """Pairs of a source word and a target word, both counted from 0."""

    def __str__(self) -> str:
        """Write the links as `0-0 1-2`, as aligners do."""
        return " ".join(f"{i}-{j}" for i, j in self.links)


def translator(run: Run) -> Seq2Seq:
    """Give the model of a run on pairs.

    Raises:
        InputError: for a run of another task.
    """
    if not isinstance(run.model, Seq2Seq):
        told = f"translation or summarization; got {run.config.task}"
        raise InputError(f"to align, a run must be of {told}. Name another run.")
    return run.model


def align_texts(
    run: Run, aligner: Aligner, sources: Sequence[str], targets: Sequence[str], runtime: Runtime
) -> list[WordLinks]:
    """Link the words of texts to those of their translations, whoever wrote these.

    Args:
        run: the run for which the aligner was found.
        aligner: which of its heads to ask.
        sources: the texts.
        targets: a translation of each.
        runtime: on what.
    """
    checked_texts([*sources, *targets])
    model, data = translator(run).to(runtime.device).eval(), run.config.data
    assert isinstance(data, PairSettings), "the settings of a run on pairs"
    sides = _Side(run.reader, data.max_source - 1), _Side(run.tokenizer, data.max_target - 2)
    source, target = (side.tokens(texts) for side, texts in zip(sides, (sources, targets), strict=True))
    held = PairExamples(source, target, model.config.begin, model.config.end)
    found: dict[int, list[tuple[int, int]]] = {}
    with torch.inference_mode(), runtime.autocast():
        for batch in in_batches(held, runtime):
            links = align(model, batch, aligner, special=(model.config.end,))
            found.update(zip(batch.row_B.tolist(), links, strict=True))
    found = {row: links for part in runtime.gather([found]) for row, links in part.items()}
    linked = []
    for row, texts in enumerate(zip(sources, targets, strict=True)):
        (read, read_at), (written, written_at) = (side.words(text) for side, text in zip(sides, texts, strict=True))
        linked.append(WordLinks(read, written, tuple(by_words(found[row], read_at, written_at))))
    return linked


class _Side(NamedTuple):
    """Cut the texts of one side of the pairs."""

    tokenizer: Tokenizer
    most: int
    """Most tokens of a text."""

    def tokens(self, texts: Sequence[str]) -> Tokens:
        return Tokens.of(self.tokenizer.encode(texts, max_tokens=self.most))

    def words(self, text: str) -> tuple[tuple[str, ...], list[int]]:
        """Give the words of a text, and which of them each of its tokens belongs to; -1 for none."""
        words = list(_WORD.finditer(text))
        spans = self.tokenizer.offsets(text, max_tokens=self.most)
        return tuple(word.group() for word in words), [_word_at(begin, end, words) for begin, end in spans]


def _word_at(begin: int, end: int, words: Sequence[re.Match[str]]) -> int:
    """Tell which word holds the end of a token, since a token may begin with the space before it; -1 for none."""
    return next((i for i, word in enumerate(words) if word.start() < end <= word.end() and end > begin), -1)


def save_aligner(aligner: Aligner, folder: Path) -> None:
    """Write an aligner into the folder of its run."""
    table = [[*head, agreement] for head, agreement in aligner.table.items()]
    held = {
        "format": _FORMAT,
        "heads": aligner.heads,
        "agreement": aligner.agreement,
        "sure": aligner.sure,
        "table": table,
    }
    write_whole(folder / _FILE, (json.dumps(held, indent=2) + "\n").encode())


def read_aligner(folder: Path) -> Aligner:
    """Read the aligner of a run.

    Raises:
        InputError: when none was found yet, or the file is torn.
    """
    path = folder / _FILE
    if not path.is_file():
        told = f"heads that align; got no {_FILE} in it"
        raise InputError(f"{folder} must know {told}. Run `headwise align {folder} --data TRAIN` first.")

    def read(held: Any) -> Aligner:
        heads = tuple(AligningHead(*head) for head in held["heads"])
        table = {AligningHead(*head): agreement for *head, agreement in held["table"]}
        return Aligner(heads, held["agreement"], held["sure"], table)

    return read_format(path.read_bytes(), _FORMAT, read, f"`{path}`", "Run `headwise align` again.")
