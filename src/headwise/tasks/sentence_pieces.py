"""Read unigram models of SentencePiece as Hugging Face tokenizers, with neither sentencepiece nor protobuf."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headwise.errors import InputError
from headwise.tasks.extras import need

if TYPE_CHECKING:
    import tokenizers

__all__ = ["Pieces", "read_pieces", "unigram"]

_UNIGRAM = 1
"""Number of the kind of model."""
_PENALTY = 10.0
"""How far below the worst piece SentencePiece scores an unknown character."""
_NEVER = -1e6
"""Score of a piece that is never taken, as its characters are there one by one."""


class Pieces(NamedTuple):
    """Hold what a SentencePiece model has learned."""

    scores: dict[str, float]
    """The pieces in their order, with their log-probabilities; 0 for those that stand for no text."""
    rules: bytes
    """How characters are normalised, compiled."""


def read_pieces(path: Path) -> Pieces:
    """Read a SentencePiece model.

    Raises:
        InputError: when it is missing, broken, or not a unigram model.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        parts: dict[int, Any] = dict(fields)
        pieces: list[dict[int, Any]] = [dict(_fields(value)) for number, value in fields if number == 1]
        scores = {piece[1].decode(): float(struct.unpack("<f", piece.get(2, bytes(4)))[0]) for piece in pieces}
        trainer, normalizer = (dict(_fields(parts.get(number, b""))) for number in (2, 3))
    except (OSError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise InputError(f"`{path}` must be a SentencePiece model; got {error!r}. Copy it again.") from error
    if not scores or trainer.get(3, _UNIGRAM) != _UNIGRAM:
        told = f"{len(scores)} pieces, type {trainer.get(3, _UNIGRAM)}"
        raise InputError(f"`{path}` must be a unigram model of SentencePiece; got {told}. Save it as tokenizer.json.")
    return Pieces(scores, normalizer.get(2, b""))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Go through the numbered fields of a message of protocol buffers."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            case 2:
                size, at = _varint(message, at)
            case 1 | 5 as kind:
                size = 8 if kind == 1 else 4
            case kind:
                raise ValueError(f"a field of type {kind}")
        if at + size > len(message):
            raise ValueError("an end that is cut off")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, the lowest first; give it and where the next field begins."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def unigram(pieces: Pieces, ids: Mapping[str, int], unknown: str) -> tokenizers.Tokenizer:
    """Build the tokenizer that cuts texts into these pieces, with these ids.

    Args:
        pieces: the model.
        ids: the vocabulary. What the model lacks of it is never read but for single characters, each of which stands
            for itself where the model does not know it.
        unknown: name of the token that stands for what is unknown.
    """
    library = need("tokenizers")
    names = {id_: name for name, id_ in ids.items()}
    held = [names.get(i, f"<unused {i}>") for i in range(max(names) + 1)]
    unknown_score = min(pieces.scores.values()) - _PENALTY
    scored = [(name, pieces.scores.get(name, unknown_score if len(name) == 1 else _NEVER)) for name in held]
    tokenizer: tokenizers.Tokenizer = library.Tokenizer(library.models.Unigram(scored, unk_id=ids[unknown]))
    kinds = library.normalizers
    steps = [kinds.Precompiled(pieces.rules)] if pieces.rules else []
    tokenizer.normalizer = kinds.Sequence([*steps, kinds.Replace(library.Regex(r"\s+"), " "), kinds.Strip()])
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = library.decoders.Metaspace(prepend_scheme="always")
    return tokenizer
