"""Summarize: what is peculiar to it among the tasks that turn one text into another."""

from __future__ import annotations

from collections.abc import Sequence

from headwise.tasks.pairs import PairSettings, PairTask
from headwise.tasks.text_metrics import TextScore, lead_sentence, rouge

__all__ = ["SUMMARIZATION"]


def _named(name: str) -> str:
    """Write `ROUGE-1` as figures are called: `rouge_1`."""
    return name.lower().replace("-", "_")


def _scores(texts: Sequence[str], references: Sequence[str], settings: PairSettings) -> dict[str, TextScore]:
    return {_named(name): score for name, score in rouge(texts, references, language=settings.scored_as).items()}


def _score(texts: Sequence[str], references: Sequence[str], settings: PairSettings) -> dict[str, float]:
    return {name: score.value for name, score in _scores(texts, references, settings).items()}


def _report(
    texts: Sequence[str], references: Sequence[str], sources: Sequence[str], settings: PairSettings
) -> dict[str, float | str]:
    scores = _scores(texts, references, settings)
    lead = _score([lead_sentence(source) for source in sources], references, settings)
    figures: dict[str, float | str] = {}
    for own, score in scores.items():
        low, high = score.interval()
        figures |= {own: score.value, f"{own}_low": low, f"{own}_high": high, f"{own}_of_lead": lead[own]}
    return figures | {"rouge_signature": next(iter(scores.values())).signature}


SUMMARIZATION = PairTask(
    "summarization",
    ("text", "body", "document", "article", "report", "dialogue", "content"),
    ("summary", "headline", "subject", "title", "highlights"),
    ("rouge_1", "rouge_2", "rouge_l"),
    _score,
    _scores,
    _report,
)
"""Long texts become short ones; scored by ROUGE."""
