"""Carry PyTorch's conventions onto headwise's operation: three names that take the place of PyTorch's own.

The border at which its shapes, its mask polarity (`True` = seen in one of its functions, `True` = hidden in the others)
and its order of axes are translated. A query that may look at nothing gives zeros where PyTorch gives NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import CausalBias, CausalVariant

from headwise.contracts import Mask
from headwise.errors import InputError
from headwise.functional import attend, attention_weights

__all__ = ["MultiheadAttention", "multi_head_attention_forward", "scaled_dot_product_attention", "swap"]

_NAMES = ("query", "key", "value")
_MOST_AT_ONCE = 1 << 26
"""Weights computed at once for `need_weights`: 256 MB of float32; more are computed in windows of queries."""


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention as `torch.nn.functional.scaled_dot_product_attention` does, by `headwise.attend`.

    Args:
        query: queries, shape (..., Q, D); the leading axes of all three broadcast.
        key: keys, shape (..., K, D).
        value: values, shape (..., K, E).
        attn_mask: booleans, `True` = seen, or floats that are added to the scores; broadcasts to (..., Q, K).
        dropout_p: rate at which weights are dropped, in evaluation too.
        is_causal: let query i see the first i + 1 keys; not together with `attn_mask`.
        scale: factor of the scores; 1 / sqrt(D) where left out.
        enable_gqa: let each head of key and value (axis -3) serve several heads of the query.

    Raises:
        InputError: when the tensors do not fit each other, or both a mask and `is_causal` are given.

    Example:
        >>> query, key = torch.randn(3, 5, 8), torch.randn(7, 8)
        >>> scaled_dot_product_attention(query, key, key).shape
        torch.Size([3, 5, 8])
    """
    if is_causal and attn_mask is not None:
        told = f"a mask of shape {tuple(attn_mask.shape)}"
        raise InputError(f"`attn_mask` must be left out with `is_causal`; got {told}. Put both into one mask.")
    _check_ranks((query, key, value), 3 if enable_gqa else 2)
    if enable_gqa and key.shape[-3] != value.shape[-3]:
        key, value = (_repeated(x, query.shape[-3]) for x in (key, value))
    rank = max(x.dim() for x in (query, key, value))
    lone = rank < 4 and not enable_gqa
    sides = [_lifted(x, rank, lone) for x in (query, key, value)]
    shape = _common([x.shape[:-3] if enable_gqa else x.shape[:-2] for x in sides], sides)
    lead, heads = (shape, query.shape[-3]) if enable_gqa else (shape[:-1], shape[-1])
    # Keys and values that all heads share stay a single group: nothing is repeated.
    shared = enable_gqa or sides[1].shape[-3] == sides[2].shape[-3] == 1
    spread = [x.expand(*lead, x.shape[-3] if i and shared else heads, -1, -1) for i, x in enumerate(sides)]
    full = (*lead, heads, query.shape[-2], key.shape[-2])
    mask, bias = (Mask.causal("start"), None) if is_causal else _seen(attn_mask, rank, lone, full)
    query_BHQD, key_BGKD, value_BGKE = (x.flatten(0, -4) for x in spread)
    output_BHQE = attend(query_BHQD, key_BGKD, value_BGKE, mask, bias=bias, scale=scale, dropout=dropout_p)
    output = output_BHQE.unflatten(0, lead)
    for _ in range(output.dim() - 1 - rank if lone else output.dim() - rank):
        output = output.squeeze(0)
    return output.squeeze(-3) if lone else output


def _check_ranks(tensors: tuple[Tensor, ...], least: int) -> None:
    for name, x in zip(_NAMES, tensors, strict=True):
        if x.is_nested:
            raise InputError(f"`{name}` must be a plain tensor; got a nested one. Pad it with torch.nested.to_padded_tensor.")
        if x.dim() < least:
            told = f"shape {tuple(x.shape)}. The last axes are {'heads, ' * (least - 2)}positions and width."
            raise InputError(f"`{name}` must have at least {least} axes; got {told}")


