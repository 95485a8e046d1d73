"""Find where each head's numbers lie in the projections of an attention layer, and cut them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from headwise.errors import BackendError
from headwise.integrations.transformers.bridge import NAME, NAMED, Bridge

__all__ = ["Kept", "Projections", "find"]

_SEPARATE = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
)
_FUSED = ("c_attn", "Wqkv", "query_key_value")
_OUTPUTS = ("out_proj", "o_proj", "dense", "out_lin", "o", "c_proj", "Wo")
_BESIDE = ("relative_attention_bias", "LayerNorm")
"""Parts of a layer that all heads share, or that the bridge reads by the heads' names."""


@dataclass(frozen=True)
class Kept:
    """Say what is left of a layer's heads, by index."""

    queries: tuple[int, ...]
    """Query heads that stay."""
    groups: tuple[tuple[int, ...], ...]
    """Key and value heads that stay; several in one group become one."""
    weights_GN: Tensor | None = None
    """What each head adds to the one that its group becomes; their mean where left out."""


@dataclass(frozen=True)
class Projections:
    """Know the products of one attention layer, and which of their rows each head has."""

    path: str
    """Path of the layer in its model."""
    layer: nn.Module
    """The layer."""
    products: tuple[nn.Module, nn.Module, nn.Module]
    """Those of queries, keys and values; one and the same where they are fused."""
    rows: tuple[Tensor, Tensor, Tensor] = field(repr=False)
    """Rows of each head in each of them, shape (H, D) or (G, D)."""
    output: nn.Module
    """The product that joins the heads."""

    @property
    def bridge(self) -> Bridge:
        """Give what holds the seam."""
        bridge = getattr(self.layer, NAME)
        assert isinstance(bridge, Bridge), "found by it"
        return bridge

    @property
    def seam(self) -> str:
        """Give the path of the seam."""
        return f"{self.path}.{NAME}.attend"

    @property
    def fused(self) -> bool:
        """Tell whether queries, keys and values come of one product."""
        return self.products[0] is self.products[1]

    @property
    def parameters(self) -> tuple[int, int]:
        """Count the parameters of a query head, with its columns of the output, and of a key and value head."""
        width = self.rows[0].shape[1]
        query, key, value = (width * (_in(each) + (each.bias is not None)) for each in self.products)
        return query + width * _out(self.output), key + value

    @torch.no_grad()
    def silence(self, kept: Kept) -> None:
        """Do in the full shape what `slim` does for good: heads that go add nothing, those that share are equal."""
        width = self.rows[0].shape[1]
        gone = [i for i in range(len(self.rows[0])) if i not in kept.queries]
        columns = (torch.tensor(gone, dtype=torch.long)[:, None] * width + torch.arange(width)).flatten()
        _matrix(self.output)[:, columns] = 0
        for product, rows_GD in zip(self.products[1:], self.rows[1:], strict=True):
            for at, group in enumerate(kept.groups):
                rows_ND = rows_GD[list(group)]
                even_N = torch.full((len(group),), 1 / len(group))
                weights_N = even_N if kept.weights_GN is None else kept.weights_GN[at]
                for tensor in _row_tensors(product) if len(group) > 1 else ():
                    tensor[rows_ND] = torch.tensordot(weights_N.to(tensor), tensor[rows_ND], dims=1)[None]

    @torch.no_grad()
    def slim(self, kept: Kept) -> None:
        """Cut rows and columns out, of a layer that was silenced."""
        first = [group[0] for group in kept.groups]
        picked = [self.rows[0][list(kept.queries)], *(rows_GD[first] for rows_GD in self.rows[1:])]
        for product in dict.fromkeys(self.products):
            mine = [rows for each, rows in zip(self.products, picked, strict=True) if each is product]
            _keep(product, torch.cat([rows.flatten() for rows in mine]).sort().values, rows=True)
        width = self.rows[0].shape[1]
        columns = (torch.tensor(kept.queries)[:, None] * width + torch.arange(width)).flatten()
        _keep(self.output, columns, rows=False)
        _tell(self.layer, len(kept.queries), len(kept.groups), width)
        names = tuple(self.bridge.attend.heads[i] for i in kept.queries)
        self.bridge.attend.heads = names
        setattr(self.layer, NAMED, names)


def find(model: nn.Module) -> list[Projections]:
    """Find the projections of every attention layer of an attached model.

    Raises:
        BackendError: for a layer whose projections are not known, or whose heads cannot be told apart.
    """
    layers = {path: each for path, each in model.named_modules() if isinstance(getattr(each, NAME, None), Bridge)}
    return [_found(model, path, layer) for path, layer in layers.items()]


