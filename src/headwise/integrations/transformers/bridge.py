"""Stand between the attention layers of Transformers and `headwise.Attend`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import output_capturing

from headwise.contracts import Mask
from headwise.errors import BackendError, InputError
from headwise.functional import attention_weights
from headwise.integrations.transformers.masks import CompactMask
from headwise.modules import Attend

__all__ = ["NAME", "NAMED", "Bridge", "attention", "bridging"]

NAME = "headwise"
"""The implementation's name in Transformers, and that of the module which `attach` puts into each layer."""
NAMED = "_headwise_heads"
"""Attribute of a layer that has lost heads: the names of those that are left."""

_HONOURED = ("dropout", "scaling", "is_causal", "position_bias", "softcap")
_WITHOUT_EFFECT = {
    "deterministic",
    "labels",
    "logits_to_keep",
    "max_length_k",
    "max_length_q",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "sliding_window",
    "token_type_ids",
    "use_cache",
    "cache_position",
    "is_first_iteration",
    "mm_token_type_ids",
}
"""What layers hand on that no attention reads; a window stands in the mask already."""
_REMEDIES = {
    "s_aux": "It has attention sinks, which take weight from the keys: keep its own attention.",
    "sinks": "It has attention sinks, which take weight from the keys: keep its own attention.",
    "cu_seq_lens_q": "Leave it out and pass `position_ids`, which tell the packed texts apart as well.",
    "cu_seq_lens_k": "Leave it out and pass `position_ids`, which tell the packed texts apart as well.",
}

_BUILDING: ContextVar[list[nn.Module] | None] = ContextVar("building", default=None)


class Bridge(nn.Module):
    """Hold the seam of one attention layer of Transformers; it has no parameters.

    Args:
        heads: names of the query heads.
        cross: whether the keys come from another text.
    """

    def __init__(self, heads: Sequence[int], *, cross: bool) -> None:
        super().__init__()
        self.attend = Attend(heads)
        self.cross = cross

    def forward(
        self, query_BHQD: Tensor, key_BGKD: Tensor, value_BGKE: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention of one call as Transformers' `AttentionInterface` asks for it."""
        if mask is None and given["is_causal"] and key_BGKD.shape[2] > query_BHQD.shape[2] > 1:
            key_BGKD, value_BGKE = (x[:, :, : query_BHQD.shape[2]] for x in (key_BGKD, value_BGKE))
        seen, bias = _read(mask, query_BHQD, key_BGKD, causal=given["is_causal"])
        position_bias = given["position_bias"]
        if position_bias is not None:
            position_bias = self._own(position_bias[..., : key_BGKD.shape[2]])
            bias = position_bias if bias is None else bias + position_bias
        scale = None if given["scaling"] is None else float(given["scaling"])
        if given["softcap"] is not None:
            bias = _capped(query_BHQD, key_BGKD, scale, given["softcap"], bias)
            query_BHQD = torch.zeros_like(query_BHQD)
        self.attend.scale = scale
        tensors = query_BHQD, key_BGKD, value_BGKE
        mixed = self.attend(*tensors, seen, bias=bias, dropout=given["dropout"] or 0.0, cross=self.cross)
        weights = attention_weights(*tensors[:2], seen, bias=bias, scale=scale) if _weights_wanted() else None
        return mixed.transpose(1, 2).contiguous(), weights

    def _own(self, bias_BHQK: Tensor) -> Tensor:
        """Take the bias of this layer's heads by name: T5 makes one for all layers, whichever heads they have lost."""
        heads = self.attend.heads
        if bias_BHQK.shape[1] == 1 or heads == tuple(range(bias_BHQK.shape[1])):
            return bias_BHQK
        return bias_BHQK[:, list(heads)]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **given: Any
) -> tuple[Tensor, Tensor | None]:
    """Be the function that Transformers calls for attention.

    Raises:
        BackendError: when the layer was not attached, or asks for something that is not honoured here.
    """
    for name, value_given in given.items():
        if name not in _HONOURED and name not in _WITHOUT_EFFECT and value_given is not None:
            remedy = _REMEDIES.get(name, "Keep its own attention with `detach(model)`.")
            raise BackendError(
                f"headwise must honour everything that changes attention; got `{name}` from "
                f"{type(module).__name__}. {remedy}"
            )
    bridge = getattr(module, NAME, None) or _built(module, query, key)
    chosen = dict.fromkeys(_HONOURED) | {name: given[name] for name in _HONOURED if name in given}
    causal = chosen["is_causal"]
    chosen["is_causal"] = bool(getattr(module, "is_causal", True) if causal is None else causal)
    result: tuple[Tensor, Tensor | None] = bridge(query, key, value, attention_mask, chosen)
    return result


