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

_Masks = tuple[Mask | None, Tensor | None]
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
        raise _refusal("`attn_mask` must be left out with `is_causal`", "both", "Write the causal part into the mask.")
    key, value = _checked(query, key, value, enable_gqa)
    shape = _common(-3 if enable_gqa else -2, query, key, value)
    lone = not enable_gqa and len(shape) < 2
    if lone:
        query, key, value = (x.unsqueeze(-3) for x in (query, key, value))
    lead = (shape if lone or enable_gqa else shape[:-1]) or (1,)
    heads = query.shape[-3] if lone or enable_gqa else shape[-1]
    # Keys and values that all heads share stay a single group: nothing is repeated.
    shared = all(math.prod(x.shape[-3:-2]) == 1 for x in (key, value))
    groups = key.shape[-3] if enable_gqa else 1 if shared else heads
    query_BHQD = query.expand(*lead, heads, -1, -1).flatten(0, -4)
    key_BGKD, value_BGKE = (x.expand(*lead, groups, -1, -1).flatten(0, -4) for x in (key, value))
    full = (*lead, heads, query.shape[-2], key.shape[-2])
    mask, bias = (Mask.causal("start"), None) if is_causal else _visible(attn_mask, lone, full)
    output_BHQE = attend(query_BHQD, key_BGKD, value_BGKE, mask, bias=bias, scale=scale, dropout=dropout_p)
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
            raise _refusal(f"`{name}` must have at least {least} axes", tuple(x.shape), "Add some with x[None].")
    if grouped:
        heads, groups = query.shape[-3], [x.shape[-3] for x in (key, value)]
        if any(count == 0 or heads % count for count in groups):
            raise _refusal("query heads must be a multiple of key heads", _told(query, key, value), "Repeat some.")
        if groups[0] != groups[1]:
            key, value = (x.repeat_interleave(heads // x.shape[-3], -3) for x in (key, value))
    return key, value


def _told(*tensors: Tensor) -> str:
    return ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip(_NAMES, tensors, strict=True))


def _common(cut: int, *tensors: Tensor) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(*(x.shape[:cut] for x in tensors)))
    except RuntimeError:
        raise _refusal("leading axes must broadcast", _told(*tensors), "`enable_gqa` lets the heads differ.") from None


def _visible(mask: Tensor | None, lone: bool, full: tuple[int, ...]) -> _Masks:
    """Translate a mask of which `True` = seen to what may be seen and what is added; `lone` means without heads."""
    if mask is None:
        return None, None
    if isinstance(mask, CausalBias):
        return Mask.causal("end" if mask.variant == CausalVariant.LOWER_RIGHT else "start"), None
    _check_mask("attn_mask", mask)
    x = mask.unsqueeze(-3) if lone and mask.dim() > 1 else mask
    x = x[(None,) * max(0, len(full) - x.dim())]
    if x.dim() > len(full) or any(have not in (1, want) for have, want in zip(x.shape, full, strict=True)):
        raise _refusal(f"`attn_mask` must broadcast to {full}", tuple(mask.shape), "Add axes with mask[:, None].")
    if any(size != 1 for size in x.shape[:-3]):
        x = x.expand(*full[:-3], -1, -1, -1)
    x_BHQK = x.flatten(0, -4)
    return (Mask.dense(x_BHQK), None) if x.dtype == torch.bool else (None, x_BHQK)


def _check_mask(name: str, mask: Tensor, *shapes: tuple[int, ...]) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        told = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise _refusal(f"`{name}` must be a bool or float tensor", told, "Convert it with .bool() or .float().")
    if shapes:
        _check_shape(name, mask, "A boolean hides where it is True, a number is added to the score.", *shapes)


def _check_shape(name: str, tensor: Tensor | None, remedy: str, *shapes: tuple[int, ...]) -> None:
    if tensor is None or not any(tensor.shape == shape for shape in shapes):
        found = None if tensor is None else tuple(tensor.shape)
        raise _refusal(f"`{name}` must have shape {' or '.join(map(str, shapes))}", found, remedy)


