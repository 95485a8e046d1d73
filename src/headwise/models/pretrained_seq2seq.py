"""Read Marian, BART and T5, as transformers keeps them, into our own encoder-decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headwise.contracts import settings
from headwise.errors import ConfigError, InputError
from headwise.models.checkpoint import CONFIG, fill, read_config
from headwise.models.pretrained import all_tensors, locate
from headwise.models.seq2seq import Seq2Seq
from headwise.models.seq2seq_config import Seq2SeqConfig

__all__ = ["load_seq2seq"]


def load_seq2seq(source: str | Path, *, dropout: float | None = None) -> Seq2Seq:
    """Read a pretrained encoder-decoder: Marian (OPUS-MT), BART, T5 or mT5; float32.

    Logits are those of transformers within rounding. What our model computes otherwise is in the numbers: T5 does not
    scale its scores, so its queries are sqrt(d_head) times as large here, and where it scales its states before the
    output, its last normalisation does so here.

    Args:
        source: a folder, or a name on the Hugging Face hub, which alone uses the network.
        dropout: rate in training; as the checkpoint says where left out.

    Raises:
        InputError: when there is nothing there, or it is of an architecture that is not known.
    """
    folder = locate(source)
    path = folder / CONFIG
    table = read_config(folder)
    family = _FAMILIES.get(str(table.get("model_type")))
    if family is None:
        known, found = ", ".join(_FAMILIES), table.get("model_type")
        raise InputError(f"`{path}` must be of an architecture in {known}; got {found!r}. Take another model.")
    config, tensors = _read(family, table, all_tensors(folder), path)
    if dropout is not None:
        config = replace(config, encoder=replace(config.encoder, dropout=dropout))
    with torch.random.fork_rng(devices=[]):
        model = Seq2Seq(config)
    fill(model, tensors, folder)
    return model.eval()


class _Family(NamedTuple):
    """Hold how an architecture is brought to our own."""

    settings: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Gives our settings from its table, but for what the tensors tell."""
    rename: Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]
    """Gives its tensors our names, and our scales."""


def _read(
    family: _Family, table: Mapping[str, Any], found: Mapping[str, Tensor], path: Path
) -> tuple[Seq2SeqConfig, dict[str, Tensor]]:
    """Bring a checkpoint's settings and tensors to ours, or refuse what would not be computed as it was trained."""
    try:
        given, tensors = family.settings(table), family.rename(found, table)
        ends = {"begin": "decoder_start_token_id", "end": "eos_token_id", "pad": "pad_token_id"}
        given |= {ours: table[theirs] for ours, theirs in ends.items()}
    except KeyError as error:
        raise InputError(f"`{path}` must tell {error.args[0]}; got no such setting. Copy it again.") from error
    given |= {
        "shared": "target_tokens.table.weight" not in tensors,
        "tied": "output.weight" not in tensors,
        "output_bias": "output_bias" in tensors,
    }
    try:
        return settings.read(Seq2SeqConfig, given), tensors
    except ConfigError as error:
        raise InputError(f"`{path}` must hold settings that our model can have; got\n{error}") from error