@contextmanager
def bridging() -> Iterator[list[nn.Module]]:
    """Put a bridge into every attention layer that calls `attention` inside; gives the layers, in order."""
    built: list[nn.Module] = []
    token = _BUILDING.set(built)
    try:
        yield built
    finally:
        _BUILDING.reset(token)


def _built(module: nn.Module, query: Tensor, key: Tensor) -> Bridge:
    built = _BUILDING.get()
    if built is None:
        raise BackendError(
            f"an attention layer must be attached before it runs; got {type(module).__name__} without a seam. "
            "Call `headwise.integrations.transformers.attach(model)`, with `inputs` that reach every layer."
        )
    bridge = Bridge(getattr(module, NAMED, range(query.shape[1])), cross=key.shape[2] != query.shape[2])
    module.add_module(NAME, bridge)
    built.append(module)
    return bridge


def _read(
    mask: Tensor | None, query_BHQD: Tensor, key_BGKD: Tensor, *, causal: bool
) -> tuple[Mask | None, Tensor | None]:
    """Read what Transformers passes as a mask: what may be seen, and what is added to the scores."""
    queries, keys = query_BHQD.shape[2], key_BGKD.shape[2]
    if mask is None:
        return (Mask.causal(align="start") if causal and queries > 1 else None), None
    if mask.dim() != 4 or mask.shape[2] not in (1, queries) or mask.shape[3] not in (1, keys):
        raise InputError(
            f"an attention mask must have shape (B, H, {queries}, {keys}); got {tuple(mask.shape)}. "
            "An axis of size 1 is shared; True = may look, numbers are added to the scores."
        )
    if isinstance(mask, CompactMask):
        return mask.mask, None
    if mask.dtype == torch.bool:
        return Mask.dense(mask), None
    seen_BHQK = mask > torch.finfo(mask.dtype).min
    return Mask.dense(seen_BHQK), mask.masked_fill(~seen_BHQK, 0)


def _capped(query_BHQD: Tensor, key_BGKD: Tensor, scale: float | None, cap: float, bias: Tensor | None) -> Tensor:
    """Write out scores that cannot pass `cap` (Gemma 2); with queries of zero they are all of the score."""
    exact = torch.promote_types(query_BHQD.dtype, torch.float32)
    key_BHKD = key_BGKD.repeat_interleave(query_BHQD.shape[1] // key_BGKD.shape[1], 1).to(exact)
    factor = query_BHQD.shape[-1] ** -0.5 if scale is None else scale
    capped_BHQK = cap * torch.tanh(query_BHQD.to(exact) @ key_BHKD.transpose(2, 3) * (factor / cap))
    return capped_BHQK if bias is None else capped_BHQK + bias


def _weights_wanted() -> bool:
    """Tell whether `output_attentions=True` was passed to the model: layers are not told in every architecture."""
    if torch.compiler.is_compiling():
        return False
    collecting: Any = output_capturing._active_collector.get()  # type: ignore[no-untyped-call]
    return collecting is not None and any("attentions" in name for name in collecting)
