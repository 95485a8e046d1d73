"""Say how texts are cut, as parts of a Hugging Face tokenizer: normalizer, pre-tokenizer, model, trainer, decoder.

Words follow the Penn Treebank's rules, as GloVe's do: `don't` is `do` and `n't`, `film's` is `film` and `'s`, and a
full stop stands alone but after an initial or a usual abbreviation. Text that was cut by these rules before, as the
Stanford Sentiment Treebank is, comes out as it went in, bracket names such as `-LRB-` included. `cannot` and `gonna`
stay whole, because GloVe has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headwise.tasks.extras import need

if TYPE_CHECKING:
    import tokenizers

__all__ = ["BEGIN", "END", "PADDING", "UNKNOWN", "Kind", "TokenizerSettings", "mark_of", "untrained"]

Kind = Literal["words", "subwords", "unigram", "characters"]

PADDING, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"
_SPECIAL = [PADDING, UNKNOWN, BEGIN, END]


@dataclass(frozen=True)
class TokenizerSettings:
    """Choose how texts are cut into tokens."""

    kind: Kind = "words"
    """What tokens are: words (Penn Treebank style), subwords (byte pair encoding), unigram (the likeliest subwords by
    a unigram model, Kudo 2018), or characters."""
    vocabulary: int = 30_000
    """Most tokens that the vocabulary holds; words of a vector file fill what the texts leave of it."""
    min_frequency: int = 1
    """How often a token must be seen to enter the vocabulary; subwords at least twice, unigram has no such rule."""
    lowercase: bool = True
    """Whether capitals become small letters."""
    chinese: Literal["words", "characters", "pieces"] = "words"
    """What Chinese is cut into: words (needs jieba) or characters where tokens are words; where they are subwords,
    pieces of any length if this says so, else characters."""
    pretokenized: bool = False
    """Whether texts are cut already: spaces alone stand between words, and none is cut at its punctuation."""
    texts: int = 1_000_000
    """Most texts that the vocabulary is learned from, spread evenly over the data; 0 for all."""

    def problems(self) -> Iterator[str]:
        """Name what cannot be."""
        if self.vocabulary < len(_SPECIAL) + 1:
            yield f"`vocabulary` must be at least {len(_SPECIAL) + 1}; got {self.vocabulary}. 30000 is usual."
        if self.min_frequency < 1:
            yield f"`min_frequency` must be at least 1; got {self.min_frequency}. Set 1 for all tokens."
        if self.texts < 0:
            yield f"`texts` must be at least 0; got {self.texts}. 0 learns from all."
        if self.chinese == "pieces" and self.kind not in ("subwords", "unigram"):
            yield f"`chinese` can be pieces where tokens are subwords; got {self.kind}. Set words or characters."
        if self.pretokenized and self.kind == "characters":
            yield "`pretokenized` must be false where tokens are characters; got true. Leave it out."

    def sample(self, rows: np.ndarray) -> np.ndarray:
        """Choose the rows of a table that the vocabulary is learned from."""
        if not 0 < self.texts < len(rows):
            return rows
        return rows[np.sort(np.random.default_rng(0).choice(len(rows), self.texts, replace=False))]


_LETTER = r"[\p{L}\p{M}\p{N}&&[^\p{Han}]]"
_ENDED = r"(?![\p{L}\p{N}])"
_CLITIC = rf"(?:s|m|d|ll|re|ve){_ENDED}"
_ABBREVIATION = (
    "Mr|Mrs|Ms|Dr|Prof|Rev|Gen|Sen|Gov|St|Jr|Sr|vs|etc|Inc|Ltd|Co|Corp|Bros|Mt|Ft|Capt|Lt|Col|Sgt|Jan|Feb|Aug|Sept"
    "|Oct|Nov|Dec|dept"
)
_WORDS = (
    # Two quick ways for most tokens; what they leave needs a closer look.
    rf"{_LETTER}++(?!['.:&_\\-]|,\d)",
    r"[,;()\[\]\"]|\.(?!\.)",
    r"-(?:LRB|RRB|LSB|RSB|LCB|RCB)-",
    r"https?://[^\s<>\"]+|www\.[^\s<>\"]+",
    r"<br ?/?>",
    r"&(?:#\d+|\w+);",
    rf"n't{_ENDED}",
    rf"'(?:{_CLITIC}|(?:em|til|tis|twas|n){_ENDED}|\d\ds?{_ENDED})",
    rf"(?:{_ABBREVIATION})\.|No\.(?=\s?\d)",
    rf"(?:\p{{L}}\.){{2,}}(?:\p{{L}}{_ENDED})?",
    r"(?<![\p{L}\p{N}])[b-hj-z]\.(?=\s)",
    rf"{_LETTER}+?(?=n't{_ENDED})",
    rf"{_LETTER}+(?:(?:[-_&]|\\[/*]|(?<=\d)[.,:](?=\d)|\.(?=(?:com|net|org){_ENDED})|'(?!{_CLITIC})){_LETTER}+)*",
    r"(?:\\[/*])+|\.{2,}|-{2,}|``|''|[!?]{2,}|([*=_~])\1+",
    r"\S",
)


def untrained(settings: TokenizerSettings) -> tuple[tokenizers.Tokenizer, Any]:
    """Build a tokenizer without vocabulary, and the trainer that gives it one."""
    library = need("tokenizers")
    model, trainer = _model(library, settings)
    tokenizer: tokenizers.Tokenizer = library.Tokenizer(model)
    tokenizer.normalizer = _normalizer(library, settings)
    tokenizer.pre_tokenizer = _pre_tokenizer(library, settings)
    tokenizer.decoder = _decoder(library, settings)
    pair = [(BEGIN, _SPECIAL.index(BEGIN)), (END, _SPECIAL.index(END))]
    tokenizer.post_processor = library.processors.TemplateProcessing(f"{BEGIN} $A {END}", None, pair)
    return tokenizer, trainer


def mark_of(tokenizer: tokenizers.Tokenizer) -> tuple[Kind | Literal["pretrained"], bool]:
    """Tell what a tokenizer cuts texts into, and whether Chinese words are cut before it sees them.

    A comment in the pattern of its pre-tokenizer says so: tokenizer.json has no room for anything else, and a second
    file could get lost.
    """
    held = tokenizer.pre_tokenizer
    found = (
        re.search(r"\(\?#headwise (words|subwords|unigram|characters)( jieba)?\)", held.__getstate__().decode())
        if held
        else None
    )
    match found and found[1]:
        case "words" | "subwords" | "unigram" | "characters" as kind:
            return kind, bool(found and found[2])
    return "pretrained", False


def _mark(settings: TokenizerSettings) -> str:
    cut = settings.kind == "words" and settings.chinese == "words" and not settings.pretokenized
    jieba = " jieba" if cut else ""
    return f"(?#headwise {settings.kind}{jieba})"


def _model(library: Any, settings: TokenizerSettings) -> tuple[Any, Any]:
    if settings.kind == "subwords":
        trainer = library.trainers.BpeTrainer(
            vocab_size=settings.vocabulary,
            min_frequency=max(2, settings.min_frequency),
            special_tokens=_SPECIAL,
            limit_alphabet=max(1, settings.vocabulary // 2),
            show_progress=False,
        )
        return library.models.BPE(unk_token=UNKNOWN, fuse_unk=True), trainer
    if settings.kind == "unigram":
        trainer = library.trainers.UnigramTrainer(
            vocab_size=settings.vocabulary, special_tokens=_SPECIAL, unk_token=UNKNOWN, show_progress=False
        )
        return library.models.Unigram(), trainer
    trainer = library.trainers.WordLevelTrainer(
        vocab_size=settings.vocabulary,
        min_frequency=settings.min_frequency,
        special_tokens=_SPECIAL,
        show_progress=False,
    )
    return library.models.WordLevel(unk_token=UNKNOWN), trainer


def _normalizer(library: Any, settings: TokenizerSettings) -> Any:
    kinds = library.normalizers
    steps = [kinds.NFC(), kinds.Replace(library.Regex(r"\s+"), " "), kinds.Strip()]
    if settings.kind == "words":
        steps.append(kinds.Replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    if settings.lowercase:
        steps.append(kinds.Lowercase())
    return kinds.Sequence(steps)


def _pre_tokenizer(library: Any, settings: TokenizerSettings) -> Any:
    kinds, regex, mark = library.pre_tokenizers, library.Regex, _mark(settings)
    if settings.kind == "words" and settings.pretokenized:
        return kinds.Split(regex(rf"{mark}\S+"), "removed", invert=True)
    if settings.kind == "words":
        chinese = r"\p{Han}+" if settings.chinese == "words" else r"\p{Han}"
        # The look ahead spares spaces the whole list: twice as fast.
        pattern = rf"{mark}(?=\S)(?i:{'|'.join((*_WORDS[:-1], chinese, _WORDS[-1]))})"
        return kinds.Split(regex(pattern), "removed", invert=True)
    if settings.kind == "characters":
        spaces = kinds.Metaspace(prepend_scheme="never", split=False)
        return kinds.Sequence([spaces, kinds.Split(regex(rf"{mark}[\s\S]"), "isolated")])
    ideograph = "" if settings.chinese == "pieces" else r"\p{Han}|"
    # Of text that is cut already nothing stands alone: a pattern that fits nowhere.
    single = "(?!)" if settings.pretokenized else rf"{ideograph}[^\p{{L}}\p{{M}}\p{{N}}\s]"
    alone = kinds.Split(regex(rf"{mark}{single}"), "isolated")
    return kinds.Sequence([alone, kinds.Metaspace(prepend_scheme="first")])


def _decoder(library: Any, settings: TokenizerSettings) -> Any:
    if settings.kind == "words":
        return None
    return library.decoders.Metaspace(prepend_scheme="never" if settings.kind == "characters" else "first")
