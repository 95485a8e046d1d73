"""Cut heads out of our models, and let heads share keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headwise.contracts.layout import Place
from headwise.errors import InputError
from headwise.models.checkpoint import Model
from headwise.models.classifier import Classifier, Encoder
from headwise.models.config import ClassifierConfig, EncoderConfig
from headwise.models.seq2seq import Seq2Seq
from headwise.models.seq2seq_config import Seq2SeqConfig
from headwise.modules import MultiHeadAttention

__all__ = ["OwnLayout"]

_SEAM = ".attend"


class OwnLayout:
    """Know the heads of a model of ours; a `headwise.contracts.Layout`.

    Of a model that copies, what is cut leaves the mixture of copies as well; a gate does not reach that.

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

    def __init__(self, model: Model) -> None:
        if not isinstance(model, Encoder | Classifier | Seq2Seq):
            raise InputError(
                f"a model to cut must be an Encoder, a Classifier or a Seq2Seq; got {type(model).__name__}. "
                "Pass the model inside a wrapper, or the layout of an attached one."
            )
        self.model = model

    @property
    def places(self) -> tuple[Place, ...]:
        """Give the attention layers, in the order of the model."""
        return tuple(
            Place(path + _SEAM, layer.heads, layer.kv_heads, *_parameters(layer)) for path, layer in self._layers()
        )

    def cut(self, keep: Mapping[str, tuple[int, ...]]) -> Model:
        """Build the model that has only these heads at each place; the model itself stays as it is."""
        tensors, heads, groups = dict(self.model.state_dict()), {}, {}
        for path, layer in self._layers():
            kept = [layer.heads.index(name) for name in sorted(keep[path + _SEAM], key=layer.heads.index)]
            served = sorted({index * layer.kv_heads // len(layer.heads) for index in kept})
            heads[path], groups[path] = tuple(layer.heads[i] for i in kept), len(served)
            tensors |= _rows(layer, path, "query", kept)
            tensors |= _rows(layer, path, "key", served) | _rows(layer, path, "value", served)
            columns = layer.output.weight.unflatten(1, (-1, layer.d_head))[:, kept]
            tensors[f"{path}.output.weight"] = columns.flatten(1)
        if "copying.share_H" in tensors:
            # `kept` is of the last layer, which looks at the source.
            tensors["copying.share_H"] = tensors["copying.share_H"][kept]
        return self._built(heads, groups, tensors)

    def share(self, kv_heads: int, weights: Mapping[str, Tensor] | None = None) -> Model:
        """Build the model whose layers have so many key and value heads, each made of those it stands for.

        Args:
            kv_heads: key and value heads of each layer.
            weights: as for `headwise.contracts.Layout`; the mean where left out.

        Raises:
            ConfigError: when the number does not divide the key and value heads of every layer.
        """
        tensors, heads, groups = dict(self.model.state_dict()), {}, {}
        for place, (path, layer) in zip(self.places, self._layers(), strict=True):
            size = place.stood_for(kv_heads)
            weights_GN = torch.full((kv_heads, size), 1 / size) if weights is None else weights[place.path]
            heads[path], groups[path] = layer.heads, kv_heads
            for name in ("key", "value"):
                for kind, tensor in getattr(layer, name).named_parameters():
                    parts = tensor.unflatten(0, (kv_heads, -1, layer.d_head))
                    made = torch.einsum("gn,gn...->g...", weights_GN.to(tensor), parts)
                    tensors[f"{path}.{name}.{kind}"] = made.flatten(0, 1)
        return self._built(heads, groups, tensors)

    def _layers(self) -> Iterator[tuple[str, MultiHeadAttention]]:
        for path, module in self.model.named_modules():
            if isinstance(module, MultiHeadAttention):
                yield path, module

    def _built(
        self, heads: Mapping[str, tuple[int, ...]], groups: Mapping[str, int], tensors: Mapping[str, Tensor]
    ) -> Model:
        """Build the smaller model and fill it; no random number is drawn."""
        config: Any = _with_heads(self.model.config, heads, groups)
        kind: Any = type(self.model)
        with torch.random.fork_rng(devices=[]):
            built: Model = kind(config).to(next(self.model.parameters()))
        known = {name: tensor.shape for name, tensor in built.state_dict().items()}
        fitted = {name: _trimmed(name, tensor, known[name]) for name, tensor in tensors.items()}
        built.load_state_dict(fitted)
        return built.train(self.model.training)


def _with_heads(
    config: EncoderConfig | ClassifierConfig | Seq2SeqConfig,
    heads: Mapping[str, tuple[int, ...]],
    groups: Mapping[str, int],
) -> EncoderConfig | ClassifierConfig | Seq2SeqConfig:
    """Write the heads of each layer, by its path, into the settings of a model."""

    def of(*, decoder: bool, cross: bool) -> list[Any]:
        paths = [
            path
            for path in heads
            if path.startswith("decoder.") is decoder and path.endswith("cross_attention") is cross
        ]
        return [tuple(each[path] for path in paths) for each in (heads, groups)]

    names, counts = of(decoder=False, cross=False)
    if isinstance(config, EncoderConfig):
        return replace(config, heads=names, kv_heads=counts)
    encoder = replace(config.encoder, heads=names, kv_heads=counts)
    if isinstance(config, ClassifierConfig):
        return replace(config, encoder=encoder)
    (own, own_counts), (cross, cross_counts) = (of(decoder=True, cross=across) for across in (False, True))
    decoder = replace(config.decoder, heads=own, kv_heads=own_counts, cross_heads=cross, cross_kv_heads=cross_counts)
    return replace(config, encoder=encoder, decoder=decoder)


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