_ACTIVATIONS = {"swish": "silu", "silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}


def _bart_settings(table: Mapping[str, Any]) -> dict[str, Any]:
    """Tell the settings of BART, and what it shares with Marian."""
    heads = table["encoder_attention_heads"], table["decoder_attention_heads"]
    if heads[0] != heads[1]:
        raise InputError(f"both sides must have heads of one width; got {heads[0]} and {heads[1]} heads. Take another.")
    encoder = {
        "vocabulary": table["vocab_size"],
        "d_model": table["d_model"],
        "layers": table["encoder_layers"],
        "heads": heads[0],
        "d_ff": table["encoder_ffn_dim"],
        "activation": _activation(table["activation_function"]),
        "norm": "post",
        "positions": "learned",
        "max_positions": table["max_position_embeddings"],
        "embedding_norm": True,
        "scale_embedding": table.get("scale_embedding", False),
        "dropout": table["dropout"],
        "attention_dropout": table["attention_dropout"],
        "feed_forward_dropout": table["activation_dropout"],
    }
    return {"encoder": encoder, "decoder": {"layers": table["decoder_layers"], "d_ff": table["decoder_ffn_dim"]}}


def _activation(name: str) -> str:
    """Give our word for what bends the feed-forward part; one that we do not know is refused later."""
    return _ACTIVATIONS.get(name, name)


def _marian_settings(table: Mapping[str, Any]) -> dict[str, Any]:
    given = _bart_settings(table)
    given["encoder"] |= {"positions": "halves", "embedding_norm": False}
    return given | {"target_vocabulary": table.get("decoder_vocab_size") or table["vocab_size"]}


def _t5_settings(table: Mapping[str, Any]) -> dict[str, Any]:
    bent = {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu", "gelu": "gelu", "gated-relu": "gated-relu"}
    named = str(table.get("feed_forward_proj", "relu"))
    rate = table.get("dropout_rate", 0.1)
    encoder = {
        "vocabulary": table["vocab_size"],
        "d_model": table["d_model"],
        "layers": table["num_layers"],
        "heads": table["num_heads"],
        "d_head": table["d_kv"],
        "d_ff": table["d_ff"],
        "activation": bent.get(named, named),
        "bias": False,
        "norm": "pre",
        "normalisation": "rms",
        "norm_eps": table.get("layer_norm_epsilon", 1e-6),
        "positions": "relative",
        "buckets": table.get("relative_attention_num_buckets", 32),
        "max_distance": table.get("relative_attention_max_distance", 128),
        "dropout": rate,
        "attention_dropout": rate,
        "feed_forward_dropout": rate,
    }
    return {"encoder": encoder, "decoder": {"layers": table.get("num_decoder_layers") or table["num_layers"]}}


_BART_PARTS = {
    "self_attn": "attention",
    "encoder_attn": "cross_attention",
    "self_attn_layer_norm": "attention_norm",
    "encoder_attn_layer_norm": "cross_attention_norm",
    "fc1": "feed_forward.up",
    "fc2": "feed_forward.down",
    "final_layer_norm": "feed_forward_norm",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "output",
}
_BART_NAMES = {
    "shared": "encoder.tokens.table",
    "encoder.embed_tokens": "encoder.tokens.table",
    "decoder.embed_tokens": "target_tokens.table",
    "encoder.embed_positions": "encoder.positions.table",
    "decoder.embed_positions": "decoder.positions.table",
    "encoder.layernorm_embedding": "encoder.embedding_norm",
    "decoder.layernorm_embedding": "decoder.embedding_norm",
    "lm_head": "output",
}


def _bart_tensors(given: Mapping[str, Tensor], table: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = dict(given)
    bias = tensors.pop("final_logits_bias", None)
    found: dict[str, Tensor] = {}
    for name, tensor in _untied(tensors, table, "model.shared.weight").items():
        module, _, leaf = name.removeprefix("model.").rpartition(".")
        inside = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", module)
        if inside is not None:
            part = ".".join(_BART_PARTS.get(word, word) for word in inside[3].split("."))
            module = f"{inside[1]}.layers.{inside[2]}.{part}"
        found[f"{_BART_NAMES.get(module, module)}.{leaf}"] = tensor
    for name in ("encoder.positions.table.weight", "decoder.positions.table.weight"):
        if name in found:
            found[name] = found[name][2:]  # the first two rows stand before the first position
    if bias is not None and bool(bias.any()):
        found["output_bias"] = bias.flatten()
    return found


def _marian_tensors(given: Mapping[str, Tensor], table: Mapping[str, Any]) -> dict[str, Tensor]:
    waves = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
    return _bart_tensors({name: tensor for name, tensor in given.items() if name not in waves}, table)


_T5_PARTS = {
    "SelfAttention": "attention",
    "EncDecAttention": "cross_attention",
    "DenseReluDense": "feed_forward",
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "output",
    "wi": "up",
    "wi_0": "gate",
    "wi_1": "up",
    "wo": "down",
}
_T5_NORMS = {
    "encoder": ("attention_norm", "feed_forward_norm"),
    "decoder": ("attention_norm", "cross_attention_norm", "feed_forward_norm"),
}
_T5_NAMES = {
    "shared.weight": "encoder.tokens.table.weight",
    "lm_head.weight": "output.weight",
    "encoder.final_layer_norm.weight": "encoder.final_norm.weight",
    "decoder.final_layer_norm.weight": "decoder.final_norm.weight",
}


def _t5_tensors(given: Mapping[str, Tensor], table: Mapping[str, Any]) -> dict[str, Tensor]:
    found = {_t5_name(name): tensor for name, tensor in _untied(given, table, "shared.weight").items()}
    for name in found:
        if name.endswith("attention.query.weight"):
            found[name] = found[name] * table["d_kv"] ** 0.5
    tied = table["model_type"] == "t5" and table.get("tie_word_embeddings", True)
    if table.get("scale_decoder_outputs", tied):
        last = "decoder.final_norm.weight"
        found[last] = found[last] * table["d_model"] ** -0.5
    return found


def _t5_name(name: str) -> str:
    inside = re.fullmatch(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.(.+)\.weight", name)
    if inside is None:
        return _T5_NAMES.get(name, name)
    side, layer, place, rest = inside.groups()
    if rest.endswith("relative_attention_bias"):
        return f"{side}.bias.table"  # the first layer's, which serves all
    norms = _T5_NORMS[side]
    if rest == "layer_norm" and int(place) < len(norms):
        return f"{side}.layers.{layer}.{norms[int(place)]}.weight"
    part = ".".join(_T5_PARTS.get(word, word) for word in rest.split("."))
    return f"{side}.layers.{layer}.{part}.weight"


def _untied(given: Mapping[str, Tensor], table: Mapping[str, Any], shared: str) -> dict[str, Tensor]:
    """Leave out copies of the shared table: files of older versions hold some under the names of its other uses."""
    copies = set()
    if shared in given:
        copies = {name for name in given if name.endswith(".embed_tokens.weight")}
    if table.get("tie_word_embeddings", True):
        copies.add("lm_head.weight")
    return {name: tensor for name, tensor in given.items() if name not in copies}


_FAMILIES = {
    "marian": _Family(_marian_settings, _marian_tensors),
    "bart": _Family(_bart_settings, _bart_tensors),
    "t5": _Family(_t5_settings, _t5_tensors),
    "mt5": _Family(_t5_settings, _t5_tensors),
}
