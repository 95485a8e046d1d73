"""Cut and share the heads of Transformers models."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headwise.contracts.layout import Place
from headwise.errors import BackendError, InputError
from headwise.integrations.transformers.projections import Kept, Projections, find
from headwise.integrations.transformers.trial import run, sample

__all__ = ["TransformersLayout"]


class TransformersLayout:
    """Know the heads of an attached Transformers model; a `headwise.contracts.Layout`.

    What is cut or shared is tried before it is given: the smaller model must answer as the whole one does with these
    heads silenced. A smaller model stays attached: its layers may differ in ways that only the seam knows of.

    Args:
        model: an attached model; it is never changed.
        inputs: what to try models on, as for `attach`.

    Raises:
        InputError: when it was not attached.
        BackendError: when its projections are of a kind that is not known.

    Example:
        >>> from headwise.integrations.transformers import attach
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
        >>> layout = TransformersLayout(attach(BertModel(BertConfig(**sizes, vocab_size=50)).eval()))
        >>> (place,) = layout.places
        >>> layout.cut({place.path: (0, 3)}).encoder.layer[0].attention.self.query.weight.shape
        torch.Size([8, 16])
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Tensor] | None = None) -> None:
        self.model, self._inputs = model, inputs
        if not isinstance(model, PreTrainedModel) or not find(model):
            raise InputError(
                f"a model to cut must be an attached model of transformers; got {type(model).__name__}. "
                "Call `headwise.integrations.transformers.attach(model)`."
            )

    @property
    def places(self) -> tuple[Place, ...]:
        """Give the attention layers, in the order of the model."""
        return tuple(
            Place(each.seam, each.bridge.attend.heads, len(each.rows[1]), *each.parameters) for each in find(self.model)
        )

    def cut(self, keep: Mapping[str, tuple[int, ...]]) -> PreTrainedModel:
        """Build the model that has only these heads at each place; the model itself stays as it is.

        Raises:
            BackendError: when the smaller model does not answer as one with closed gates.
        """
        return self._slimmed([_cut(each, keep[each.seam]) for each in find(self.model)], "cut")

    def share(self, kv_heads: int, weights: Mapping[str, Tensor] | None = None) -> PreTrainedModel:
        """Build the model whose layers have so many key and value heads, each made of those it stands for.

        Args:
            kv_heads: key and value heads of each layer.
            weights: as for `headwise.contracts.Layout`; the mean where left out.

        Raises:
            ConfigError: when the number does not divide the key and value heads of every layer.
            BackendError: when queries, keys and values come of one product, or the code of a layer does not allow it.
        """
        layers = zip(self.places, find(self.model), strict=True)
        return self._slimmed([_shared(place, layer, kv_heads, weights) for place, layer in layers], "shared")

    def _slimmed(self, kept: list[Kept], done: str) -> PreTrainedModel:
        slim = copy.deepcopy(self.model)
        inputs = sample(slim) if self._inputs is None else self._inputs
        layers = list(zip(find(slim), kept, strict=True))
        for layer, left in layers:
            layer.silence(left)
        wanted = run(slim, inputs)
        for layer, left in layers:
            layer.slim(left)
        _compare(slim, inputs, wanted, done)
        return slim


def _cut(layer: Projections, names: tuple[int, ...]) -> Kept:
    heads = layer.bridge.attend.heads
    queries = tuple(i for i, name in enumerate(heads) if name in names)
    served = sorted({i * len(layer.rows[1]) // len(heads) for i in queries})
    return Kept(queries, tuple((group,) for group in served))


def _shared(place: Place, layer: Projections, kv_heads: int, weights: Mapping[str, Tensor] | None) -> Kept:
    size = place.stood_for(kv_heads)
    if layer.fused and size > 1:
        raise BackendError(
            f"keys and values to share must have products of their own; got one for all in "
            f"{type(layer.layer).__name__} at {layer.path}. Cut heads instead."
        )
    groups = tuple(tuple(range(at, at + size)) for at in range(0, place.kv_heads, size))
    return Kept(tuple(range(len(layer.rows[0]))), groups, None if weights is None else weights[place.path])


def _compare(slim: PreTrainedModel, inputs: Mapping[str, Tensor], wanted: Tensor, done: str) -> None:
    """Raise unless a smaller model answers as the silenced one did."""
    told = "another answer"
    try:
        found = run(slim, inputs)
    except RuntimeError as error:  # of shapes that the model's own code does not expect
        found, told = torch.full_like(wanted, torch.nan), str(error)
    room = 4 * torch.finfo(wanted.dtype).eps ** 0.5 * float(wanted.abs().max())
    if not float((found - wanted).abs().max()) <= room:
        raise BackendError(
            f"a smaller {type(slim).__name__} must answer as the whole one with these heads silenced; got {told}. "
            f"Take an architecture that docs/architectures.md lists as {done}."
        )
