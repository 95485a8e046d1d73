"""Hold the settings of a model: what it takes to build it again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from headwise.contracts import settings
from headwise.errors import ConfigError
from headwise.modules import Activation

__all__ = ["ClassifierConfig", "EncoderConfig", "Positions", "checked", "preset"]

Positions = Literal["none", "sinusoidal", "halves", "learned", "rotary", "alibi", "relative"]

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 128, "layers": 2, "heads": 4, "d_ff": 256},
    "small": {"d_model": 256, "layers": 4, "heads": 4, "d_ff": 1024},
    "base": {"d_model": 512, "layers": 6, "heads": 8, "d_ff": 2048},
}


@dataclass(frozen=True)
class EncoderConfig:
    """Describe a Transformer encoder.

    Numbers of heads are shorthands: they are written out as soon as the settings are built.

    Example:
        >>> EncoderConfig(d_model=64, layers=2, heads=3, d_head=16).heads
        ((0, 1, 2), (0, 1, 2))
        >>> EncoderConfig(layers=2, heads=((0, 1, 2, 3), (0, 2, 3)), d_head=16).kv_heads
        (4, 3)
    """

    vocabulary: int = 0
    """Number of tokens; 0 until the tokenizer is known."""
    d_model: int = 128
    """Width of the hidden states."""
    layers: int = 2
    """Number of layers."""
    heads: int | tuple[tuple[int, ...], ...] = 4
    """Heads of each layer by name, [[0, 1, 2, 3], [0, 2, 3]], or one number for all layers."""
    d_head: int | None = None
    """Width of one head; d_model / heads where left out beside a number of heads."""
    kv_heads: int | tuple[int, ...] | None = None
    """Number of key and value heads, of each layer or one for all; as many as heads where left out."""
    d_ff: int = 256
    """Width of the feed-forward part."""
    activation: Activation = "gelu"
    """What bends the feed-forward part; swiglu and geglu have a third product."""
    bias: bool = True
    """Whether the products of a layer add a bias; T5's do not."""
    norm: Literal["pre", "post"] = "pre"
    """Whether to normalise before each part of a layer, or after it as BERT does."""
    normalisation: Literal["layer", "rms"] = "layer"
    """What the normalisations are: rms takes no mean away and adds no bias, as in T5."""
    norm_eps: float = 1e-5
    """Added to the variance in the normalisations."""
    positions: Positions = "rotary"
    """How the model knows positions; halves are sinusoidal with all sines first, as in Marian."""
    max_positions: int = 512
    """Longest text in tokens; a model with learned positions can take no longer one."""
    buckets: int = 32
    """Number of buckets of relative positions."""
    max_distance: int = 128
    """Distance from which on relative positions share the last bucket."""
    token_types: int = 0
    """Number of token types that are told apart by a vector, as BERT does; 0 for none."""
    embedding_width: int | None = None
    """Width of the word vectors, which are projected where it is not d_model; d_model where left out."""
    scale_embedding: bool = False
    """Whether token vectors are multiplied by sqrt(d_model), so that they can be tied to the output."""
    embedding_norm: bool = False
    """Whether the sum of the embeddings is normalised, as in BERT."""
    dropout: float = 0.1
    """Rate at which values of the embeddings, and of what each part adds, are dropped in training."""
    word_dropout: float = 0.0
    """Rate at which whole token vectors are dropped in training, so that no single word decides."""
    attention_dropout: float = 0.0
    """Rate at which attention weights are dropped in training."""
    feed_forward_dropout: float = 0.0
    """Rate at which values inside the feed-forward part are dropped in training."""
    head_dropout: float = 0.0
    """Rate at which whole heads are dropped in training (DropHead)."""

    def __post_init__(self) -> None:
        """Write shorthands out; what cannot be stays as it is, for `problems` to tell."""
        heads, d_model = self.heads, self.d_model
        if isinstance(heads, int) and heads >= 1 and isinstance(d_model, int) and isinstance(self.layers, int):
            if self.d_head is None and d_model % heads == 0:
                object.__setattr__(self, "d_head", d_model // heads)
            object.__setattr__(self, "heads", (tuple(range(heads)),) * self.layers)
        if self.kv_heads is None and isinstance(self.heads, tuple | list):
            object.__setattr__(self, "kv_heads", tuple(len(names) for names in self.heads))
        elif isinstance(self.kv_heads, int) and isinstance(self.layers, int):
            object.__setattr__(self, "kv_heads", (self.kv_heads,) * self.layers)

    @property
    def head_names(self) -> tuple[tuple[int, ...], ...]:
        """Give the names of the heads of each layer."""
        assert not isinstance(self.heads, int), "the settings were checked"
        return self.heads

    def problems(self) -> Iterator[str]:
        """Tell what no model can have, a line each."""
        for name in ("d_model", "layers", "d_ff", "max_positions"):
            if (value := getattr(self, name)) < 1:
                yield f"`{name}` must be at least 1; got {value}. Set it in the model section."
        if self.positions == "relative" and not self.max_distance > self.buckets // 4 >= 1:
            told = f"{self.buckets} and {self.max_distance}"
            yield f"`buckets` must be at least 4, `max_distance` above a fourth of it; got {told}. T5 has 32 and 128."
        for name in ("vocabulary", "token_types"):
            if (value := getattr(self, name)) < 0:
                yield f"`{name}` must be at least 0; got {value}. Set it in the model section."
        if self.embedding_width is not None and self.embedding_width < 1:
            yield f"`embedding_width` must be at least 1; got {self.embedding_width}. Leave it out for d_model."
        if not self.norm_eps > 0 or math.isinf(self.norm_eps):
            yield f"`norm_eps` must be above 0; got {self.norm_eps}. 1e-5 is usual."
        for name in ("dropout", "word_dropout", "attention_dropout", "feed_forward_dropout", "head_dropout"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                yield f"`{name}` must be at least 0 and below 1; got {rate}. 0.1 is usual."
        if self.positions in ("sinusoidal", "halves") and self.d_model % 2:
            yield f"`d_model` must be even for sinusoidal positions; got {self.d_model}. Add or drop one column."
        yield from self._head_problems()

    def _head_problems(self) -> Iterator[str]:
        if isinstance(self.heads, int):
            yield f"`heads` must be at least 1; got {self.heads}. 4 is usual for small models."
            return
        names = self.heads
        if self.layers >= 1 and len(names) != self.layers:
            yield f"`heads` must name the heads of {self.layers} layers; got {len(names)} lists. Set `layers` as well."
        for i, layer in enumerate(names):
            if not layer or len(set(layer)) != len(layer) or min(layer) < 0:
                found = list(layer)
                yield f"`heads` of layer {i} must be names from 0 on, each once; got {found}. Keep at least one head."
        if self.d_head is None:
            told = f"d_model {self.d_model} and heads {[len(layer) for layer in names]}"
            yield f"`d_head` must be set where heads do not divide d_model or have names; got {told}. 64 is usual."
        elif self.d_head < 1:
            yield f"`d_head` must be at least 1; got {self.d_head}. 64 is usual."
        elif self.positions == "rotary" and self.d_head % 2:
            yield f"`d_head` must be even for rotary positions; got {self.d_head}. Add or drop one column."
        groups = self.kv_heads if isinstance(self.kv_heads, tuple) else ()
        if len(groups) != len(names) or any(n < 1 or len(layer) % n for n, layer in zip(groups, names, strict=False)):
            told = f"{list(groups)} for {[len(layer) for layer in names]} heads"
            yield f"`kv_heads` must divide the heads of each layer; got {told}. Leave it out for as many as heads."


@dataclass(frozen=True)
class ClassifierConfig:
    """Describe an encoder with a pooling and a class for each text.

    Example:
        >>> ClassifierConfig(EncoderConfig(vocabulary=100), classes=("bad", "good")).pooling
        'mean'
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The encoder."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the logits; none until the data is known."""
    multi_label: bool = False
    """Whether a text may belong to several classes or none."""
    pooling: Literal["mean", "first", "attention", "pooler"] = "mean"
    """What stands for the text: the mean of its hidden states, the first, a learned weighting, or BERT's pooler."""
    dropout: float = 0.1
    """Rate at which values of the pooled state are dropped in training."""

    def problems(self) -> Iterator[str]:
        """Tell what no model can have, a line each."""
        if len(set(self.classes)) != len(self.classes):
            repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
            yield f"`classes` must be named once each; got {repeated} again. Merge them in the data."
        if len(self.classes) == 1 and not self.multi_label:
            yield f"`classes` must be two or more; got {list(self.classes)}. Add examples of another class."
        if not 0 <= self.dropout < 1:
            yield f"`dropout` must be at least 0 and below 1; got {self.dropout}. 0.1 is usual."


_Config = TypeVar("_Config")


def checked(config: _Config) -> _Config:
    """Give a config whose every value is possible.

    Raises:
        ConfigError: with a line for every wrong type and impossible value.
    """
    return settings.read(type(config), asdict(config))  # type: ignore[call-overload]


def preset(size: str) -> dict[str, Any]:
    """Give the encoder's settings for a size, as a table to read or to change.

    - tiny: about 0.3 million parameters besides the embeddings; minutes on two cores.
    - small: 3 million.
    - base: 19 million, the base model of Vaswani et al. 2017; for a GPU, or for patience.

    Raises:
        ConfigError: when there is no such size.

    Example:
        >>> EncoderConfig(**preset("tiny")).d_head
        32
    """
    if size not in _SIZES:
        raise ConfigError(f"`size` must be one of {', '.join(_SIZES)}; got {size!r}. tiny suits two cores.")
    return dict(_SIZES[size])
