"""Hold the settings of a model that reads one text and writes another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from headwise.errors import ConfigError
from headwise.models.config import EncoderConfig

__all__ = ["DecoderConfig", "Seq2SeqConfig", "seq2seq_preset"]


@dataclass(frozen=True)
class DecoderConfig:
    """Describe what a decoder has of its own; all else is as in the encoder's settings.

    What is left out, and numbers of heads, are written out as soon as they stand in a `Seq2SeqConfig`.
    """

    layers: int | None = None
    """Number of layers; as many as the encoder has where left out."""
    heads: int | tuple[tuple[int, ...], ...] | None = None
    """Heads of each layer that look at what is written, by name, or one number; as in the encoder's first layer."""
    kv_heads: int | tuple[int, ...] | None = None
    """Their key and value heads, of each layer or one for all; as many as heads where left out."""
    cross_heads: int | tuple[tuple[int, ...], ...] | None = None
    """Heads of each layer that look at the source, by name, or one number; as in the encoder's first layer."""
    cross_kv_heads: int | tuple[int, ...] | None = None
    """Their key and value heads, of each layer or one for all; as many as heads where left out."""
    d_ff: int | None = None
    """Width of the feed-forward part; the encoder's where left out."""

    def beside(self, encoder: EncoderConfig) -> DecoderConfig:
        """Write out what was left out; what cannot be stays as it is, for `problems` to tell."""
        usual = len(encoder.heads[0]) if isinstance(encoder.heads, tuple) and encoder.heads else 0
        layers = encoder.layers if self.layers is None else self.layers
        heads, cross = _named(self.heads, usual, layers), _named(self.cross_heads, usual, layers)
        return replace(
            self,
            layers=layers,
            heads=heads,
            kv_heads=_counted(self.kv_heads, heads),
            cross_heads=cross,
            cross_kv_heads=_counted(self.cross_kv_heads, cross),
            d_ff=encoder.d_ff if self.d_ff is None else self.d_ff,
        )

    def as_encoder(self, encoder: EncoderConfig, *, cross: bool) -> EncoderConfig:
        """Give the settings of an encoder that has this decoder's layers, with one of its two kinds of heads."""
        heads, groups = (self.cross_heads, self.cross_kv_heads) if cross else (self.heads, self.kv_heads)
        written: dict[str, Any] = {"layers": self.layers, "heads": heads, "kv_heads": groups, "d_ff": self.d_ff}
        return replace(encoder, **written)


def _named(heads: Any, usual: int, layers: int) -> Any:
    count = usual if heads is None else heads
    if isinstance(count, int) and count >= 1 and isinstance(layers, int):
        return (tuple(range(count)),) * layers
    return count


