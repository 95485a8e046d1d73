"""Translate: what is peculiar to it among the tasks that turn one text into another."""

from __future__ import annotations

from collections.abc import Sequence

from headwise.tasks.pairs import PairSettings, PairTask
from headwise.tasks.text_metrics import TextScore, bleu, chrf

__all__ = ["TRANSLATION"]


def _bleu(texts: Sequence[str], references: Sequence[str], settings: PairSettings) -> TextScore:
    """Score by BLEU; texts that came cut into words are scored by these words, as papers do."""
    tokenize = "none" if settings.tokenizer.pretokenized else None
    return bleu(texts, references, language=settings.scored_as, tokenize=tokenize)


def _score(texts: Sequence[str], references: Sequence[str], settings: PairSettings) -> dict[str, float]:
    return {"bleu": _bleu(texts, references, settings).value}


def _scores(texts: Sequence[str], references: Sequence[str], settings: PairSettings) -> dict[str, TextScore]:
    return {"bleu": _bleu(texts, references, settings), "chrf": chrf(texts, references)}


def _report(
    texts: Sequence[str], references: Sequence[str], sources: Sequence[str], settings: PairSettings
) -> dict[str, float | str]:
    words, letters = _scores(texts, references, settings).values()
    low, high = words.interval()
    copied = _bleu(sources, references, settings)  # what sharing words and names alone is worth
    return {
        "bleu": words.value,
        "bleu_low": low,
        "bleu_high": high,
        "chrf": letters.value,
        "bleu_of_copy": copied.value,
        "bleu_signature": words.signature,
        "chrf_signature": letters.signature,
    }


TRANSLATION = PairTask("translation", ("src",), ("tgt", "translation"), ("bleu",), _score, _scores, _report)
"""Texts in one language become texts in another; scored by BLEU and chrF."""
