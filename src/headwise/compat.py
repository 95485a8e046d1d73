"""Carry PyTorch's conventions onto headwise's operation: three names that take the place of PyTorch's own.

The border at which its shapes, its mask polarity (`True` = seen in one of its functions, `True` = hidden in the others)
and its order of axes are translated. A query that may look at nothing gives zeros where PyTorch gives NaN.
"""

from __future__ import annotations

import math
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
        raise _refusal("`attn_mask` must be left out with `is_causal`", told, "Put both into one mask.")
    key, value = _checked(query, key, value, enable_gqa)
    shape = _common([x.shape[: -3 if enable_gqa else -2] for x in (query, key, value)])
    lone = not enable_gqa and len(shape) < 2
    if lone:
        query, key, value = (x.unsqueeze(-3) for x in (query, key, value))
    lead = (shape if lone or enable_gqa else shape[:-1]) or (1,)
    heads = query.shape[-3] if lone or enable_gqa else shape[-1]
    # Keys and values that all heads share stay a single group: nothing is repeated.
    shared = all(math.prod(x.shape[-3:-2]) == 1 for x in (key, value))
    counts = (heads, *(key.shape[-3] if enable_gqa else 1 if shared else heads,) * 2)
    sides = (x.expand(*lead, n, -1, -1).flatten(0, -4) for x, n in zip((query, key, value), counts, strict=True))
    mask, bias = (Mask.causal("start"), None) if is_causal else (None, None)
    if attn_mask is not None:
        mask, bias = _visible(attn_mask, lone, (*lead, heads, query.shape[-2], key.shape[-2]))
    output_BHQE = attend(*sides, mask, bias=bias, scale=scale, dropout=dropout_p)
    return output_BHQE.reshape(*shape, *((heads,) if enable_gqa else ()), *output_BHQE.shape[2:])


def _refusal(expectation: str, found: Any, remedy: str) -> InputError:
    return InputError(f"{expectation}; got {found}. {remedy}")


