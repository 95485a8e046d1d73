"""Score texts against references: BLEU, chrF and ROUGE, how sure the figure is, and whether two runs differ.

Every metric is a formula over sums of counts that each sentence has of its own. So a corpus is scored, and scored
again on thousands of samples of its sentences, without counting anything twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

from headwise.errors import ConfigError, InputError
from headwise.tasks.extras import need

__all__ = ["Comparison", "TextScore", "bleu", "chrf", "lead_sentence", "rouge"]

_Formula = Callable[[np.ndarray], np.ndarray]

_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}
"""sacreBLEU's tokenizer by language, where it is not its default for languages that put spaces between words."""
_KNOWN = ("13a", "intl", "zh", "char", "none")
_CHARACTER_ORDER, _BETA = 6, 2
_IDEOGRAPHS = r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3040-\u30ff"


class Comparison(NamedTuple):
    """Say how two runs on the same sentences differ."""

    difference: float
    """Score of the first less that of the second, in points."""
    low: float
    """Lower end of the difference's 95 % interval."""
    high: float
    """Upper end."""
    p: float
    """How often a difference as large arises where the two are equally good, 0 to 1 (Koehn 2004, bootstrap)."""


@dataclass(frozen=True)
class TextScore:
    """Hold what a metric counted in every sentence, and give the score of them all, 0 to 100.

    Example:
        >>> score = chrf(["a small dog"], ["a small dog"])
        >>> score.value
        100.0
    """

    name: str
    """Name of the metric."""
    signature: str
    """All that must be equal for two figures to be comparable."""
    counts_NK: np.ndarray
    """What was counted in each of the N sentences."""
    formula: _Formula
    """Gives the scores of sums of counts, from shape (..., K) to (...)."""

    @property
    def value(self) -> float:
        """Give the score of the corpus, 0 to 100."""
        return float(self.formula(self.counts_NK.sum(0)))

    def interval(self, samples: int = 1000, *, seed: int = 12345) -> tuple[float, float]:
        """Give the ends of the 95 % interval of the score, by drawing the sentences anew."""
        low, high = np.percentile(self.formula(_resampled(self.counts_NK, samples, seed)), [2.5, 97.5])
        return float(low), float(high)

    def compare(self, other: TextScore, samples: int = 1000, *, seed: int = 12345) -> Comparison:
        """Hold two runs on the same sentences against each other, drawing the same sentences for both.

        Raises:
            InputError: when the two are not of one metric and one number of sentences.
        """
        if self.signature != other.signature or len(self.counts_NK) != len(other.counts_NK):
            told = f"{self.signature} of {len(self.counts_NK)} and {other.signature} of {len(other.counts_NK)}"
            raise InputError(f"runs must have one metric and the same sentences; got {told}. Score both alike.")
        one, two = (self.formula(_resampled(run.counts_NK, samples, seed)) for run in (self, other))
        found, drawn = self.value - other.value, one - two
        low, high = np.percentile(drawn, [2.5, 97.5])
        # Under "equally good" the differences would spread as they do here, but around 0.
        extreme = np.abs(drawn - drawn.mean()) >= abs(found) - 1e-9
        return Comparison(found, float(low), float(high), float((extreme.sum() + 1) / (samples + 1)))


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    language: str = "en",
    tokenize: str | None = None,
    lowercase: bool = False,
) -> TextScore:
    """Score by BLEU (Papineni et al. 2002), as sacreBLEU does with one reference.

    Args:
        hypotheses: what was written, one text a sentence.
        references: what should have been.
        language: target language, which chooses the tokenizer: `zh` for Chinese, `char` for Japanese, Korean and
            Thai, `13a` for all else.
        tokenize: a tokenizer by name instead: "none" scores texts that are tokenised already, as papers on
            `lc.norm.tok` do; "13a", "intl", "zh" and "char" are sacreBLEU's.
        lowercase: whether case counts for nothing.

    Raises:
        InputError: when there are not as many hypotheses as references, or none.
        ConfigError: when there is no such tokenizer.

    Example:
        >>> round(bleu(["the cat sat on the mat"], ["the cat sat on a mat"], tokenize="none").value, 2)
        53.73
    """
    _check(hypotheses, references)
    chosen = tokenize or _TOKENIZERS.get(re.split("[-_]", language.lower())[0], "13a")
    if chosen not in _KNOWN:
        raise ConfigError(f"`tokenize` must be one of {', '.join(_KNOWN)}; got {chosen!r}. Leave it out for 13a or zh.")
    metric = need("sacrebleu").BLEU(tokenize=chosen, lowercase=lowercase, effective_order=True, force=True)
    found = [metric.sentence_score(text, [right]) for text, right in zip(hypotheses, references, strict=True)]
    counts = [[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in found]
    case = "lc" if lowercase else "mixed"
    signature = f"nrefs:1|case:{case}|eff:no|tok:{chosen}|smooth:exp|version:{need('sacrebleu').__version__}"
    return TextScore("BLEU", signature, np.array(counts, dtype=np.float64), _bleu)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> TextScore:
    """Score by chrF2 (Popović 2015): runs of up to 6 characters, recall twice as weighty, spaces left out.

    Raises:
        InputError: when there are not as many hypotheses as references, or none.
    """
    _check(hypotheses, references)
    counts = [_character_matches(*pair) for pair in zip(hypotheses, references, strict=True)]
    version = need("sacrebleu").__version__
    signature = f"nrefs:1|case:mixed|eff:yes|nc:{_CHARACTER_ORDER}|nw:0|space:no|version:{version}"
    return TextScore("chrF2", signature, np.array(counts, dtype=np.float64), _chrf)


def rouge(
    hypotheses: Sequence[str], references: Sequence[str], *, language: str = "en", stem: bool = False
) -> dict[str, TextScore]:
    """Score by the F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), as rouge-score does.

    Args:
        hypotheses: what was written, one text an example.
        references: what should have been.
        language: target language; Chinese, Japanese, Korean and Thai count by characters, where rouge-score itself
            finds no words.
        stem: whether English words count without their endings, as in many papers.

    Raises:
        InputError: when there are not as many hypotheses as references, or none.

    Example:
        >>> round(rouge(["天气很好"], ["天气不好"], language="zh")["ROUGE-1"].value, 1)
        75.0
    """
    _check(hypotheses, references)
    characters, kinds = re.split("[-_]", language.lower())[0] in _TOKENIZERS, ("rouge1", "rouge2", "rougeL")
    scorer = need("rouge_score.rouge_scorer").RougeScorer(
        kinds, use_stemmer=stem, tokenizer=_Characters() if characters else None
    )
    found = [scorer.score(right, text) for text, right in zip(hypotheses, references, strict=True)]
    tokens = "characters" if characters else f"words|stem:{'yes' if stem else 'no'}"
    signature = f"f1|tok:{tokens}|version:{version('rouge-score')}"
    counts = {f"ROUGE-{kind[5:]}": [[one[kind].fmeasure, 1] for one in found] for kind in kinds}
    return {name: TextScore(name, f"{name}|{signature}", np.array(rows), _mean) for name, rows in counts.items()}


def lead_sentence(text: str) -> str:
    """Give the first sentence of a text: a summary that is hard to beat.

    Example:
        >>> lead_sentence("It works. It is fast.")
        'It works.'
    """
    return re.split(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n\s*\n", text.strip(), maxsplit=1)[0].strip()


class _Characters:
    """Cut a text into ideographs and words, as rouge-score asks its tokenizers to."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}_]+", text.lower())


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references) or not hypotheses:
        told = f"{len(hypotheses)} and {len(references)}"
        raise InputError(f"hypotheses and references must be equally many, and some; got {told}. Check both files.")


def _resampled(counts_NK: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sum the counts of sentences drawn with replacement: shape (samples, K)."""
    size = len(counts_NK)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=samples)
    sums: np.ndarray = drawn @ counts_NK
    return sums


def _bleu(counts: np.ndarray) -> np.ndarray:
    """Take the geometric mean of the four precisions, and punish shortness; sacreBLEU's exponential smoothing."""
    ours, theirs, hits, totals = counts[..., 0], counts[..., 1], counts[..., 2:6], counts[..., 6:10]
    missed = np.cumsum((hits == 0) & (totals > 0), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(hits > 0, hits, 0.5**missed) / totals
        logs = np.where(totals > 0, np.log(precision), -np.inf)
        brevity = np.where(ours < theirs, 1 - theirs / ours, 0.0)
        score = 100 * np.exp(logs.mean(-1) + brevity)
    return np.where((hits.sum(-1) > 0) & (totals > 0).all(-1), score, 0.0)


def _runs(text: str) -> Iterator[Counter[str]]:
    """Count the runs of 1 to 6 characters, spaces left out."""
    bare = "".join(text.split())
    for n in range(1, _CHARACTER_ORDER + 1):
        yield Counter(bare[i : i + n] for i in range(len(bare) - n + 1))


def _character_matches(text: str, right: str) -> list[int]:
    """Count, for each length, the runs of the hypothesis, of the reference, and of both."""
    pairs = zip(_runs(text), _runs(right), strict=True)
    rows = [(ours.total(), theirs.total(), (ours & theirs).total()) for ours, theirs in pairs]
    return [count for row in rows for count in row]


def _chrf(counts: np.ndarray) -> np.ndarray:
    """Average F2 over the lengths of which both sides have runs."""
    ours, theirs, both = (counts[..., i::3] for i in range(3))
    known = (ours > 0) & (theirs > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.where(known, both / ours, 0.0), np.where(known, both / theirs, 0.0)
        lengths = known.sum(-1)
        mean_precision, mean_recall = precision.sum(-1) / lengths, recall.sum(-1) / lengths
        factor = _BETA**2
        score = 100 * (1 + factor) * mean_precision * mean_recall / (factor * mean_precision + mean_recall)
    known_score: np.ndarray = np.nan_to_num(score)
    return known_score


def _mean(counts: np.ndarray) -> np.ndarray:
    mean: np.ndarray = 100 * counts[..., 0] / counts[..., 1]
    return mean
