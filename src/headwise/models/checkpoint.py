"""Keep models in files: `config.json` says what to build, `model.safetensors` holds the numbers; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from headwise.contracts import settings
from headwise.contracts.files import write_whole
from headwise.errors import ConfigError, InputError
from headwise.models.classifier import Classifier, Encoder
from headwise.models.config import ClassifierConfig, EncoderConfig
from headwise.models.seq2seq import Seq2Seq
from headwise.models.seq2seq_config import Seq2SeqConfig

__all__ = ["CONFIG", "FORMAT", "WEIGHTS", "Model", "fill", "load", "own_tensors", "read_config", "read_tensors", "save"]

Model: TypeAlias = Encoder | Classifier | Seq2Seq
"""What can be kept in a folder."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
"""Version of the two files."""

_KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    Encoder.kind: (EncoderConfig, Encoder),
    Classifier.kind: (ClassifierConfig, Classifier),
    Seq2Seq.kind: (Seq2SeqConfig, Seq2Seq),
}


def save(model: Model, folder: str | Path) -> None:
    """Write a model into a folder, which is made where there is none.

    Each file holds the old contents or the new ones, whatever happens. A tensor that has two names is written once.

    Raises:
        InputError: when it is not a model of headwise, but a wrapper around one, say.
        OSError: when it cannot be written.

    Example:
        >>> save(Encoder(EncoderConfig(vocabulary=100)), "model")
        >>> load("model").config.vocabulary
        100
    """
    if type(model) not in [built for _, built in _KINDS.values()]:
        told = type(model).__name__
        raise InputError(f"a model to save must be one of {_known()}; got {told}. Pass the model inside a wrapper.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in own_tensors(model).items()}
    described = {"format": FORMAT, "kind": model.kind, "settings": asdict(model.config)}
    write_whole(folder / WEIGHTS, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    write_whole(folder / CONFIG, (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode())


def load(folder: str | Path) -> Model:
    """Read the model that `save` wrote, in the type of number it had; no random number is drawn.

    Raises:
        InputError: when the folder or a file is missing, cut short, of a later version, or does not fit the other.
    """
    folder = Path(folder)
    described = read_config(folder)
    config_class, model_class = _kind(described, folder / CONFIG)
    given = described.get("settings")
    if not isinstance(given, dict):
        raise InputError(f"`{folder / CONFIG}` must hold a table `settings`; got {given!r}. Copy it again.")
    try:
        with torch.random.fork_rng(devices=[]):
            model: Model = model_class(settings.read(config_class, given))
    except ConfigError as error:
        raise InputError(f"`{folder / CONFIG}` must hold settings that a model can have; got\n{error}") from error
    tensors = read_tensors(folder / WEIGHTS)
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    fill(model.to(kinds.pop()) if len(kinds) == 1 else model, tensors, folder / WEIGHTS)
    return model.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """Read the table in a folder's `config.json`.

    Raises:
        InputError: when there is none, or it is no JSON table.
    """
    path = folder / CONFIG
    if not path.is_file():
        told = "no such folder" if not folder.is_dir() else f"no {CONFIG} in it"
        raise InputError(f"`{folder}` must be a folder with {CONFIG} and {WEIGHTS}; got {told}. Check the path.")
    try:
        table = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"`{path}` must be JSON; got {error}. Copy it again.") from error
    if not isinstance(table, dict):
        raise InputError(f"`{path}` must hold a table; got {type(table).__name__}. Copy it again.")
    return table


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: when there is none, or it is cut short or otherwise no such file.
    """
    if not path.is_file():
        raise InputError(f"`{path}` must be a file; got none. Copy it again, beside {CONFIG}.")
    try:
        return dict(safetensors.torch.load_file(path))
    except SafetensorError as error:
        size = path.stat().st_size
        raise InputError(
            f"`{path}` must be a whole safetensors file; got {size:,} bytes that are not ({error}). Copy it again."
        ) from error


@torch.no_grad()
def fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a model that has exactly these.

    Args:
        model: what to fill.
        tensors: by the names of the model.
        path: the file they came from, for the message.

    Raises:
        InputError: with every tensor that is missing, not expected, or of another shape.
    """
    wanted = own_tensors(model)
    problems = [f"missing: {name}" for name in wanted if name not in tensors]
    problems += [f"not expected: {name}" for name in tensors if name not in wanted]
    for name in wanted.keys() & tensors.keys():
        if wanted[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)} in place of {tuple(wanted[name].shape)}"
            problems.append(f"{name}: {shapes}")
    if problems:
        told = "".join(f"\n  {problem}" for problem in sorted(problems)[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(f"`{path}` must fit the {CONFIG} beside it; got{told}{more}\nCopy both from one model.")
    for name, tensor in wanted.items():
        tensor.copy_(tensors[name])


def own_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Name every tensor of a model once: one that has two names, tied weights, under the first."""
    found: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        place = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()
        found.setdefault(place if tensor.numel() else name, (name, tensor))
    return dict(found.values())


def _kind(described: Mapping[str, Any], path: Path) -> tuple[type[Any], type[Any]]:
    version, kind = described.get("format"), described.get("kind")
    if version is None and "model_type" in described:
        told = f"one of Hugging Face's, {described['model_type']!r}"
        raise InputError(f"`{path}` must be of a headwise model; got {told}. Use load_encoder or load_seq2seq.")
    if version != FORMAT or isinstance(version, bool):
        raise InputError(f"`{path}` must be of format {FORMAT}; got {version!r}. Update headwise, or copy it again.")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"`{path}` must be of a kind in {_known()}; got {kind!r}. Update headwise.")
    return _KINDS[kind]


def _known() -> str:
    return ", ".join(_KINDS)
