"""Turn the mask functions of Transformers into compact masks, without writing queries x keys out.

Transformers describes a mask by a function of sample, head, query and key. Its own functions are recognised by their
code and checked on a few rows; any other one is written out in full, and said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers import masking_utils as theirs

from headwise.contracts import Mask

__all__ = ["CompactMask", "compact_mask"]

_LOG = logging.getLogger(__name__)
_Rule = Callable[..., Any]

_AND = theirs.and_masks(theirs.causal_mask_function).__code__
_WINDOW = theirs.sliding_window_overlay(1).__code__
_WINDOW_BOTH_WAYS = theirs.sliding_window_bidirectional_overlay(1).__code__
_PACKED = theirs.packed_sequence_mask_function(torch.zeros(1, 1)).__code__
_RENUMBERED = theirs.remap_positions_for_packed_sequence(theirs.causal_mask_function, torch.zeros(1, 1)).__code__


class CompactMask(Tensor):
    """Pass a `Mask` through a model as the boolean tensor that it stands for; an operation on it writes it out.

    Attributes:
        mask: what each query may look at.
        write: gives the same as booleans of shape (B, 1, Q, K).
    """

    mask: Mask
    write: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, shape: Sequence[int], device: torch.device, mask: Mask, write: Callable[[], Tensor]) -> Any:
        """Make a tensor without memory of its own."""
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        made.mask, made.write = mask, write
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Write the mask out for whatever reads it as a tensor."""
        args, kwargs = tree_map(lambda x: x.write() if isinstance(x, cls) else x, (args, kwargs or {}))
        return func(*args, **kwargs)


class _Place(NamedTuple):
    """Say where the queries stand among the keys."""

    batch: int
    queries: int
    keys: int
    first_query: int
    """Position of query 0 in the text."""
    first_key: int
    """Position of key 0 in the text."""
    device: torch.device

    @property
    def offset(self) -> int:
        """Index of the key at which query 0 stands."""
        return self.first_query - self.first_key


def compact_mask(*, mask_function: _Rule, **given: Any) -> Tensor | None:
    """Build the mask of a call as Transformers' `AttentionMaskInterface` asks for it.

    Args:
        mask_function: whether a query may look at a key, by their indices.
        given: the rest of that interface; a program that is being compiled gets the tensor of `sdpa_mask`.
    """
    if torch.compiler.is_compiling():
        return theirs.sdpa_mask(mask_function=mask_function, **given)
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    write: Callable[[], Tensor] = partial(theirs.sdpa_mask, mask_function=mask_function, **(given | skips))  # type: ignore[assignment]
    place, valid_BK, pattern = _place(given), _valid(given), _recognised(mask_function)
    mask = None if pattern is None else _exact(pattern, valid_BK, place)
    if pattern is None or mask is None or not _agrees(mask, mask_function, valid_BK, place):
        _say_written(_named(mask_function))
        return write()
    mask = replace(mask, counted=_counted(mask, pattern, valid_BK, place))
    made: Tensor = CompactMask((place.batch, 1, place.queries, place.keys), place.device, mask, write)
    return made


@cache
def _say_written(name: str) -> None:
    _LOG.warning("headwise knows no short form of the mask %s; it is written out, queries x keys.", name)


def _named(rule: _Rule) -> str:
    parts = _held(rule)["mask_functions"] if getattr(rule, "__code__", None) is _AND else (rule,)
    return " & ".join(getattr(part, "__qualname__", repr(part)) for part in parts)


def _place(given: dict[str, Any]) -> _Place:
    batch, queries, keys, first_query, first_key = (int(given.get(name, 0)) for name in _SIZES)
    return _Place(batch, queries, keys, first_query, first_key, torch.device(given.get("device", "cpu")))


_SIZES = ("batch_size", "q_length", "kv_length", "q_offset", "kv_offset")


def _valid(given: dict[str, Any]) -> Tensor | None:
    """Tell which keys of the call are not padding."""
    keys, first = int(given["kv_length"]), int(given.get("kv_offset", 0))
    valid_BT = theirs.prepare_padding_mask(given.get("attention_mask"), keys, first)
    return None if valid_BT is None else valid_BT[:, first : first + keys].bool()