def _checked(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> tuple[Tensor, Tensor]:
    """Check ranks and head counts, and give key and value the same number of heads where they are grouped."""
    least = 3 if grouped else 2
    for name, x in zip(_NAMES, (query, key, value), strict=True):
        if x.is_nested:
            raise _refusal(f"`{name}` must be a plain tensor", "a nested one", "Use torch.nested.to_padded_tensor.")
        if x.dim() < least:
            hint = "The last axes are positions and width, before them the heads where they are grouped."
            raise _refusal(f"`{name}` must have at least {least} axes", f"shape {tuple(x.shape)}", hint)
    if not grouped:
        return key, value
    heads, groups = query.shape[-3], [x.shape[-3] for x in (key, value)]
    if any(count == 0 or heads % count for count in groups):
        told = f"{heads} over {groups[0]} and {groups[1]}"
        hint = "Each head of key and value serves the same number of query heads."
        raise _refusal("the number of query heads must be a multiple of that of key and value", told, hint)
    if groups[0] == groups[1]:
        return key, value
    return key.repeat_interleave(heads // groups[0], -3), value.repeat_interleave(heads // groups[1], -3)


def _common(shapes: list[torch.Size]) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        told = ", ".join(f"{name} {tuple(shape)}" for name, shape in zip(_NAMES, shapes, strict=True))
        hint = "An axis has one size or size 1; `enable_gqa=True` lets the heads differ."
        raise _refusal("the leading axes of query, key and value must broadcast", told, hint) from None


def _visible(mask: Tensor, lone: bool, full: tuple[int, ...]) -> tuple[Mask | None, Tensor | None]:
    """Translate a mask of which `True` = seen to what may be seen and what is added; `lone` means without heads."""
    if isinstance(mask, CausalBias):
        return Mask.causal("end" if mask.variant == CausalVariant.LOWER_RIGHT else "start"), None
    _check_type("attn_mask", mask)
    x = mask[(None,) * max(0, 2 - mask.dim())]
    x = x.unsqueeze(-3) if lone else x
    x = x[(None,) * max(0, len(full) - x.dim())]
    if x.dim() > len(full) or any(have not in (1, want) for have, want in zip(x.shape, full, strict=True)):
        hint = "An axis has that size or size 1."
        raise _refusal(f"`attn_mask` must broadcast to the scores {full}", f"shape {tuple(mask.shape)}", hint)
    if any(size != 1 for size in x.shape[:-3]):
        x = x.expand(*full[:-3], -1, -1, -1)
    x_BHQK = x.flatten(0, -4)
    return (Mask.dense(x_BHQK), None) if x.dtype == torch.bool else (None, x_BHQK)


def _check_type(name: str, mask: Tensor) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        told = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise _refusal(f"`{name}` must be a bool or float tensor", told, "Convert it with .bool() or .float().")


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
    static: tuple[Tensor | None, Tensor | None] = (None, None)
    """Keys and values, already projected and split, in place of the computed ones."""


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
        expectation = f"`query` must have the width {embed_dim_to_check} of `embed_dim_to_check`"
        raise _refusal(expectation, query.shape[-1], "Project it, or build the layer for its width.")
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else (in_proj_weight,)
    out = out_proj_weight, out_proj_bias
    layer = _Layer(num_heads, weights, in_proj_bias, (bias_k, bias_v), add_zero_attn, *out)
    rate, wanted = dropout_p if training else 0.0, (need_weights, average_attn_weights)
    asked = _Asked(key_padding_mask, attn_mask, is_causal, rate, *wanted, False, (static_k, static_v))
    return _run(layer, asked, query, key, value)


class MultiheadAttention(nn.MultiheadAttention):
    """Take the place of `torch.nn.MultiheadAttention`, with its arguments, parameters, masks and results.

    It differs in three ways only: a query that may look at nothing gives zeros, not NaN; the weights returned are those
    before dropout; and a Transformer layer really calls it in evaluation. Assigning the class to a trained module
    (`swap` does so for a whole model) or loading its state dict is all there is to a change.

    Example:
        >>> layer = MultiheadAttention(8, 2, batch_first=True)
        >>> output, weights = layer(torch.randn(3, 5, 8), torch.randn(3, 7, 8), torch.randn(3, 7, 8))
        >>> output.shape, weights.shape
        (torch.Size([3, 5, 8]), torch.Size([3, 5, 7]))
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:
        # PyTorch's layers read the weights and skip this class while it answers True, so it does during construction
        # alone, where it decides which parameters there are. The true value stays where PyTorch keeps it.
        return "out_proj" not in self._modules and bool(self.__dict__["_qkv_same_embed_dim"])

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, value: bool) -> None:
        self.__dict__["_qkv_same_embed_dim"] = value

    def _reset_parameters(self) -> None:
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        for more in (self.bias_k, self.bias_v):
            if more is not None:
                nn.init.xavier_normal_(more)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the output and, with `need_weights`, the weights; boolean masks hide where `True`.

        Raises:
            InputError: when tensors and masks do not fit each other.
        """
        if query.is_nested:
            alone = query is key is value and self.batch_first and key_padding_mask is None and attn_mask is None
            return self._forward_nested(query, alone, need_weights, average_attn_weights)
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if self.in_proj_weight is None else (self.in_proj_weight,)
        out = self.out_proj.weight, self.out_proj.bias
        layer = _Layer(self.num_heads, weights, self.in_proj_bias, (self.bias_k, self.bias_v), self.add_zero_attn, *out)
        rate, wanted = self.dropout if self.training else 0.0, (need_weights, average_attn_weights, self.batch_first)
        return _run(layer, _Asked(key_padding_mask, attn_mask, is_causal, rate, *wanted), query, key, value)

    def _forward_nested(self, x: Tensor, alone: bool, *wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Attend within each sample of a nested tensor, which `nn.TransformerEncoder` makes of padded ones."""
        if not alone:
            hint = "Use torch.nested.to_padded_tensor and `key_padding_mask`."
            raise _refusal("a nested input must attend to itself, batch first, without masks", "other arguments", hint)
        counts = [len(row) for row in x.unbind()]
        padded_BTM = torch.nested.to_padded_tensor(x, 0.0)
        places_T = torch.arange(padded_BTM.shape[1], device=x.device)
        hidden_BT = places_T >= torch.tensor(counts, device=x.device)[:, None]
        output_BTM, weights = self.forward(padded_BTM, padded_BTM, padded_BTM, hidden_BT, wanted[0], None, wanted[1])
        if weights is not None:
            weights = weights.masked_fill(hidden_BT[:, :, None] if wanted[1] else hidden_BT[:, None, :, None], 0)
        rows = [row[:count] for row, count in zip(output_BTM, counts, strict=True)]
        return torch.nested.as_nested_tensor(rows), weights


def swap(model: nn.Module) -> int:
    """Replace the class of every `torch.nn.MultiheadAttention` in a model by ours, in place, and count them.

    Subclasses are left alone: they may do something else.
    """
    found = [module for module in model.modules() if type(module) is nn.MultiheadAttention]
    for module in found:
        module.__class__ = MultiheadAttention
    return len(found)


def _run(layer: _Layer, asked: _Asked, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Project, split, attend, join, project."""
    _check(layer, query, key, value)
    batched = query.dim() == 3
    first = asked.batch_first or not batched
    sides = [_split(x, layer.heads, first) for x in _projected(layer, query, key, value)]
    query_BHQD, batch, queries = sides[0], sides[0].shape[0], sides[0].shape[2]
    for i, static in enumerate(asked.static, 1):
        if static is not None:
            sides[i] = _unfolded(static, batch, layer.heads, query_BHQD.shape[3])
    mask, bias = _unhidden(asked, (batch, layer.heads, queries, sides[1].shape[2]), batched, layer)
    key_BHKD, value_BHKD = (_lengthened(x, more, layer) for x, more in zip(sides[1:], layer.more, strict=True))
    mixed_BHQD = attend(query_BHQD, key_BHKD, value_BHKD, mask, bias=bias, dropout=asked.rate)
    mixed = mixed_BHQD.transpose(1, 2) if first else mixed_BHQD.permute(2, 0, 1, 3)
    output = F.linear(mixed.flatten(2), layer.out_weight, layer.out_bias)
    weights = _weights(asked, query_BHQD, key_BHKD, mask, bias) if asked.need_weights else None
    if batched:
        return output, weights
    return output.squeeze(0), None if weights is None else weights.squeeze(0)


def _check(layer: _Layer, query: Tensor, key: Tensor, value: Tensor) -> None:
    tensors, width = (query, key, value), query.shape[-1]
    told = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip(_NAMES, tensors, strict=True))
    if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
        raise _refusal("query, key and value must have 2 axes, or 3 with a batch", told, "Add the axis to all three.")
    if key.shape[:-1] != value.shape[:-1]:
        raise _refusal("key and value must hold the same samples and positions", told, "They come in pairs.")
    if layer.heads < 1 or width % layer.heads:
        raise _refusal(f"`num_heads` must divide the width {width}", layer.heads, f"Take a divisor of {width}.")
    parts = 3 if len(layer.in_weights) == 1 else 1
    for name, x, weight in zip(_NAMES, tensors, layer.in_weights * parts, strict=True):
        wanted = (parts * width, x.shape[-1])
        if weight is None or tuple(weight.shape) != wanted:
            hint = "Widths of their own need separate weights (`kdim`, `vdim`, `use_separate_proj_weight`)."
            found = None if weight is None else tuple(weight.shape)
            raise _refusal(f"the weight that projects `{name}` must have shape {wanted}", found, hint)
    for more, other in (layer.more, layer.more[::-1]):
        if more is not None and (other is None or more.numel() != width):
            shapes = [None if x is None else tuple(x.shape) for x in layer.more]
            raise _refusal(f"`bias_k` and `bias_v` must each hold {width} numbers", shapes, "Pass both or neither.")


def _projected(layer: _Layer, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Project query, key and value, with a single product for those that are the same tensor."""
    width = query.shape[-1]
    if len(layer.in_weights) == 1 and query is key is value:
        return F.linear(query, layer.in_weights[0], layer.in_bias).chunk(3, -1)
    separate, sizes = len(layer.in_weights) == 3, [width, width, width]
    if key is value and not separate:
        sizes = [width, 2 * width]
    weights = layer.in_weights if separate else layer.in_weights[0].split(sizes)
    biases = [None] * 3 if layer.in_bias is None else layer.in_bias.split(sizes)
    parts = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=False)]
    return tuple(parts) if len(parts) == 3 else (parts[0], *parts[1].chunk(2, -1))


def _split(x: Tensor, heads: int, batch_first: bool) -> Tensor:
    x_BTM = x.unsqueeze(0) if x.dim() == 2 else x if batch_first else x.transpose(0, 1)
    return x_BTM.unflatten(-1, (heads, -1)).transpose(1, 2)


def _unfolded(static: Tensor, batch: int, heads: int, width: int) -> Tensor:
    if static.dim() != 3 or static.shape[0] != batch * heads or static.shape[2] != width:
        expectation = f"`static_k` and `static_v` must have shape ({batch * heads}, keys, {width})"
        raise _refusal(expectation, tuple(static.shape), "They are projected and split into heads already.")
    return static.unflatten(0, (batch, heads))


def _lengthened(x_BHKD: Tensor, more: Tensor | None, layer: _Layer) -> Tensor:
    """Append the learned vector and the zero one."""
    batch, heads, _, width = x_BHKD.shape
    learned = [] if more is None else [more.flatten().unflatten(0, (heads, 1, width)).expand(batch, -1, -1, -1)]
    zeros = [x_BHKD.new_zeros(batch, heads, 1, width)] if layer.zero else []
    return torch.cat([x_BHKD, *learned, *zeros], 2) if learned or zeros else x_BHKD


def _unhidden(
    asked: _Asked, sizes: tuple[int, int, int, int], batched: bool, layer: _Layer
) -> tuple[Mask | None, Tensor | None]:
    """Translate masks that hide where `True` to what may be seen and what is added; no axis is spread out."""
    batch, heads, queries, keys = sizes
    attn, padding = asked.attn_mask, asked.key_padding_mask
    if asked.is_causal and attn is None:
        hint = "Make one with nn.Transformer.generate_square_subsequent_mask."
        raise _refusal("`attn_mask` must be given with `is_causal`, a hint about it", None, hint)
    if asked.is_causal and padding is None and not asked.need_weights:
        return Mask.causal("start"), None
    masks = []
    if attn is not None:
        _check_mask("attn_mask", attn, (queries, keys), (batch * heads, queries, keys))
        masks.append(attn[None, None] if attn.dim() == 2 else attn.unflatten(0, (batch, heads)))
    if padding is not None:
        _check_mask("key_padding_mask", padding, (batch, keys) if batched else (keys,))
        masks.append(padding[..., None, None, :] if batched else padding[None, None, None])
    extra = (layer.more[0] is not None) + layer.zero
    masks = [F.pad(mask, (0, extra)) for mask in masks] if extra else masks
    hidden = [mask for mask in masks if mask.dtype == torch.bool]
    added = [mask for mask in masks if mask.dtype != torch.bool]
    seen = Mask.dense(~(hidden[0] | hidden[-1])) if hidden else None
    return seen, added[0] + added[1] if len(added) == 2 else added[0] if added else None


def _check_mask(name: str, mask: Tensor, *shapes: tuple[int, ...]) -> None:
    _check_type(name, mask)
    if tuple(mask.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise _refusal(f"`{name}` must have shape {wanted}", tuple(mask.shape), "A boolean hides where it is True.")


def _weights(asked: _Asked, query_BHQD: Tensor, key_BHKD: Tensor, mask: Mask | None, bias: Tensor | None) -> Tensor:
    """Compute the weights, averaged over heads where asked; where they are many, in windows of queries."""

    def window(rows: slice | None) -> Tensor:
        weights_BHQK = attention_weights(query_BHQD, key_BHKD, mask, bias=bias, queries=rows)
        return weights_BHQK.mean(1) if asked.average else weights_BHQK

    batch, heads, queries, _ = query_BHQD.shape
    step = max(1, _MOST_AT_ONCE // max(1, batch * heads * key_BHKD.shape[2]))
    if torch.compiler.is_compiling() or queries <= step:
        return window(None)
    return torch.cat([window(slice(a, a + step)) for a in range(0, queries, step)], -2)
