"""Make a model ready to be used and not trained: its products read weights that lie as the processor wants them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from headwise.models.seq2seq import Seq2Seq
from headwise.modules import Attend, FeedForward, MultiHeadAttention

__all__ = ["PackedLinear", "for_inference"]

_BENDS = {"relu": "relu", "silu": "swish", "gelu": "gelu"}
"""What oneDNN can bend a product by, while it is at hand."""

_Model = TypeVar("_Model", bound=nn.Module)


class PackedLinear(nn.Module):
    """Compute what `nn.Linear` computes, without gradients, from a weight in oneDNN's own order.

    PyTorch's product orders the weight anew in each call, which is a third of the time for the few rows of a decoding
    step, and in float32 takes a library that is slow on some processors.

    Args:
        weight_NM: the weight.
        bias_N: the bias, if there is one.
        bend: what bends the product, by oneDNN's name; nothing where left out.
    """

    weight: Tensor

    def __init__(self, weight_NM: Tensor, bias_N: Tensor | None, bend: str = "none") -> None:
        super().__init__()
        self.bend = bend
        self.sizes = tuple(weight_NM.shape)
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(weight_NM.detach()), persistent=False)
        self.bias_N = None if bias_N is None else bias_N.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, add, bend."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias_N, self.bend, [], "none")
        return product

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.sizes[1]}, {self.sizes[0]}, bias={self.bias_N is not None}"


def for_inference(model: _Model, *, dtype: torch.dtype | None = None) -> _Model:
    """Give a model that computes the same, faster on the CPU, in evaluation mode and without gradients.

    It shares with the given one all that is not packed, the seams of attention among them: who looks at the heads of
    one looks at those of both. Weights are packed as they are now; pack again after training on.

    Args:
        model: the model; it stays as it is.
        dtype: type of its numbers; the model's own where left out. bfloat16 is the fastest where the processor
            multiplies it (AVX512_BF16, AMX); where oneDNN has no product of it at all (no AVX-512), nothing is packed.

    Example:
        >>> for_inference(nn.Sequential(nn.Linear(4, 8)))
        Sequential(
          (0): PackedLinear(4, 8, bias=True)
        )
    """
    packs = torch.backends.mkldnn.is_available() and all(
        x.device.type == "cpu" and (dtype or x.dtype) in _packed_dtypes() for x in model.parameters()
    )
    with torch.no_grad():
        return _ready(model, dtype, packs=packs)


def _packed_dtypes() -> tuple[torch.dtype, ...]:
    """Tell which numbers oneDNN multiplies on this processor."""
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if half else (torch.float32,)


def _ready(module: _Model, dtype: torch.dtype | None, *, packs: bool) -> _Model:
    """Copy a module, and pack its products; the seams are given as they are."""
    if isinstance(module, Attend):
        return module
    ready = copy.copy(module)
    ready.__dict__["training"] = False
    for kind in ("_parameters", "_buffers"):
        held = module.__dict__[kind].items()
        ready.__dict__[kind] = {name: None if x is None else _cast(x, dtype) for name, x in held}
    ready.__dict__["_modules"] = {
        name: None if part is None else _part(part, dtype, packs=packs) for name, part in module._modules.items()
    }
    if packs:
        _shorten(ready, module, dtype)
    return ready


def _shorten(ready: nn.Module, module: nn.Module, dtype: torch.dtype | None) -> None:
    """Let a packed copy of a module take the ways that only packed products have."""
    match ready:
        case FeedForward(gate=None, activation="relu" | "silu" | "gelu" as bend, up=PackedLinear() as up):
            up.bend, ready.__dict__["activation"] = _BENDS[bend], "none"
        case MultiHeadAttention():
            linears = [part for part in (module.query, module.key, module.value) if isinstance(part, nn.Linear)]
            ready.joined = _joined(linears, dtype)
        case Seq2Seq(output=None):
            ready.output = PackedLinear(ready.weight, ready.output_bias)
            ready._parameters["output_bias"] = None


def _part(module: nn.Module, dtype: torch.dtype | None, *, packs: bool) -> nn.Module:
    if packs and type(module) is nn.Linear:
        bias = None if module.bias is None else _cast(module.bias, dtype)
        return PackedLinear(_cast(module.weight, dtype), bias)
    return _ready(module, dtype, packs=packs)


def _joined(linears: Sequence[nn.Linear], dtype: torch.dtype | None) -> PackedLinear:
    """Pack products of one input as one."""
    weight_NM = torch.cat([_cast(linear.weight, dtype) for linear in linears])
    biases = [_cast(linear.bias, dtype) for linear in linears if linear.bias is not None]
    return PackedLinear(weight_NM, torch.cat(biases) if biases else None)


def _cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Give a tensor in another type, integers as they are; without a gradient."""
    return x.detach().to(dtype) if dtype is not None and x.is_floating_point() else x.detach()
