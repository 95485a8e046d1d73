"""Make plain frozen data that PyTorch's transforms can look into."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, dataclass_transform

from torch.utils import _pytree

__all__ = ["plain"]

_Data = TypeVar("_Data")


@dataclass_transform(frozen_default=True)
def plain(cls: type[_Data]) -> type[_Data]:
    """Turn a class into a frozen dataclass whose tensors are leaves of a pytree.

    Everything that is not a tensor, `None` included, is part of the tree's structure: `vmap`, `torch.compile` and
    `torch.export` see the tensors and treat the rest as fixed.
    """
    data = dataclass(frozen=True)(cls)
    names = [field.name for field in fields(data)]  # type: ignore[arg-type]
    # By annotation and not by value: PyTorch unflattens trees with placeholders in the place of tensors.
    branches = [field.name for field in fields(data) if "Tensor" in str(field.type) or "Mask" in str(field.type)]  # type: ignore[arg-type]

    def flatten(value: Any) -> tuple[list[Any], Any]:
        leaves = [name for name in branches if getattr(value, name) is not None]
        rest = [(name, getattr(value, name)) for name in names if name not in leaves]
        return [getattr(value, name) for name in leaves], (tuple(leaves), tuple(rest))

    def flatten_with_keys(value: Any) -> tuple[list[Any], Any]:
        leaves, context = flatten(value)
        return [(_pytree.GetAttrKey(name), leaf) for name, leaf in zip(context[0], leaves, strict=True)], context

    def unflatten(leaves: Iterable[Any], context: Any) -> _Data:
        return data(**dict(zip(context[0], leaves, strict=True)), **dict(context[1]))

    _pytree.register_pytree_node(
        data,
        flatten,
        unflatten,
        flatten_with_keys_fn=flatten_with_keys,
        serialized_type_name=f"headwise.{cls.__name__}",
        to_dumpable_context=_listed,
        from_dumpable_context=_tupled,
    )
    return data


def _listed(context: Any) -> Any:
    return [list(context[0]), [list(pair) for pair in context[1]]]


_tupled: Callable[[Any], Any] = lambda context: (tuple(context[0]), tuple(map(tuple, context[1])))  # noqa: E731