def _found(model: nn.Module, path: str, layer: nn.Module) -> Projections:
    products = _products(layer)
    output = _output(model, path, layer)
    if products is None or output is None:
        raise _unknown(path, layer, f"parts {', '.join(name for name, _ in layer.named_children() if name != NAME)}")
    heads = len(getattr(layer, NAME).attend.heads)
    width = _in(output) // heads
    shared = [
        name
        for name, part in layer.named_children()
        if name not in (NAME, *_BESIDE)
        and part not in (*products, output)
        and any(list(part.children()) or each.numel() != width for each in part.parameters())
    ]
    if shared or _in(output) % heads:
        raise _unknown(path, layer, f"{', '.join(shared) or 'an output'} across all heads")
    rows = _fused_rows(layer, products[0], heads) if products[0] is products[1] else _rows(products, width)
    if rows is None or len(rows[0]) != heads:
        raise _unknown(path, layer, f"{heads} heads of width {width}, which its products do not fit")
    return Projections(path, layer, products, rows, output)


def _unknown(path: str, layer: nn.Module, told: str) -> BackendError:
    return BackendError(
        f"a layer to cut must project its heads in a way that is known; got {told} in {type(layer).__name__} "
        f"at {path}. Take an architecture that docs/architectures.md lists as cut."
    )


def _products(layer: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module] | None:
    for names in _SEPARATE:
        if all(isinstance(getattr(layer, name, None), nn.Linear) for name in names):
            query, key, value = (getattr(layer, name) for name in names)
            return query, key, value
    fused = [getattr(layer, name) for name in _FUSED if isinstance(getattr(layer, name, None), nn.Linear | Conv1D)]
    return None if len(fused) != 1 or hasattr(layer, "q_attn") else (fused[0], fused[0], fused[0])


def _output(model: nn.Module, path: str, layer: nn.Module) -> nn.Module | None:
    """Find the product that joins the heads: in the layer, or, as BERT has it, beside it."""
    parent = model.get_submodule(path.rpartition(".")[0])
    beside = getattr(getattr(parent, "output", None), "dense", None)
    places = (*(getattr(layer, name, None) for name in _OUTPUTS), beside)
    return next((each for each in places if isinstance(each, nn.Linear | Conv1D)), None)


def _rows(products: Sequence[nn.Module], width: int) -> tuple[Tensor, Tensor, Tensor] | None:
    counts = [_out(each) for each in products]
    if any(count % width for count in counts) or counts[1] != counts[2]:
        return None
    query, key, value = (torch.arange(count).unflatten(0, (-1, width)) for count in counts)
    return query, key, value


def _fused_rows(layer: nn.Module, product: nn.Module, heads: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Give the rows of queries, keys and values in one product: one after the other, or head by head (GPT-NeoX)."""
    if _out(product) % (3 * heads):
        return None
    by_head = product is getattr(layer, "query_key_value", None)
    rows = torch.arange(_out(product)).unflatten(0, (heads, 3, -1) if by_head else (3, heads, -1))
    query, key, value = rows.unbind(1 if by_head else 0)
    return query, key, value


def _matrix(product: nn.Module) -> Tensor:
    """Give the weights of a product as a view that has a row for each number that comes out."""
    weight = product.weight
    assert isinstance(weight, Tensor), "a product has weights"
    return weight.T if isinstance(product, Conv1D) else weight


def _row_tensors(product: nn.Module) -> list[Tensor]:
    bias = product.bias
    return [_matrix(product)] + ([bias] if isinstance(bias, Tensor) else [])


def _in(product: nn.Module) -> int:
    return _matrix(product).shape[1]


def _out(product: nn.Module) -> int:
    return _matrix(product).shape[0]


def _keep(product: nn.Module, index: Tensor, *, rows: bool) -> None:
    """Keep some rows of a product, with their bias, or some columns."""
    matrix = _matrix(product)[index] if rows else _matrix(product)[:, index]
    weight = (matrix.T if isinstance(product, Conv1D) else matrix).contiguous()
    trained = any(each.requires_grad for each in product.parameters())
    product.weight = nn.Parameter(weight, requires_grad=trained)
    if rows and isinstance(product.bias, Tensor):
        product.bias = nn.Parameter(product.bias[index], requires_grad=trained)
    for name, size in zip(("out_features", "in_features"), matrix.shape, strict=True):
        if hasattr(product, name):
            setattr(product, name, size)
    if isinstance(product, Conv1D):
        product.nf, product.nx = matrix.shape


def _tell(layer: nn.Module, heads: int, groups: int, width: int) -> None:
    """Set the numbers of heads that layers of Transformers remember, where they have them."""
    told = {
        "num_heads": heads,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "num_key_value_groups": heads // groups,
        "all_head_size": heads * width,
        "split_size": heads * width,
    }
    for name, number in told.items():
        if isinstance(getattr(layer, name, None), int):
            setattr(layer, name, number)