class _Call(NamedTuple):
    """Hold the parameters of a layer and what one call asks of it."""

    heads: int
    in_weights: tuple[Tensor | None, ...]
    """One packed weight, or those of query, key and value."""
    in_bias: Tensor | None
    more: tuple[Tensor | None, Tensor | None]
    """Appended to the keys and values of every sample, and after them zeros where `zero` says so."""
    zero: bool
    out: tuple[Tensor, Tensor | None]
    masks: tuple[Tensor | None, Tensor | None]
    is_causal: bool
    rate: float
    need_weights: bool
    average: bool
    batch_first: bool
    static: tuple[Tensor | None, Tensor | None] = (None, None)
    """Take the place of the projected keys and values."""


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
        told = query.shape[-1], "Project it, or build the layer for its width."
        raise _refusal(f"`query` must have the width {embed_dim_to_check} of `embed_dim_to_check`", *told)
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else (in_proj_weight,)
    more, out, masks = (bias_k, bias_v), (out_proj_weight, out_proj_bias), (attn_mask, key_padding_mask)
    rate, wanted, static = dropout_p if training else 0.0, (need_weights, average_attn_weights), (static_k, static_v)
    layer = num_heads, weights, in_proj_bias, more, add_zero_attn, out
    return _run(_Call(*layer, masks, is_causal, rate, *wanted, False, static), query, key, value)


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
        weights = (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases, more = (self.in_proj_bias, self.out_proj.bias), (self.bias_k, self.bias_v)
        ways = (nn.init.xavier_uniform_, weights), (nn.init.zeros_, biases), (nn.init.xavier_normal_, more)
        for way, parameters in ways:
            for parameter in parameters:
                if parameter is not None:
                    way(parameter)

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
        """Compute the output and, with `need_weights`, the weights; boolean masks hide where `True`."""
        hidden_BT = None
        if query.is_nested:
            alone = query is key is value and self.batch_first and key_padding_mask is None and attn_mask is None
            query, hidden_BT = _padded(query, alone)
            key, value, key_padding_mask = query, query, hidden_BT
        separate = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        weights = (self.in_proj_weight,) if self.__dict__["_qkv_same_embed_dim"] else separate
        more, out = (self.bias_k, self.bias_v), (self.out_proj.weight, self.out_proj.bias)
        rate, masks = self.dropout if self.training else 0.0, (attn_mask, key_padding_mask)
        layer = self.num_heads, weights, self.in_proj_bias, more, self.add_zero_attn, out
        call = _Call(*layer, masks, is_causal, rate, need_weights, average_attn_weights, self.batch_first)
        output, found = _run(call, query, key, value)
        return (output, found) if hidden_BT is None else _unpadded(output, found, hidden_BT)


def _padded(x: Tensor, alone: bool) -> tuple[Tensor, Tensor]:
    """Pad a nested tensor, which `nn.TransformerEncoder` makes of padded ones, and tell where the padding is."""
    if not alone:
        remedy = "Use torch.nested.to_padded_tensor and `key_padding_mask`."
        raise _refusal("a nested input must come alone: itself three times, batch first, no masks", "more", remedy)
    padded_BTM, lengths_B = torch.nested.to_padded_tensor(x, 0.0), torch.tensor([len(row) for row in x.unbind()])
    return padded_BTM, (torch.arange(padded_BTM.shape[1]) >= lengths_B[:, None]).to(x.device)


def _unpadded(padded_BTM: Tensor, weights: Tensor | None, hidden_BT: Tensor) -> tuple[Tensor, Tensor | None]:
    rows = [row[~hidden] for row, hidden in zip(padded_BTM, hidden_BT, strict=True)]
    if weights is not None:
        weights = weights.masked_fill(hidden_BT.unflatten(1, (*(1,) * (weights.dim() - 3), -1, 1)), 0)
    return torch.nested.as_nested_tensor(rows), weights


def swap(model: nn.Module) -> int:
    """Replace the class of every `torch.nn.MultiheadAttention` in a model by ours, in place, and count them.

    Subclasses are left alone: they may do something else.
    """
    found = [module for module in model.modules() if type(module) is nn.MultiheadAttention]
    for module in found:
        module.__class__ = MultiheadAttention
    return len(found)


def _run(call: _Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Project, split, attend, join, project."""
    _check(call, query, key, value)
    batched, split = query.dim() == 3, (call.heads, -1)
    first = call.batch_first or not batched
    sides = [x if batched else x.unsqueeze(0) for x in _projected(call, query, key, value)]
    sides = [(x if first else x.transpose(0, 1)).unflatten(-1, split).transpose(1, 2) for x in sides]
    batch, _, queries, width = sides[0].shape
    for i, static in enumerate(call.static, 1):
        if static is not None:
            wanted = (batch * call.heads, *static.shape[1:2], width)
            _check_shape(("static_k", "static_v")[i - 1], static, "It is projected and split into heads.", wanted)
            sides[i] = static.unflatten(0, (batch, call.heads))
    mask, bias = _unhidden(call, (batch, call.heads, queries, sides[1].shape[2]), batched)
    query_BHQD = sides[0]
    key_BHKD, value_BHKD = (_lengthened(x, more, call.zero) for x, more in zip(sides[1:], call.more, strict=True))
    mixed_BHQD = attend(query_BHQD, key_BHKD, value_BHKD, mask, bias=bias, dropout=call.rate)
    mixed = mixed_BHQD.transpose(1, 2) if first else mixed_BHQD.permute(2, 0, 1, 3)
    output, weights = F.linear(mixed.flatten(2), *call.out), None
    if call.need_weights:
        weights = _weights(call.average, query_BHQD, key_BHKD, mask, bias)
        weights = weights if batched else weights.squeeze(0)
    return output if batched else output.squeeze(0), weights


def _check(call: _Call, query: Tensor, key: Tensor, value: Tensor) -> None:
    tensors, width = (query, key, value), query.shape[-1]
    if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
        raise _refusal("inputs must have 2 axes, or 3 with a batch", _told(*tensors), "Add the axis to all three.")
    if key.shape[:-1] != value.shape[:-1]:
        raise _refusal("key and value must hold the same samples and positions", _told(*tensors), "They come in pairs.")
    if call.heads < 1 or width % call.heads:
        raise _refusal(f"`num_heads` must divide the width {width}", call.heads, f"Take a divisor of {width}.")
    names = ("in_proj_weight",) if len(call.in_weights) == 1 else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    remedy = "Widths that differ need separate weights (`kdim`, `vdim`, `use_separate_proj_weight`)."
    for i, x in enumerate(tensors):
        name, weight = names[i % len(names)], call.in_weights[i % len(names)]
        _check_shape(name, weight, remedy, (3 // len(names) * width, x.shape[-1]))
    if any(x is not None for x in call.more):
        for name, more in zip(("bias_k", "bias_v"), call.more, strict=True):
            _check_shape(name, more, "Pass both or neither.", (1, 1, width), (width,))


def _projected(call: _Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Project query, key and value, with a single product for those that are the same tensor."""
    first, *others = call.in_weights
    assert first is not None, "checked before"
    if not others and query is key is value:
        return F.linear(query, first, call.in_bias).chunk(3, -1)
    width = query.shape[-1]
    sizes = [width, 2 * width] if key is value and not others else [width] * 3
    weights = call.in_weights if others else first.split(sizes)
    biases = [None] * 3 if call.in_bias is None else call.in_bias.split(sizes)
    parts = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=False)]
    return tuple(parts) if len(parts) == 3 else (parts[0], *parts[1].chunk(2, -1))