def _recognised(rule: _Rule) -> Mask | None:
    """Find the mask that a function of Transformers stands for; `None` for a function of somebody else."""
    if rule is theirs.causal_mask_function:
        return Mask.causal()
    if rule is theirs.bidirectional_mask_function:
        return Mask()
    code = getattr(rule, "__code__", None)
    if code not in (_AND, _WINDOW, _WINDOW_BOTH_WAYS, _PACKED, _RENUMBERED):
        return None
    held = _held(rule)
    if code is _AND:
        return _all_recognised(held["mask_functions"])
    if code is _PACKED:
        return Mask.segments(held["packed_sequence_mask"])
    if code is _RENUMBERED:  # positions within a packed text differ as the indices do
        return _recognised(held["mask_function"])
    width = held["sliding_window"]
    return Mask.window(width - 1) if code is _WINDOW else Mask.window(width, width)


def _held(rule: Any) -> dict[str, Any]:
    """Give what a function holds of the function that made it."""
    cells = [cell.cell_contents for cell in rule.__closure__ or ()]
    return dict(zip(rule.__code__.co_freevars, cells, strict=True))


def _all_recognised(rules: Sequence[_Rule]) -> Mask | None:
    joined = Mask()
    for rule in rules:
        found = _recognised(rule)
        if found is None:
            return None
        joined = joined & found
    return joined


def _exact(pattern: Mask, valid_BK: Tensor | None, place: _Place) -> Mask | None:
    """Join a pattern with the padding, so that every query sees what Transformers lets it see, padding included.

    A band is placed by counting valid keys from the end, so lengths go with it only where they end with the queries.
    """
    banded = pattern.left is not None or pattern.right is not None
    end = place.queries + place.offset if banded else place.keys
    if end > place.keys or (end < place.keys and pattern.right != 0):
        return None
    base = pattern if end == place.keys else pattern & Mask.lengths(_full(place, end))
    if valid_BK is None or bool(valid_BK[:, :end].all()):
        return base
    seen_BK = valid_BK & (torch.arange(place.keys, device=valid_BK.device) < end)
    start_B, count_B, last_B = _runs(seen_BK)
    if bool((count_B == last_B - start_B).all()):
        lengths = Mask.lengths(count_B, key_start=start_B)
        if not banded or bool(((last_B == end) | (count_B == 0)).all()):
            return pattern & lengths
        if pattern.left is None and pattern.right == 0 and place.offset == 0 and not bool(start_B.any()):
            return replace(pattern, right=None, start_causal=True) & lengths
    return base & Mask.dense(seen_BK[:, None, None, :])


def _full(place: _Place, count: int) -> Tensor:
    return torch.full((place.batch,), count, device=place.device)


def _runs(valid_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find each sample's first valid key, their number, and one past the last; zeros where there is none."""
    count_B, index_K = valid_BK.sum(1), torch.arange(valid_BK.shape[1], device=valid_BK.device)
    start_B = torch.where(count_B > 0, valid_BK.int().argmax(1), 0)
    last_B = torch.where(valid_BK, index_K + 1, 0).amax(1)
    return start_B, count_B, last_B


def _counted(mask: Mask, pattern: Mask, valid_BK: Tensor | None, place: _Place) -> Mask | None:
    """Leave the queries that are padding out, should these be queries of the same text; `None` where there are none."""
    if valid_BK is None or place.offset < 0 or place.offset + place.queries > place.keys:
        return None
    own_BQ = valid_BK[:, place.offset : place.offset + place.queries]
    if bool(own_BQ.all()):
        return None
    start_B, count_B, last_B = _runs(own_BQ)
    if place.offset == 0 and bool(((start_B == 0) & (last_B == count_B)).all()):
        return pattern & Mask.lengths(count_B, count_B)
    return mask & Mask.dense(own_BQ[:, None, :, None])


def _agrees(mask: Mask, rule: _Rule, valid_BK: Tensor | None, place: _Place) -> bool:
    """Compare three rows of a compact mask with the function that it stands for."""
    rows_Q = torch.tensor(sorted({0, place.queries // 2, place.queries - 1}), device=place.device)
    keys_K = torch.arange(place.keys, device=place.device)
    sample_B = torch.arange(place.batch, device=place.device)[:, None, None, None]
    query, key = rows_Q[:, None] + place.first_query, keys_K + place.first_key
    wanted_BHQK = rule(sample_B, torch.zeros_like(sample_B), query[None, None], key[None, None, None])
    if valid_BK is not None:
        wanted_BHQK = wanted_BHQK & valid_BK[:, None, None, :]
    mask = mask.resolved(place.queries)
    if mask.query_segment_BQN is not None:
        mask = replace(mask, query_segment_BQN=mask.query_segment_BQN[:, rows_Q])
    ours_BHQK = mask.visible_at(rows_Q, keys_K, mask.extent(place.queries, place.keys))
    if ours_BHQK is None:
        return bool(wanted_BHQK.all())
    return bool((ours_BHQK == wanted_BHQK).all())
