"""Hand translation models over to CTranslate2, which serves them in int8 on the CPU or on a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from headwise.errors import InputError
from headwise.functional import sinusoidal
from headwise.models import Encoder, Seq2Seq, Seq2SeqConfig
from headwise.models.seq2seq import Decoder
from headwise.modules import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    LearnedPositions,
    MultiHeadAttention,
    RelativePositions,
)

__all__ = ["Vocabulary", "export_ctranslate2"]

_LONGEST = 2048
"""Positions that are written out where a model has waves of any length."""
_ACTIVATIONS = {"relu": "RELU", "silu": "SWISH", "gelu": "GELU", "gelu_tanh": "GELUTanh"}
_GATED = {"swiglu": "SWISH", "geglu": "GELUTanh"}


class Vocabulary(Protocol):
    """Be a tokenizer whose tokens are known by their ids."""

    @property
    def vocabulary(self) -> list[str]:
        """List the tokens by id; an id without a token has an empty text."""

    @property
    def unknown_id(self) -> int:
        """Give the id of what the vocabulary does not hold."""

    def save(self, path: Path | str) -> None:
        """Write tokenizer.json."""


def export_ctranslate2(
    model: Seq2Seq,
    tokenizer: Vocabulary,
    folder: str | Path,
    *,
    target_tokenizer: Vocabulary | None = None,
    quantization: Literal["float32", "int8", "int16", "bfloat16", "float16"] = "float32",
) -> Path:
    """Write a model as CTranslate2 reads it: `ctranslate2.Translator(folder).translate_batch(tokens)`.

    In float32 it writes the same greedy texts but for near-ties. It puts the end token after each source by itself.

    Args:
        model: the model.
        tokenizer: what cuts its sources; it is written beside as tokenizer.json.
        folder: where to; made where there is none.
        target_tokenizer: what cuts its targets; the same where left out.
        quantization: type of the stored weights; `Translator(compute_type=...)` may choose another when it loads them.

    Raises:
        InputError: when CTranslate2 cannot compute such a model, with a line for each reason, or is not installed, or
            the folder holds something else.
    """
    if importlib.util.find_spec("ctranslate2") is None:
        raise InputError('`ctranslate2` must be installed for this; got none. Run pip install "headwise[ctranslate2]".')
    reasons = list(_refusals(model.config))
    if reasons:
        raise InputError("\n".join(reasons))
    path = Path(folder)
    if path.exists() and not _may_be_written(path):
        raise InputError(f"`{path}` must be an empty folder or an earlier export; got other files. Name a new one.")
    with torch.no_grad():
        spec = _specification(model)
    sizes = model.config.encoder.vocabulary, model.config.target_vocabulary or 0
    spec.register_source_vocabulary(_tokens(tokenizer, sizes[0]))
    target = _tokens(target_tokenizer or tokenizer, sizes[1])
    spec.register_target_vocabulary(target)
    _set_ends(spec.config, model.config, target, (target_tokenizer or tokenizer).unknown_id)
    spec.validate()
    spec.optimize(quantization=quantization)
    path.mkdir(parents=True, exist_ok=True)
    spec.save(str(path))
    tokenizer.save(path / "tokenizer.json")
    if target_tokenizer is not None:
        target_tokenizer.save(path / "target_tokenizer.json")
    return path


_VOCABULARIES = {f"{side}_vocabulary.json" for side in ("shared", "source", "target")}


def _may_be_written(path: Path) -> bool:
    """Tell whether a folder is empty, or holds an export or what is left of one, and nothing else."""
    held = {each.name for each in path.iterdir()} if path.is_dir() else {str(path)}
    known = {"model.bin", "config.json", "tokenizer.json", "target_tokenizer.json", *_VOCABULARIES}
    return not held or (held <= known and not held.isdisjoint(("model.bin", *_VOCABULARIES)))


def _refusals(config: Seq2SeqConfig) -> Iterator[str]:
    """Say what CTranslate2 cannot compute, a line each."""
    encoder, decoder = config.encoder, config.decoder
    counts = {len(names) for names in encoder.head_names}
    for names in (decoder.heads, decoder.cross_heads):
        counts |= {len(each) for each in names} if isinstance(names, tuple) else set()
    if len(counts) > 1:
        yield f"every layer must have as many heads for CTranslate2; got {sorted(counts)}. Export the uncut model."
    groups = (encoder.kv_heads, decoder.kv_heads, decoder.cross_kv_heads)
    if {n for each in groups if isinstance(each, tuple) for n in each} - counts:
        yield "keys must have as many heads as queries for CTranslate2; got grouped heads. Train without `kv_heads`."
    if encoder.positions in ("rotary", "alibi", "none"):
        known = "sinusoidal, halves, learned or relative"
        yield f"`positions` must be {known} for CTranslate2; got {encoder.positions}. Train with sinusoidal ones."
    if config.copy:
        yield "`copy` must be false for CTranslate2; got true. Train a model without it."
    if encoder.embedding_width not in (None, encoder.d_model):
        yield f"`embedding_width` must be d_model for CTranslate2; got {encoder.embedding_width}. Leave it out."
    if encoder.token_types:
        yield f"`token_types` must be 0 for CTranslate2; got {encoder.token_types}. Leave it out."


def _specification(model: Seq2Seq) -> Any:
    """Describe the model in CTranslate2's terms."""
    from ctranslate2.specs import TransformerSpec
    from ctranslate2.specs.common_spec import Activation
    from ctranslate2.specs.transformer_spec import TransformerDecoderSpec, TransformerEncoderSpec

    config, wide = model.config.encoder, model.config.encoder.activation
    heads = len(config.head_names[0])
    shape: dict[str, Any] = {
        "pre_norm": config.norm == "pre",
        "activation": Activation[(_ACTIVATIONS | _GATED)[wide]],
        "layernorm_embedding": config.embedding_norm,
        "relative_attention_bias": config.positions == "relative",
        "ffn_glu": wide in _GATED,
        "rms_norm": config.normalisation == "rms",
        "head_dim": config.d_head if config.d_head != config.d_model / heads else None,
    }
    layers = len(model.encoder.layers), len(model.decoder.layers)
    spec = TransformerSpec(
        TransformerEncoderSpec(layers[0], heads, **shape), TransformerDecoderSpec(layers[1], heads, **shape)
    )
    _put_side(spec.encoder, model.encoder)
    _put_side(spec.decoder, model.decoder)
    spec.encoder.embeddings[0].weight = _array(model.encoder.tokens.table.weight)
    target = model.encoder.tokens if model.target_tokens is None else model.target_tokens
    spec.decoder.embeddings.weight = _array(target.table.weight)
    spec.decoder.projection.weight = _array(model.weight)
    if model.output_bias is not None:
        spec.decoder.projection.bias = _array(model.output_bias)
    for side in (spec.encoder, spec.decoder):
        side.scale_embeddings = config.scale_embedding
    return spec