def _repeated(x: Tensor, heads: int) -> Tensor:
    if x.shape[-3] == 0 or heads % x.shape[-3]:
        told = f"{heads} and {x.shape[-3]}. Each head of key and value serves the same number of query heads."
        raise InputError(f"the number of query heads must be a multiple of that of key and value; got {told}")
    return x.repeat_interleave(heads // x.shape[-3], -3)


def _lifted(x: Tensor, rank: int, lone: bool) -> Tensor:
    """Bring a tensor to (samples ..., heads, rows, columns); `lone` means that it has no axis of heads."""
    x = x[(None,) * (rank - x.dim())]
    x = x.unsqueeze(-3) if lone else x
    return x[(None,) * (4 - x.dim())]


def _common(shapes: list[torch.Size], sides: list[Tensor]) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        told = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip(_NAMES, sides, strict=True))
        hint = "Every axis before the last two has one size or size 1; `enable_gqa=True` lets the heads differ."
        raise InputError(f"the leading axes of query, key and value must broadcast; got {told}. {hint}") from None


def _seen(mask: Tensor | None, rank: int, lone: bool, full: tuple[int, ...]) -> tuple[Mask | None, Tensor | None]:
    """Translate the mask of `scaled_dot_product_attention`: what may be seen, and what is added."""
    if mask is None:
        return None, None
    if isinstance(mask, CausalBias):
        return Mask.causal("end" if mask.variant == CausalVariant.LOWER_RIGHT else "start"), None
    _check_type("attn_mask", mask)
    fits = mask.dim() <= rank
    x = _lifted(mask, rank, lone) if fits else mask
    if not fits or any(have not in (1, want) for have, want in zip(x.shape, full, strict=True)):
        told = f"shape {tuple(mask.shape)} for scores of shape {full}. Every axis has that size or size 1."
        raise InputError(f"`attn_mask` must broadcast to the scores; got {told}")
    if any(size != 1 for size in x.shape[:-3]):
        x = x.expand(*full[:-3], -1, -1, -1)
    x = x.flatten(0, -4)
    return (Mask.dense(x), None) if x.dtype == torch.bool else (None, x)


def _check_type(name: str, mask: Tensor) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        told = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"`{name}` must be a bool or float tensor; got {told}. Convert it with .bool() or .float().")


class _Layer(NamedTuple):
    """Hold the parameters of one layer."""

    heads: int
    in_weights: tuple[Tensor | None, ...]
    """One packed weight, or those of query, key and value."""
    in_bias: Tensor | None
    more: tuple[Tensor | None, Tensor | None]
    """A learned key and value that are appended to every sample."""
    zero: bool
    """Whether a key and value of zeros are appended."""
    out_weight: Tensor
    out_bias: Tensor | None


class _Asked(NamedTuple):
    """Hold what one call asks of a layer."""

    key_padding_mask: Tensor | None
    attn_mask: Tensor | None
    is_causal: bool
    rate: float
    need_weights: bool
    average: bool
    batch_first: bool
    given: tuple[Tensor | None, Tensor | None] = (None, None)
    """Key and value, projected and split already, in place of the computed ones."""


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute multi-head attention as `torch.nn.functional.multi_head_attention_forward` does, by `headwise.attend`.

    Sequence first: (T, B, M), or (T, M) for one sample. Boolean masks hide where `True`, float masks are added to the
    scores. `is_causal` is a hint that `attn_mask` is causal; as in PyTorch it is followed in place of the mask where
    neither padding nor weights are asked for. The weights returned are those before dropout, where PyTorch returns
    them after it: the one departure, beside zeros for NaN.

    Raises:
        InputError: when tensors, parameters and masks do not fit each other.
    """
    if query.shape[-1] != embed_dim_to_check:
        raise InputError(_misfit("the width of `query`", embed_dim_to_check, query.shape[-1], "It is `embed_dim`"))
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else (in_proj_weight,)
    more, out = (bias_k, bias_v), (out_proj_weight, out_proj_bias)
    layer = _Layer(num_heads, weights, in_proj_bias, more, add_zero_attn, *out)
    rate, given = dropout_p if training else 0.0, (static_k, static_v)
    wanted = need_weights, average_attn_weights, False
    asked = _Asked(key_padding_mask, attn_mask, is_causal, rate, *wanted, given)
    return _run(layer, asked, query, key, value)


def _run(layer: _Layer, asked: _Asked, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Project, split, attend, join, project."""
    _check_inputs(layer, query, key, value)
    batched = query.dim() == 3
    first = asked.batch_first or not batched
    query_BHQD, key_BHKD, value_BHKD = (_split(x, layer.heads, first) for x in _projected(layer, query, key, value))
    batch, _, queries, _ = query_BHQD.shape
    key_BHKD, value_BHKD = (
        _given(static, x) for static, x in zip(asked.given, (key_BHKD, value_BHKD), strict=True)
    )
    sizes = (batch, layer.heads, queries, key_BHKD.shape[2])
    key_BHKD, value_BHKD, extra = _lengthened(layer, key_BHKD, value_BHKD)
    mask, bias = _unhidden(asked, sizes, batched, extra)
    mixed_BHQD = attend(query_BHQD, key_BHKD, value_BHKD, mask, bias=bias, dropout=asked.rate)
    mixed = mixed_BHQD.transpose(1, 2) if first else mixed_BHQD.permute(2, 0, 1, 3)
    output = F.linear(mixed.flatten(2), layer.out_weight, layer.out_bias)
    weights = _weights(asked, query_BHQD, key_BHKD, mask, bias) if asked.need_weights else None
    if batched:
        return output, weights
    return output.squeeze(0), None if weights is None else weights.squeeze(0)