def _counted(groups: Any, heads: Any) -> Any:
    if not isinstance(heads, tuple | list):
        return groups
    if groups is None:
        return tuple(len(names) for names in heads)
    return (groups,) * len(heads) if isinstance(groups, int) else groups


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Describe an encoder and a decoder that reads it.

    Example:
        >>> config = Seq2SeqConfig(EncoderConfig(vocabulary=100, layers=3, heads=4), DecoderConfig(layers=1))
        >>> config.decoder.cross_heads
        ((0, 1, 2, 3),)
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The encoder, and all of the decoder that has no setting of its own."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The decoder's layers and heads."""
    target_vocabulary: int | None = None
    """Number of tokens of what is written; the encoder's where left out."""
    shared: bool = True
    """Whether both sides have one table of token vectors, as for a joint vocabulary."""
    tied: bool = True
    """Whether the table of the target's token vectors is the output's, too (Press and Wolf 2017)."""
    output_bias: bool = False
    """Whether the output adds a bias for each token."""
    copy: bool = False
    """Whether a token may be copied from the source by the last layer's cross attention (See et al. 2017)."""
    begin: int = 1
    """Token that what is written begins with."""
    end: int = 2
    """Token that what is written ends with."""
    pad: int = 0
    """Token that is never written; it stands beyond the end of padded texts."""

    def __post_init__(self) -> None:
        """Write shorthands out."""
        if isinstance(self.encoder, EncoderConfig) and isinstance(self.decoder, DecoderConfig):
            object.__setattr__(self, "decoder", self.decoder.beside(self.encoder))
            if self.target_vocabulary is None:
                object.__setattr__(self, "target_vocabulary", self.encoder.vocabulary)

    def problems(self) -> Iterator[str]:
        """Tell what no model can have, a line each."""
        for cross in (False, True):
            lines = self.decoder.as_encoder(self.encoder, cross=cross).problems()
            known = set(self.encoder.problems())
            yield from (f"decoder, {'source' if cross else 'own'} heads: {line}" for line in lines if line not in known)
        sizes = self.encoder.vocabulary, self.target_vocabulary or 0
        if self.shared and sizes[0] != sizes[1]:
            yield f"`shared` vectors need one vocabulary; got {sizes[0]} and {sizes[1]} tokens. Set shared to false."
        if self.copy and sizes[0] != sizes[1]:
            yield f"`copy` needs one vocabulary; got {sizes[0]} and {sizes[1]} tokens. Train one tokenizer."
        if self.tied and self.encoder.embedding_width not in (None, self.encoder.d_model):
            told = f"{self.encoder.embedding_width} beside d_model {self.encoder.d_model}"
            yield f"`tied` vectors must be as wide as the states; got {told}. Set tied to false."
        for name in ("begin", "end", "pad"):
            token = getattr(self, name)
            if token < 0 or (sizes[1] and token >= sizes[1]):
                yield f"`{name}` must be a token of the target's vocabulary of {sizes[1]}; got {token}. Change it."


_SHARED = {"activation": "relu", "norm": "pre", "positions": "sinusoidal", "scale_embedding": True}
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "d_model": 128,
        "layers": 4,
        "heads": 4,
        "d_ff": 256,
        "dropout": 0.3,
    },
    "small": {
        "d_model": 256,
        "layers": 4,
        "heads": 4,
        "d_ff": 1024,
        "dropout": 0.3,
        "attention_dropout": 0.1,
        "feed_forward_dropout": 0.1,
    },
    "base": {
        "d_model": 512,
        "layers": 6,
        "heads": 8,
        "d_ff": 2048,
        "dropout": 0.1,
    },
}


def seq2seq_preset(size: str) -> dict[str, Any]:
    """Give the settings of a model for an amount of pairs, as a table to read or to change.

    Vectors are shared by both sides and tied to the output everywhere: a rare word is learned from all its uses, and
    the tables, most of a small model, are there once. Parts are normalised before, not after as in the papers named:
    normalised after, an encoder of 4 layers came to give every position the same state at the learning rates that
    small models want, and nothing was translated.

    - tiny: up to some 30 thousand pairs; the Transformer-Tiny of Wu et al. 2021 (section 3.1), 4 + 4 layers of width
      128, 1.3 million parameters besides the vectors. Larger models learn so few pairs by heart; dropout of 0.3 keeps
      this one from it.
    - small: about 100 thousand pairs; twice as wide, 7.4 million parameters besides the vectors, the shape that is
      usual for IWSLT, with dropout inside the layers as well: the data still ends long before the training does.
    - base: a million pairs and more; the base model of Vaswani et al. 2017, 44 million besides the vectors. There is
      enough data that a dropout of 0.1 will do; for a GPU, or for patience.

    Raises:
        ConfigError: when there is no such size.

    Example:
        >>> seq2seq_preset("tiny")["encoder"]["d_model"]
        128
    """
    if size not in _SIZES:
        raise ConfigError(f"`size` must be one of {', '.join(_SIZES)}; got {size!r}. tiny suits two cores.")
    return {"encoder": _SHARED | _SIZES[size]}