def _lengthened(x_BHKD: Tensor, more: Tensor | None, zero: bool) -> Tensor:
    """Append the learned vector and the zero one."""
    batch, heads, _, width = x_BHKD.shape
    learned = [] if more is None else [more.flatten().unflatten(0, (heads, 1, width)).expand(batch, -1, -1, -1)]
    zeros = [x_BHKD.new_zeros(batch, heads, 1, width)] if zero else []
    return torch.cat([x_BHKD, *learned, *zeros], 2) if learned or zeros else x_BHKD


def _unhidden(call: _Call, sizes: tuple[int, int, int, int], batched: bool) -> _Masks:
    """Translate masks that hide where `True` to what may be seen and what is added; no axis is spread out."""
    batch, heads, queries, keys = sizes
    attn, padding = call.masks
    if call.is_causal and attn is None:
        raise _refusal("`attn_mask` must be given with `is_causal`, a hint about it", None, "Give both or neither.")
    if call.is_causal and padding is None and not call.need_weights:
        return Mask.causal("start"), None
    masks = []
    if attn is not None:
        _check_mask("attn_mask", attn, (queries, keys), (batch * heads, queries, keys))
        masks.append(attn[None, None] if attn.dim() == 2 else attn.unflatten(0, (batch, heads)))
    if padding is not None:
        _check_mask("key_padding_mask", padding, (batch, keys) if batched else (keys,))
        masks.append(padding[..., None, None, :] if batched else padding[None, None, None])
    extra = (call.more[0] is not None) + call.zero
    masks = [F.pad(mask, (0, extra)) for mask in masks] if extra else masks
    hidden = [mask for mask in masks if mask.dtype == torch.bool]
    added = [mask for mask in masks if mask.dtype != torch.bool]
    seen = Mask.dense(~(hidden[0] | hidden[1] if len(hidden) == 2 else hidden[0])) if hidden else None
    return seen, sum(added[1:], added[0]) if added else None


def _weights(average: bool, query_BHQD: Tensor, key_BHKD: Tensor, mask: Mask | None, bias: Tensor | None) -> Tensor:
    """Compute the weights, averaged over heads where asked; where they are many, in windows of queries."""

    def window(rows: slice | None) -> Tensor:
        weights_BHQK = attention_weights(query_BHQD, key_BHKD, mask, bias=bias, queries=rows)
        return weights_BHQK.mean(1) if average else weights_BHQK

    if torch.compiler.is_compiling():  # a branch on a size would freeze it
        return window(None)
    batch, heads, queries, _ = query_BHQD.shape
    step = max(1, _MOST_AT_ONCE // max(1, batch * heads * key_BHKD.shape[2]))
    if queries <= step:
        return window(None)
    return torch.cat([window(slice(a, a + step)) for a in range(0, queries, step)], -2)