def _check_inputs(layer: _Layer, query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip(_NAMES, (query, key, value), strict=True))
    if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
        hint = "One sample has 2, a batch 3."
        raise InputError(f"query, key and value must have 2 axes, or 3 with a batch; got {shapes}. {hint}")
    if key.shape[:-1] != value.shape[:-1]:
        raise InputError(f"key and value must hold the same samples and positions; got {shapes}. They come in pairs.")
    width = query.shape[-1]
    if layer.heads < 1 or width % layer.heads:
        hint = f"Take a divisor of {width}."
        raise InputError(f"`num_heads` must divide the width {width}; got {layer.heads}. {hint}")
    if any(weight is None for weight in layer.in_weights):
        names = "`in_proj_weight`" if len(layer.in_weights) == 1 else "`q_proj_weight`, `k_proj_weight`, `v_proj_weight`"
        hint = "`use_separate_proj_weight` tells which are read."
        raise InputError(f"{names} must be given; got None. {hint}")
    _check_widths(layer, query, key, value)


def _check_widths(layer: _Layer, query: Tensor, key: Tensor, value: Tensor) -> None:
    width, packed = query.shape[-1], len(layer.in_weights) == 1
    names = ("in_proj_weight",) if packed else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    for name, weight, x in zip(names, layer.in_weights, (query, key, value), strict=False):
        wanted = (3 * width, width) if packed else (width, x.shape[-1])
        if weight is not None and tuple(weight.shape) != wanted:
            hint = f"It projects inputs of width {wanted[1]}"
            raise InputError(_misfit(f"the shape of `{name}`", wanted, tuple(weight.shape), hint))
    for name, x in zip(_NAMES[1:], (key, value), strict=True):
        if packed and x.shape[-1] != width:
            hint = "Other widths need `use_separate_proj_weight`, or `kdim` and `vdim`"
            raise InputError(_misfit(f"the width of `{name}`", width, x.shape[-1], hint))
    if (layer.more[0] is None) != (layer.more[1] is None):
        told = "`bias_k`" if layer.more[1] is None else "`bias_v`"
        raise InputError(f"`bias_k` and `bias_v` must be given together; got {told} alone. Pass both or neither.")


def _misfit(what: str, wanted: Any, found: Any, hint: str) -> str:
    return f"{what} must be {wanted}; got {found}. {hint}."


