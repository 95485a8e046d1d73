"""Read what stands beside the weights of a pretrained encoder-decoder: its tokenizer, and how it is to write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.contracts.settings import read
from headwise.errors import ConfigError, InputError
from headwise.models import Seq2Seq, load_seq2seq, locate
from headwise.models.checkpoint import read_config
from headwise.tasks.decoding import Decoding
from headwise.tasks.extras import need
from headwise.tasks.purpose import Purpose, purpose_of
from headwise.tasks.sentence_pieces import read_pieces, unigram
from headwise.tasks.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

__all__ = ["PretrainedPairs", "load_pretrained_pairs", "pair_tokenizer", "usual_decoding"]


@dataclass(frozen=True)
class PretrainedPairs:
    """Hold a pretrained model that writes texts, and all that it needs for it."""

    model: Seq2Seq
    """The model, in evaluation mode."""
    tokenizer: Tokenizer
    """Cuts its sources, without the end token, which stands after each, and puts together what it writes."""
    decoding: Decoding
    """How it is usually made to write; tokens that it must not write are suppressed there."""
    purpose: Purpose
    """What it is used for."""


def load_pretrained_pairs(source: str | Path, task: str | None = None) -> PretrainedPairs:
    """Read a pretrained Marian (OPUS-MT), BART, T5 or mT5 as transformers keeps it, ready to write.

    Marian's tokenizer is read from its SentencePiece models and its vocabulary; the others' from tokenizer.json, or a
    SentencePiece model. Punctuation is not normalised before, as Marian's own tokenizer does where sacremoses is
    installed.

    Args:
        source: a folder, or a name on the Hugging Face hub, which alone uses the network.
        task: as for `purpose_of`.

    Raises:
        InputError: when a part of it is missing, or of a kind that is not known, or it is not for such a task.
    """
    folder = locate(source)
    model = load_seq2seq(folder)
    tokenizer = pair_tokenizer(folder)
    size = model.config.encoder.vocabulary
    if len(tokenizer.vocabulary) > size:
        raise InputError(
            f"`{folder}` must hold a tokenizer of {size} tokens; got {len(tokenizer.vocabulary)}. Copy it again."
        )
    purpose = purpose_of(read_config(folder), str(source), task)
    return PretrainedPairs(model, tokenizer, usual_decoding(folder, model.config.pad, purpose.settings), purpose)


def pair_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a pretrained encoder-decoder, which puts no end token after a text.

    Raises:
        InputError: when there is none, or it has two vocabularies.
    """
    if (folder / "tokenizer.json").is_file():
        return Tokenizer(_without_end(Tokenizer.load(folder / "tokenizer.json").inner))
    if (folder / "target_vocab.json").is_file():
        raise InputError(f"`{folder}` must have one vocabulary; got one for each side. Take another model.")
    if (folder / "source.spm").is_file() and (folder / "vocab.json").is_file():
        ids = _table(folder / "vocab.json")
        return Tokenizer(_marked(unigram(read_pieces(folder / "source.spm"), ids, "<unk>"), ids))
    for name in ("spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).is_file():
            pieces = read_pieces(folder / name)
            ids = {piece: i for i, piece in enumerate(pieces.scores)}
            return Tokenizer(_marked(unigram(pieces, ids, "<unk>"), ids))
    raise InputError(
        f"`{folder}` must hold tokenizer.json, or source.spm and vocab.json, or spiece.model; got none. Copy it again."
    )


def _marked(tokenizer: tokenizers.Tokenizer, ids: dict[str, int]) -> tokenizers.Tokenizer:
    """Tell the tokenizer which tokens stand for no text, and which are names of languages that stand in the text."""
    special = [name for name in ("<pad>", "</s>", "<unk>", "<s>") if name in ids]
    tokenizer.add_special_tokens(special)
    language = [name for name in ids if name.startswith(">>") and name.endswith("<<")]
    tokenizer.add_tokens([need("tokenizers").AddedToken(name, normalized=False) for name in language])
    return tokenizer


def _without_end(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Have the tokenizer put before a text what it does, and nothing after it."""
    bare, full = (tokenizer.encode("a", add_special_tokens=ends) for ends in (False, True))
    first = full.special_tokens_mask.index(0) if bare.ids else 0
    pairs = [(token, int(id_)) for token, id_ in zip(full.tokens[:first], full.ids[:first], strict=True)]
    before = " ".join(token for token, _ in pairs)
    template = need("tokenizers").processors.TemplateProcessing
    tokenizer.post_processor = template(f"{before} $A".strip(), None, pairs)
    return tokenizer


def usual_decoding(folder: Path, pad: int, asked: Mapping[str, Any] | None = None) -> Decoding:
    """Read how a pretrained model is usually made to write.

    Older folders tell it in config.json. What chance, groups of beams and constraints would ask for is not taken over.

    Args:
        folder: where generation_config.json and config.json are.
        pad: the padding's id, which is never written.
        asked: settings, by the names of Transformers, that take the place of those in the files.

    Raises:
        InputError: when a file is broken, or asks for what no search can do.
    """
    told = _table(folder / "config.json")
    if (folder / "generation_config.json").is_file():
        told |= _table(folder / "generation_config.json")
    told |= asked or {}
    beams = told.get("num_beams") or 1
    banned = [ids[0] for ids in told.get("bad_words_ids") or () if len(ids) == 1]
    longest = told.get("max_new_tokens") or (told.get("max_length") or 201) - 1  # theirs counts the begin token
    settings = {
        "method": "beam" if beams > 1 else "greedy",
        "beams": beams,
        "length_penalty": told.get("length_penalty") or 1.0,
        "no_repeat": told.get("no_repeat_ngram_size") or 0,
        "max_length": longest,
        "max_ratio": None,
        "min_length": min(told.get("min_new_tokens") or max((told.get("min_length") or 0) - 1, 0), longest - 1),
        "suppress": tuple(dict.fromkeys((*banned, *(told.get("suppress_tokens") or ()), pad))),
        "stop": "early",
        "prefix": () if (first := told.get("forced_bos_token_id")) is None else (first,),
    }
    try:
        return read(Decoding, settings)
    except ConfigError as error:
        raise InputError(f"`{folder}` must tell how to write; got\n{error}") from error


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"`{path}` must be a JSON file; got {error!r}. Copy it again.") from error
    if not isinstance(table, dict):
        raise InputError(f"`{path}` must hold a table; got {type(table).__name__}. Copy it again.")
    return table
