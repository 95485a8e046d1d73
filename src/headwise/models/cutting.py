"""Cut heads out of our models, and let heads share keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headwise.contracts.layout import Place
from headwise.errors import ConfigError, InputError
from headwise.models.classifier import Classifier, Encoder
from headwise.models.config import EncoderConfig
from headwise.modules import MultiHeadAttention

__all__ = ["OwnLayout"]

_SEAM = ".attend"


class OwnLayout:
    """Know the heads of an `Encoder` or a `Classifier`; a `headwise.contracts.Layout`.

    Args:
        model: the model; it is never changed.

    Raises:
        InputError: when it is another kind of model.

    Example:
        >>> encoder = Encoder(EncoderConfig(vocabulary=100, layers=1))
        >>> smaller = OwnLayout(encoder).cut({"layers.0.attention.attend": (0, 3)})
        >>> smaller.config.heads
        ((0, 3),)
    """

    def __init__(self, model: Encoder | Classifier) -> None:
        if not isinstance(model, Encoder | Classifier):
            raise InputError(
                f"a model to cut must be an Encoder or a Classifier; got {type(model).__name__}. "
                "Pass the model inside a wrapper, or the layout of an attached one."
            )
        self.model = model

    @property
    def places(self) -> tuple[Place, ...]:
        """Give the attention layers, in the order of the model."""
        return tuple(
            Place(path + _SEAM, layer.heads, layer.kv_heads, *_parameters(layer)) for path, layer in self._layers()
        )

    def cut(self, keep: Mapping[str, tuple[int, ...]]) -> Encoder | Classifier:
        """Build the model that has only these heads at each place; the model itself stays as it is."""
        tensors, groups = dict(self.model.state_dict()), []
        for path, layer in self._layers():
            kept = [layer.heads.index(name) for name in sorted(keep[path + _SEAM], key=layer.heads.index)]
            served = sorted({index * layer.kv_heads // len(layer.heads) for index in kept})
            groups.append(len(served))
            tensors |= _rows(layer, path, "query", kept)
            tensors |= _rows(layer, path, "key", served) | _rows(layer, path, "value", served)
            columns = layer.output.weight.unflatten(1, (-1, layer.d_head))[:, kept]
            tensors[f"{path}.output.weight"] = columns.flatten(1)
        heads = tuple(
            tuple(name for name in layer.heads if name in keep[path + _SEAM]) for path, layer in self._layers()
        )
        return self._built(replace(self._encoder.config, heads=heads, kv_heads=tuple(groups)), tensors)

    def share(self, kv_heads: int) -> Encoder | Classifier:
        """Build the model whose layers have so many key and value heads, each the mean of those it stands for.

        Raises:
            ConfigError: when the number does not divide the key and value heads of every layer.
        """
        tensors, count = dict(self.model.state_dict()), 0
        for path, layer in self._layers():
            if kv_heads < 1 or layer.kv_heads % kv_heads:
                raise ConfigError(
                    f"`kv_heads` must divide the key and value heads of each layer; got {kv_heads} "
                    f"for {layer.kv_heads} at {path}. Take a divisor."
                )
            count += 1
            for name in ("key", "value"):
                for kind, tensor in getattr(layer, name).named_parameters():
                    parts = tensor.unflatten(0, (kv_heads, -1, layer.d_head))
                    tensors[f"{path}.{name}.{kind}"] = parts.mean(1).flatten(0, 1)
        return self._built(replace(self._encoder.config, kv_heads=(kv_heads,) * count), tensors)

    @property
    def _encoder(self) -> Encoder:
        return self.model.encoder if isinstance(self.model, Classifier) else self.model

    def _layers(self) -> Iterator[tuple[str, MultiHeadAttention]]:
        for path, module in self.model.named_modules():
            if isinstance(module, MultiHeadAttention):
                yield path, module

    def _built(self, config: EncoderConfig, tensors: Mapping[str, Tensor]) -> Encoder | Classifier:
        """Build the smaller model and fill it; no random number is drawn."""
        with torch.random.fork_rng(devices=[]):
            built = _like(self.model, config).to(next(self.model.parameters()).dtype)
        known = {name: tensor.shape for name, tensor in built.state_dict().items()}
        fitted = {name: _trimmed(name, tensor, known[name]) for name, tensor in tensors.items()}
        built.load_state_dict(fitted)
        return built.train(self.model.training)


def _like(model: Encoder | Classifier, config: EncoderConfig) -> Encoder | Classifier:
    if isinstance(model, Encoder):
        return Encoder(config)
    return Classifier(replace(model.config, encoder=config))


def _trimmed(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Leave out what biases of positions hold for heads beyond the last one that has a name."""
    return tensor[..., : shape[-1]] if name.endswith(("bias.table", "bias.slopes_H")) else tensor


def _rows(layer: MultiHeadAttention, path: str, name: str, kept: list[int]) -> dict[str, Tensor]:
    """Keep the rows of some heads in a projection, of weight and bias alike."""
    parameters: Any = getattr(layer, name).named_parameters()
    return {
        f"{path}.{name}.{kind}": tensor.unflatten(0, (-1, layer.d_head))[kept].flatten(0, 1)
        for kind, tensor in parameters
    }


def _parameters(layer: MultiHeadAttention) -> tuple[int, int]:
    """Count the parameters of one query head, with its columns of the output, and of one key and value head."""
    bias = layer.query.bias is not None
    one = layer.d_head * (layer.d_model + bias)
    return one + layer.d_head * layer.d_model, 2 * one
