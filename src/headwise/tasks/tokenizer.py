"""Cut texts into tokens: words, subwords or characters, trained on the user's texts, or a pretrained model's own.

Everything is a Hugging Face `tokenizers.Tokenizer` and is saved as its tokenizer.json, which other programs read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from headwise.errors import InputError
from headwise.tasks.chinese import cut_words, has_chinese, places_before
from headwise.tasks.extras import need
from headwise.tasks.files import written
from headwise.tasks.pieces import BEGIN, END, PADDING, UNKNOWN, Kind, TokenizerSettings, mark_of, untrained

if TYPE_CHECKING:
    import tokenizers

__all__ = ["Encoded", "Tokenizer"]


class Encoded(NamedTuple):
    """Hold the token ids of some texts."""

    ids: list[list[int]]
    """One list a text, at least one id each: a text without any token is one unknown token."""
    cut: int
    """How many texts were longer than allowed and lost their end."""


@dataclass(frozen=True)
class Tokenizer:
    """Turn texts into token ids and back. Id 0 is padding in every batch.

    A tokenizer trained here has the ids 0 = padding, 1 = unknown, 2 = begin, 3 = end. A pretrained one keeps its own,
    and always puts its own tokens around a text.
    """

    inner: tokenizers.Tokenizer
    """The tokenizer of `tokenizers`."""
    prefix: str = ""
    """Text that stands before each one when it is cut; it is no part of what is saved."""

    def __post_init__(self) -> None:
        self.inner.no_padding()
        self.inner.no_truncation()
        # So that a text that spells out `</s>` or `[SEP]` is text.
        self.inner.encode_special_tokens = True

    @classmethod
    def train(cls, texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
        """Learn a vocabulary from texts, which are read once and not kept.

        Raises:
            InputError: when nothing is left to learn, or Chinese words need an extra.
        """
        inner, trainer = untrained(settings)
        tokenizer = cls(inner)
        # Asked before: while it trains, the library holds a lock that any question to the tokenizer waits for.
        chinese = tokenizer._cuts_chinese
        inner.train_from_iterator((_prepared(text, chinese) for text in texts), trainer)
        if tokenizer.size <= len((PADDING, UNKNOWN, BEGIN, END)):
            raise InputError(
                f"the texts must hold tokens seen {settings.min_frequency} times; got none. Lower `min_frequency`."
            )
        return tokenizer

    def knowing(self, words: Iterable[str], most: int) -> Tokenizer:
        """Add words to a vocabulary of words, as long as it holds fewer than `most` tokens.

        Args:
            words: the first come first; those that a text never holds, as they would be cut or written in small
                letters, are left out.
            most: most tokens of the vocabulary.
        """
        held = self.inner.get_vocab()
        for word in words:
            if len(held) >= most:
                break
            if word not in held and self._leaves(word):
                held[word] = len(held)
        inner = need("tokenizers").Tokenizer.from_str(self.json)
        inner.model = need("tokenizers.models").WordLevel(held, unk_token=UNKNOWN)
        return Tokenizer(inner)

    def _leaves(self, word: str) -> bool:
        """Tell whether a word goes through what comes before the vocabulary as it is."""
        normalizer, cutter = self.inner.normalizer, self.inner.pre_tokenizer
        given = _prepared(word, self._cuts_chinese)
        written = given if normalizer is None else normalizer.normalize_str(given)
        return written == word and [piece for piece, _ in cutter.pre_tokenize_str(word)] == [word]

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Load a tokenizer.json.

        Raises:
            InputError: when it is missing or broken.
        """
        library = need("tokenizers")
        try:
            return cls(library.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except Exception as error:
            # The library raises plain `Exception` for a file that it cannot read.
            if type(error) is not Exception and not isinstance(error, OSError | UnicodeDecodeError):
                raise
            raise InputError(f"{path} must be a tokenizer.json; got: {error}. Save the tokenizer again.") from error

    @classmethod
    def pretrained(cls, name: str) -> Tokenizer:
        """Load the tokenizer of a pretrained model.

        Args:
            name: a folder with tokenizer.json or vocab.txt, or the name of a model on the Hugging Face hub.

        Raises:
            InputError: when there is none.
        """
        folder = Path(name).expanduser()
        if (folder / "tokenizer.json").exists():
            return cls.load(folder / "tokenizer.json")
        if (folder / "vocab.txt").exists():
            return cls(_word_pieces(folder))
        if folder.exists():
            raise InputError(f"{folder} must hold tokenizer.json or vocab.txt; got neither. Name another folder.")
        try:
            return cls(need("transformers").AutoTokenizer.from_pretrained(name, use_fast=True).backend_tokenizer)
        except (OSError, ValueError, AttributeError) as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"`{name}` must be a folder, or a model of the Hugging Face hub with a fast tokenizer; got: {told} "
                "Check the name, and the network."
            ) from error

    def save(self, path: Path | str) -> None:
        """Write tokenizer.json."""
        with written(Path(path)) as file:
            file.write(self.json.encode())

    @property
    def json(self) -> str:
        """Write the tokenizer as the text of its tokenizer.json, without the limit of the last call."""
        if self.inner.truncation is None:
            return self.inner.to_str(pretty=True)
        free = need("tokenizers").Tokenizer.from_str(self.inner.to_str())
        free.no_truncation()
        return str(free.to_str(pretty=True))

    @cached_property
    def kind(self) -> Kind | Literal["pretrained"]:
        """Tell what it cuts texts into."""
        return mark_of(self.inner)[0]

    @property
    def size(self) -> int:
        """Count the vocabulary."""
        return int(self.inner.get_vocab_size())

    @property
    def vocabulary(self) -> list[str]:
        """List the tokens by id; an id without a token has an empty text."""
        held = self.inner.get_vocab()
        tokens = [""] * (max(held.values(), default=-1) + 1)
        for token, id_ in held.items():
            tokens[id_] = token
        return tokens

    @property
    def unknown_id(self) -> int:
        """Give the id of what the vocabulary does not hold; 1 for tokenizers trained here."""
        name = getattr(self.inner.model, "unk_token", None)
        return self._id(name, UNKNOWN, "[UNK]", "<unk>")

    @property
    def begin_id(self) -> int:
        """Give the id of the token before a text."""
        return self._id(BEGIN, "[CLS]")

    @property
    def end_id(self) -> int:
        """Give the id of the token after a text."""
        return self._id(END, "[SEP]")

    def encode(self, texts: Sequence[str], *, max_tokens: int, ends: bool = False) -> Encoded:
        """Turn texts into ids, many at once and in parallel.

        Args:
            max_tokens: most tokens of a text, begin and end among them; what is beyond is cut off and counted.
            ends: put begin and end tokens around each text; a pretrained tokenizer does so in any case.
        """
        self._limit(max_tokens, ends)
        prepared = [_prepared(self.prefix + text, self._cuts_chinese) for text in texts]
        found = self.inner.encode_batch_fast(prepared, add_special_tokens=self._ends(ends))
        cut = sum(1 for each in found if len(each) == max_tokens and each.overflowing)
        return Encoded([each.ids or [self.unknown_id] for each in found], cut)

    def offsets(self, text: str, *, max_tokens: int, ends: bool = False) -> list[tuple[int, int]]:
        """Say which characters of the text each token stands for, begin and end; both 0 for tokens around the text."""
        self._limit(max_tokens, ends)
        given = self.prefix + text
        prepared = _prepared(given, self._cuts_chinese)
        found = self.inner.encode(prepared, add_special_tokens=self._ends(ends)).offsets or [(0, len(prepared))]
        if prepared != given:
            before = places_before(prepared, given)
            found = [(before[begin], before[end - 1] + 1 if end > begin else before[end]) for begin, end in found]
        skipped = len(self.prefix)
        return [(max(begin - skipped, 0), max(end - skipped, 0)) for begin, end in found]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Write each id as its token."""
        return [self.inner.id_to_token(int(id_)) or "" for id_ in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Put tokens together again, without those that stand around a text."""
        return str(self.inner.decode([int(id_) for id_ in ids], skip_special_tokens=True))

    def _id(self, *names: str | None) -> int:
        found = (self.inner.token_to_id(name) for name in names if name)
        id_ = next((id_ for id_ in found if id_ is not None), None)
        if id_ is None:
            raise InputError(f"the tokenizer must have one of {', '.join(filter(None, names))}; got none. Use another.")
        return int(id_)

    def _ends(self, ends: bool) -> bool:
        return ends or self.kind == "pretrained"

    def _limit(self, max_tokens: int, ends: bool) -> None:
        least = self.inner.num_special_tokens_to_add(False) + 1 if self._ends(ends) else 1
        if max_tokens < least:
            raise InputError(f"`max_tokens` must be at least {least}; got {max_tokens}. 256 is usual.")
        held = self.inner.truncation
        if held is None or held["max_length"] != max_tokens:
            self.inner.enable_truncation(max_tokens)

    @cached_property
    def _cuts_chinese(self) -> bool:
        return mark_of(self.inner)[1]


def _prepared(text: str, chinese: bool) -> str:
    """Put spaces between Chinese words, where the tokenizer takes them as they are given."""
    return cut_words(text) if chinese and has_chinese(text) else text


def _word_pieces(folder: Path) -> tokenizers.Tokenizer:
    """Build BERT's tokenizer from its vocab.txt, lower-casing as tokenizer_config.json says (it does by default)."""
    config = folder / "tokenizer_config.json"
    lowercase = True
    if config.exists():
        try:
            lowercase = bool(json.loads(config.read_bytes()).get("do_lower_case", True))
        except (ValueError, AttributeError) as error:
            raise InputError(f"`{config}` must be a JSON object; got: {error}. Copy the model again.") from error
    kind = need("tokenizers.implementations").BertWordPieceTokenizer
    inner: tokenizers.Tokenizer = kind(str(folder / "vocab.txt"), lowercase=lowercase)._tokenizer
    return inner