def _put_side(spec: Any, side: Encoder | Decoder) -> None:
    """Fill in what both sides have: positions, normalisations, layers."""
    config = side.config
    if isinstance(side.positions, LearnedPositions):
        spec.position_encodings.encodings = _array(side.positions.table.weight)
    elif config.positions != "relative":
        waves_TM = sinusoidal(_LONGEST, config.d_model, halves=config.positions == "halves")
        spec.position_encodings.encodings = _array(waves_TM)
    if side.embedding_norm is not None:
        _put_norm(spec.layernorm_embedding, side.embedding_norm)
    if side.final_norm is not None:
        _put_norm(spec.layer_norm, side.final_norm)
    for i, (told, layer) in enumerate(zip(spec.layer, side.layers, strict=True)):
        assert isinstance(layer, EncoderLayer | DecoderLayer), "so they were built"
        _put_attention(told.self_attention, layer.attention, layer.attention_norm, cross=False)
        if isinstance(side.bias, RelativePositions):
            _put_bias(told.self_attention, side.bias, config.head_names[i])
        if isinstance(layer, DecoderLayer):
            _put_attention(told.attention, layer.cross_attention, layer.cross_attention_norm, cross=True)
        _put_feed_forward(told.ffn, layer.feed_forward, layer.feed_forward_norm)


def _put_attention(spec: Any, layer: MultiHeadAttention, norm: nn.Module, *, cross: bool) -> None:
    """Fill in a layer's attention, whose projections of one input are one product there."""
    joined = [[layer.query], [layer.key, layer.value]] if cross else [[layer.query, layer.key, layer.value]]
    for told, parts in zip(spec.linear, [*joined, [layer.output]], strict=True):
        told.weight = _array(torch.cat([part.weight for part in parts]))
        if parts[0].bias is not None:
            told.bias = _array(torch.cat([part.bias for part in parts]))
    _put_norm(spec.layer_norm, norm)


def _put_bias(spec: Any, positions: RelativePositions, heads: Sequence[int]) -> None:
    spec.relative_attention_bias = _array(positions.table[:, list(heads)])
    spec.relative_attention_max_distance = np.int32(positions.max_distance)


def _put_feed_forward(spec: Any, part: FeedForward, norm: nn.Module) -> None:
    """Fill in a feed-forward part; of a gated one, the product that is bent comes first."""
    given = [(spec.linear_0, part.up), (spec.linear_1, part.down)]
    if part.gate is not None:
        given[0] = spec.linear_0, part.gate
        given.append((spec.linear_0_noact, part.up))
    for told, linear in given:
        told.weight = _array(linear.weight)
        if linear.bias is not None:
            told.bias = _array(linear.bias)
    _put_norm(spec.layer_norm, norm)


def _put_norm(spec: Any, norm: nn.Module) -> None:
    assert isinstance(norm.weight, Tensor), "every normalisation scales"
    spec.gamma = _array(norm.weight)
    if isinstance(norm, nn.LayerNorm):
        spec.beta = _array(norm.bias)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().contiguous().numpy()


def _tokens(tokenizer: Vocabulary, size: int) -> list[str]:
    """List a name for every id of the model; a model may have more ids than its tokenizer has tokens."""
    held = tokenizer.vocabulary
    if len(held) > size:
        raise InputError(f"the tokenizer must fit the model's {size} tokens; got {len(held)}. Take the model's own.")
    return [name or f"<unused {i}>" for i, name in enumerate([*held, *[""] * (size - len(held))])]


def _set_ends(spec: Any, config: Seq2SeqConfig, tokens: Sequence[str], unknown: int) -> None:
    """Say which tokens stand around texts."""
    spec.decoder_start_token = spec.bos_token = tokens[config.begin]
    spec.eos_token, spec.unk_token = tokens[config.end], tokens[unknown]
    spec.add_source_eos = True
    spec.layer_norm_epsilon = config.encoder.norm_eps