def _projected(layer: _Layer, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Project query, key and value, with a single product for inputs that are the same tensor."""
    if len(layer.in_weights) == 3:
        biases = (None,) * 3 if layer.in_bias is None else layer.in_bias.chunk(3)
        triples = zip((query, key, value), layer.in_weights, biases, strict=True)
        return tuple(F.linear(x, weight, bias) for x, weight, bias in triples)  # type: ignore[arg-type]
    (weight,), bias, width = layer.in_weights, layer.in_bias, query.shape[-1]
    assert weight is not None, "checked before"
    if query is key and key is value:
        return F.linear(query, weight, bias).chunk(3, -1)
    cuts = [width, 2 * width] if key is value else [width] * 3
    weights = weight.split(cuts)
    biases = (None,) * len(cuts) if bias is None else bias.split(cuts)
    triples = zip((query, key, value), weights, biases, strict=False)
    parts = [F.linear(x, w, b) for x, w, b in triples]
    return (parts[0], *parts[1].chunk(2, -1)) if key is value else tuple(parts)


def _split(x: Tensor, heads: int, batch_first: bool) -> Tensor:
    x_BTM = x if batch_first and x.dim() == 3 else x.unsqueeze(0) if x.dim() == 2 else x.transpose(0, 1)
    return x_BTM.unflatten(-1, (heads, -1)).transpose(1, 2)


def _given(static: Tensor | None, computed_BHKD: Tensor) -> Tensor:
    if static is None:
        return computed_BHKD
    batch, heads, _, width = computed_BHKD.shape
    if static.dim() != 3 or static.shape[0] != batch * heads or static.shape[2] != width:
        wanted = f"({batch * heads}, keys, {width})"
        raise InputError(_misfit("the shape of `static_k` and `static_v`", wanted, tuple(static.shape), "It holds heads"))
    return static.unflatten(0, (batch, heads))


def _lengthened(layer: _Layer, key_BHKD: Tensor, value_BHKD: Tensor) -> tuple[Tensor, Tensor, int]:
    """Append the learned and the zero key and value, and count them."""
    sides, count = [], 0
    for x_BHKD, more in zip((key_BHKD, value_BHKD), layer.more, strict=True):
        batch, heads, _, width = x_BHKD.shape
        parts = [x_BHKD]
        if more is not None:
            parts.append(more.flatten().unflatten(0, (heads, 1, width)).expand(batch, -1, -1, -1))
        if layer.zero:
            parts.append(x_BHKD.new_zeros(batch, heads, 1, width))
        count = len(parts) - 1
        sides.append(torch.cat(parts, 2) if count else x_BHKD)
    return sides[0], sides[1], count


def _unhidden(
    asked: _Asked, sizes: tuple[int, int, int, int], batched: bool, extra: int
) -> tuple[Mask | None, Tensor | None]:
    """Translate masks that hide where `True`: what may be seen, and what is added; no axis is spread out."""
    batch, heads, queries, keys = sizes
    attn, padding = asked.attn_mask, asked.key_padding_mask
    if asked.is_causal and attn is None:
        hint = "nn.Transformer.generate_square_subsequent_mask makes one."
        raise InputError(f"`attn_mask` must be given with `is_causal`, a hint about it; got None. {hint}")
    if asked.is_causal and padding is None and not asked.need_weights:
        return Mask.causal("start"), None
    masks = []
    if attn is not None:
        _check_mask("attn_mask", attn, [(queries, keys), (batch * heads, queries, keys)])
        masks.append(attn[None, None] if attn.dim() == 2 else attn.unflatten(0, (batch, heads)))
    if padding is not None:
        _check_mask("key_padding_mask", padding, [(batch, keys) if batched else (keys,)])
        masks.append(padding.unflatten(0, (-1, 1, 1, keys)) if padding.dim() == 1 else padding[:, None, None])
    hidden = [F.pad(x, (0, extra)) for x in masks if x.dtype == torch.bool]
    added = [F.pad(x, (0, extra)) for x in masks if x.dtype != torch.bool]
    hidden_BHQK = hidden[0] | hidden[-1] if hidden else None
    bias_BHQK = None if not added else added[0] if len(added) == 1 else added[0] + added[1]
    return None if hidden_BHQK is None else Mask.dense(~hidden_BHQK), bias_BHQK


def _check_mask(name: str, mask: Tensor, shapes: list[tuple[int, ...]]) -> None:
    _check_type(name, mask)
    if tuple(mask.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise InputError(_misfit(f"the shape of `{name}`", wanted, tuple(mask.shape), "Booleans hide where True"))


def _weights(asked: _Asked, query_BHQD: Tensor, key_BHKD: Tensor, mask: Mask | None, bias: Tensor | None) -> Tensor:
    """Compute the weights, averaged over heads where asked; many of them in windows of queries."""
    batch, heads, queries, _ = query_BHQD.shape
    step = queries
    if not torch.compiler.is_compiling():
        step = max(1, _MOST_AT_ONCE // max(1, batch * heads * key_BHKD.shape[2]))
        if step < queries:
            windows = [slice(a, min(a + step, queries)) for a in range(0, queries, step)]
            parts = [attention_weights(query_BHQD, key_BHKD, mask, bias=bias, queries=window) for window in windows]
            return torch.cat([part.mean(1) if asked.average else part for part in parts], -2)
    weights_BHQK = attention_weights(query_BHQD, key_BHKD, mask, bias=bias)
    return weights_BHQK.mean(1) if asked.average else weights_BHQK
