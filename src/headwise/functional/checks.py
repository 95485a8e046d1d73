"""Check at the border that the tensors, the mask and the bias of a call fit each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headwise.contracts.biases import Alibi, RelativeBias
from headwise.contracts.masks import Mask
from headwise.errors import InputError

__all__ = ["check_bias", "check_mask", "check_tensors"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise `InputError` unless query, key and value fit each other."""
    given: tuple[tuple[str, Any], ...] = (("query", query), ("key", key), ("value", value))
    for name, tensor in given:
        if not isinstance(tensor, Tensor):
            raise InputError(f"`{name}` must be a tensor; got {type(tensor).__name__}. Use torch.as_tensor.")
        if tensor.dim() != 4:
            shape = tuple(tensor.shape)
            raise InputError(
                f"`{name}` must have 4 axes (samples, heads, positions, width); got shape {shape}. "
                "Split the heads with x.unflatten(-1, (heads, -1)).transpose(1, 2)."
            )
        if tensor.dtype not in _FLOATS:
            raise InputError(f"`{name}` must be of a float type; got {tensor.dtype}. Convert it with .float().")
        if tensor.dtype != query.dtype or tensor.device != query.device:
            told = f"`{name}` {tensor.dtype} on {tensor.device} beside `query` {query.dtype} on {query.device}"
            raise InputError(f"query, key and value must share dtype and device; got {told}. Convert one with .to().")
    _check_sizes(query, key, value)


def _check_sizes(query: Tensor, key: Tensor, value: Tensor) -> None:
    heads, groups, counts = query.shape[1], key.shape[1], ""
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        wanted, remedy = "query, key and value must hold the same samples", "Repeat with .expand() if meant."
    elif query.shape[3] != key.shape[3]:
        wanted, remedy = "query and key must have the same width", "Project one of them."
    elif key.shape[1:3] != value.shape[1:3]:
        wanted, remedy = "key and value must have the same heads and positions", "They come in pairs."
    elif heads == 0 or groups == 0 or heads % groups:
        wanted = "the number of query heads must be a multiple of that of key heads"
        counts, remedy = f"{heads} and {groups}: ", "Each key head serves the same number of query heads."
    else:
        return
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    raise InputError(f"{wanted}; got {counts}{shapes}. {remedy}")


def check_mask(mask: Any, query: Tensor, key: Tensor) -> Mask:
    """Raise `InputError` unless a mask fits the tensors, and give it back."""
    if not isinstance(mask, Mask):
        hint = "Wrap booleans with Mask.dense (True = may look); pass numbers as `bias`."
        raise InputError(f"`mask` must be a headwise.Mask; got {type(mask).__name__}. {hint}")
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    wanted = {
        "key_length_B": (batch,),
        "query_length_B": (batch,),
        "key_start_B": (batch,),
        "key_segment_BKN": (batch, keys),
        "query_segment_BQN": (batch, queries),
        "dense_BHQK": (batch, heads, queries, keys),
    }
    for name, shape in wanted.items():
        tensor = getattr(mask, name)
        if tensor is None:
            continue
        if tensor.device != query.device:
            raise InputError(f"the mask must lie on {query.device}; got {name} on {tensor.device}. Move it with .to().")
        fits = _spread(tensor.shape, shape) if name == "dense_BHQK" else tensor.shape[: len(shape)] == shape
        if not fits:
            raise InputError(
                f"the mask must fit {batch} samples, {heads} heads, {queries} queries and {keys} keys; "
                f"got {name} of shape {tuple(tensor.shape)}. Give it shape {shape}."
            )
    for name, limit in (("left", mask.left), ("right", mask.right)):
        if limit is not None and not 0 <= limit < 2**62:
            raise InputError(f"a mask's `{name}` must be at least 0 and below 2**62; got {limit}. None is no limit.")
    if mask.query_length_B is not None and mask.key_length_B is None:
        raise InputError("a mask of `query_length_B` must count the keys too; got no `key_length_B`. Use Mask.lengths.")
    return mask


def check_bias(bias: Any, query: Tensor, key: Tensor) -> None:
    """Raise `InputError` unless a bias fits the tensors."""
    if bias is None:
        return
    batch, heads, queries, _ = query.shape
    shape = (batch, heads, queries, key.shape[2])
    if isinstance(bias, Tensor):
        if not bias.dtype.is_floating_point:
            hint = "Pass booleans as Mask.dense (True = may look)."
            raise InputError(f"`bias` must be of a float type; got {bias.dtype}. {hint}")
        if bias.dim() != 4 or not _spread(bias.shape, shape):
            raise InputError(
                f"`bias` must have shape {shape} (an axis of size 1 is shared); got {tuple(bias.shape)}. "
                "Add the missing axes with bias[None, None]."
            )
        held = bias
    elif isinstance(bias, Alibi | RelativeBias):
        held = bias.slopes_H if isinstance(bias, Alibi) else bias.table_NH
        if not isinstance(held, Tensor) or not held.dtype.is_floating_point:
            found = held.dtype if isinstance(held, Tensor) else type(held).__name__
            raise InputError(f"{type(bias).__name__} must hold a float tensor; got {found}. Convert it with .float().")
        if held.shape[-1] != heads or held.dim() != (1 if isinstance(bias, Alibi) else 2):
            told = f"{heads} query heads and {type(bias).__name__} of shape {tuple(held.shape)}"
            raise InputError(
                f"a bias by position must have one column per query head; got {told}. Make it for {heads}."
            )
        if isinstance(bias, RelativeBias):
            _check_buckets(bias)
    else:
        raise InputError(
            f"`bias` must be a tensor, Alibi or RelativeBias; got {type(bias).__name__}. "
            "Numbers of shape (B, H, Q, K) are added to the scores."
        )
    if held.device != query.device:
        raise InputError(f"`bias` must lie on {query.device}; got {held.device}. Move it with .to().")


def _check_buckets(bias: RelativeBias) -> None:
    buckets = bias.table_NH.shape[0]
    if not bias.possible(buckets, bias.max_distance, bidirectional=bias.bidirectional):
        raise InputError(
            "a relative bias must have at least 4 buckets (2 where not bidirectional) and a `max_distance` above half "
            f"of a direction's; got {buckets} buckets and max_distance {bias.max_distance}. T5 has 32 and 128."
        )


def _spread(shape: torch.Size, wanted: tuple[int, ...]) -> bool:
    """Tell whether a shape is the one wanted but for shared axes of size 1."""
    return all(have in (1, want) for have, want in zip(shape, wanted, strict=True))
