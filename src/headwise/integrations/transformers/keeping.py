"""Keep pruned Transformers models in files, and load them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from headwise.contracts.files import read_format, write_whole
from headwise.errors import InputError
from headwise.integrations.transformers.attaching import attach
from headwise.integrations.transformers.layout import TransformersLayout
from headwise.integrations.transformers.projections import Kept, find
from headwise.models.checkpoint import WEIGHTS, fill, own_tensors, read_tensors

__all__ = ["load", "save"]

_HEADS, _FORMAT = "headwise.json", 1


def save(model: PreTrainedModel, folder: str | Path) -> None:
    """Write an attached model into a folder: its config, `model.safetensors`, and `headwise.json` with its heads.

    A model that has lost heads loads again by `load` only; Transformers itself refuses the shapes.

    Raises:
        InputError: when it was not attached.
        OSError: when it cannot be written.
    """
    layout, folder = TransformersLayout(model), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    layers = {place.path: {"heads": place.heads, "kv_heads": place.kv_heads} for place in layout.places}
    described = {"format": _FORMAT, "model": type(model).__name__, "layers": layers}
    tensors = {name: tensor.contiguous() for name, tensor in own_tensors(model).items()}
    write_whole(folder / WEIGHTS, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    write_whole(folder / _HEADS, (json.dumps(described, indent=2) + "\n").encode())


def load(folder: str | Path) -> PreTrainedModel:
    """Read the model that `save` wrote, attached and in evaluation; no random number is drawn.

    Raises:
        InputError: when the folder or a file is missing, torn, of a later version, or does not fit the others.
    """
    folder = Path(folder)
    described = _described(folder / _HEADS)
    tensors = read_tensors(folder / WEIGHTS)
    if not (folder / "config.json").is_file():
        raise InputError(f"`{folder / 'config.json'}` must be a file; got none. {_AGAIN}")
    kind = getattr(transformers, str(described["model"]), None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        told = described["model"]
        raise InputError(f"`{folder / _HEADS}` must name a model of transformers; got {told!r}. Update transformers.")
    with torch.random.fork_rng(devices=[]):
        model: Any = kind(AutoConfig.from_pretrained(folder))
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    model = attach(model.to(kinds.pop()) if len(kinds) == 1 else model)
    _shape(model, described["layers"], folder / _HEADS)
    fill(model, tensors, folder / WEIGHTS)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    loaded: PreTrainedModel = model.eval()
    return loaded


def _described(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"`{path}` must be a file; got none. {_AGAIN}")

    def read(held: Any) -> dict[str, Any]:
        layers = {place: (tuple(each["heads"]), int(each["kv_heads"])) for place, each in held["layers"].items()}
        return {"model": held["model"], "layers": layers}

    return read_format(path.read_bytes(), _FORMAT, read, f"`{path}`", _AGAIN)


_AGAIN = "Save with `headwise.integrations.transformers.save`."


def _shape(model: PreTrainedModel, layers: dict[str, tuple[tuple[int, ...], int]], path: Path) -> None:
    """Give a whole model the shapes of a pruned one."""
    found = find(model)
    if {layer.seam for layer in found} != set(layers):
        raise InputError(f"`{path}` must name the layers of the model; got others. Copy both from one model.")
    for layer in found:
        names, groups = layers[layer.seam]
        if not names or not set(names) <= set(layer.bridge.attend.heads) or not 0 < groups <= len(layer.rows[1]):
            raise InputError(f"`{path}` must name heads of the model; got {names} at {layer.path}. Copy it again.")
        queries = tuple(layer.bridge.attend.heads.index(name) for name in names)
        kept = range(groups) if not layer.fused else queries
        layer.slim(Kept(queries, tuple((group,) for group in kept)))
