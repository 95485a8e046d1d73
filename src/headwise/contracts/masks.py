"""Say which keys a query may look at, by structure where there is one.

Boolean, `True` = may look, everywhere. One rule places the queries among the keys for every part of a mask: query `i`
of a sample stands at position `i + offset` of its valid keys, with `offset = keys - queries` counted in that sample
(the tensors' sizes where no lengths are given). The last query sees the last key, which is what decoding needs.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from headwise.contracts.tree import plain
from headwise.errors import InputError

__all__ = ["Extent", "Mask"]

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


class Extent(NamedTuple):
    """Hold what places a sample's queries among its keys: numbers, or tensors that end in three axes of size 1."""

    start: Any
    """Index of the first valid key."""
    keys: Any
    """How many keys are valid."""
    queries: Any
    """How many queries are valid."""

    def relative(self, rows_Q: Tensor, keys_K: Tensor) -> Tensor:
        """Count how far each key lies after the query's own position: 0 on it, -1 on the key before."""
        own_Q1 = rows_Q[:, None] + (self.keys - self.queries)
        relative_QK: Tensor = (keys_K - self.start) - own_Q1
        return relative_QK


@plain
class Mask:
    """Say which keys each query may look at.

    Build one with the class methods and join them with `&`; `Mask()` hides nothing. Kernels read the structure and
    never compute what it hides.

    Example:
        >>> mask = Mask.causal() & Mask.lengths(torch.tensor([3, 2]))
        >>> mask.visible(queries=3, keys=3)[1, 0].int()
        tensor([[0, 0, 0],
                [1, 0, 0],
                [1, 1, 0]], dtype=torch.int32)
    """

    left: int | None = None
    """How many keys before its own position a query may look at; `None` for all."""
    right: int | None = None
    """How many keys after its own position a query may look at; `None` for all."""
    start_causal: bool = False
    """Whether query `i` may look at the first `i + 1` valid keys only, whatever the lengths."""
    key_length_B: Tensor | None = None
    """How many keys of each sample are valid."""
    query_length_B: Tensor | None = None
    """How many queries of each sample are valid; the others look at nothing."""
    key_start_B: Tensor | None = None
    """Index of each sample's first valid key (left padding)."""
    key_segment_BKN: Tensor | None = None
    """Segment ids of the keys; a query sees a key when all N ids agree."""
    query_segment_BQN: Tensor | None = None
    """Segment ids of the queries; `None` for the last ids of the keys."""
    dense_BHQK: Tensor | None = None
    """Anything else, as booleans; an axis of size 1 is shared."""
    counted: Mask | None = None
    """What statistics go by where it is not this mask: padding may look in models of others, and must not count."""

    @classmethod
    def causal(cls, align: Literal["end", "start"] = "end") -> Mask:
        """Hide the future.

        Args:
            align: `"end"` lets the last query see the last key. `"start"` lets query `i` see the first `i + 1` valid
                keys, as `F.scaled_dot_product_attention(is_causal=True)` does; the two differ where there are more
                keys than queries.
        """
        if align not in ("end", "start"):
            raise InputError(f'`align` must be "end" or "start"; got {align!r}. Decoding with a cache needs "end".')
        return cls(right=0) if align == "end" else cls(start_causal=True)

    @classmethod
    def window(cls, left: int | None = None, right: int | None = None) -> Mask:
        """Let query `i` see keys `i + offset - left` to `i + offset + right` only.

        Args:
            left: how far back, at least 0; `None` for no limit.
            right: how far ahead, at least 0; `None` for no limit.
        """
        for name, value in (("left", left), ("right", right)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise InputError(f"`{name}` must be a whole number, at least 0; got {value!r}. Use None for no limit.")
        return cls(left=left, right=right)

    @classmethod
    def lengths(cls, keys: Tensor, queries: Tensor | None = None, *, key_start: Tensor | None = None) -> Mask:
        """Hide the padding.

        With a band, mind the alignment: for self attention padded on the right pass the same lengths twice, so that
        the last valid query sees the last valid key; padded on the left, pass `keys` and `key_start`.

        Args:
            keys: valid keys of each sample, shape (B,), integers.
            queries: valid queries of each sample, shape (B,); the rest look at nothing. Left out, all are valid.
            key_start: index of each sample's first valid key, shape (B,), for padding on the left.
        """
        for name, value in (("keys", keys), ("queries", queries), ("key_start", key_start)):
            if value is not None and not (isinstance(value, Tensor) and value.dtype in _INTEGERS and value.dim() == 1):
                raise InputError(f"`{name}` must be an integer tensor of shape (B,); got {_told(value)}. {_COUNTED}")
        # Wide, so that sums of narrow numbers cannot wrap.
        key_B, query_B, start_B = (None if value is None else value.long() for value in (keys, queries, key_start))
        return cls(key_length_B=key_B, query_length_B=query_B, key_start_B=start_B)

    @classmethod
    def segments(cls, ids: Tensor, query_ids: Tensor | None = None) -> Mask:
        """Keep sequences that are packed into one row apart: a query sees the keys that carry its own id.

        Args:
            ids: segment of each key, shape (B, K), integers.
            query_ids: segment of each query, shape (B, Q); left out, the last Q of `ids`.
        """
        for name, value in (("ids", ids), ("query_ids", query_ids)):
            if value is not None and not (isinstance(value, Tensor) and value.dtype in _INTEGERS and value.dim() == 2):
                raise InputError(f"`{name}` must be an integer tensor of shape (B, T); got {_told(value)}. {_NUMBERED}")
        query_BQN = None if query_ids is None else query_ids[:, :, None]
        return cls(key_segment_BKN=ids[:, :, None], query_segment_BQN=query_BQN)

    @classmethod
    def dense(cls, allowed: Tensor) -> Mask:
        """Use any pattern, written out.

        Args:
            allowed: booleans, `True` = may look, shape (Q, K) or (B, H, Q, K); an axis of size 1 is shared.
        """
        if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool or allowed.dim() not in (2, 4):
            raise InputError(
                f"a dense mask must be a bool tensor of shape (Q, K) or (B, H, Q, K); got {_told(allowed)}. "
                "True = may look; pass numbers that are added to the scores as `bias`."
            )
        return cls(dense_BHQK=allowed if allowed.dim() == 4 else allowed[None, None])

    def __and__(self, other: Mask) -> Mask:
        """Let a query see what both masks let it see."""
        if not isinstance(other, Mask):
            return NotImplemented
        start_B = _joined(self.key_start_B, other.key_start_B, torch.maximum)
        key_BKN, query_BQN = _join_segments(self, other)
        return Mask(
            left=_joined(self.left, other.left, min),
            right=_joined(self.right, other.right, min),
            start_causal=self.start_causal or other.start_causal,
            key_length_B=_join_lengths(self, other, start_B),
            query_length_B=_joined(self.query_length_B, other.query_length_B, torch.minimum),
            key_start_B=start_B,
            key_segment_BKN=key_BKN,
            query_segment_BQN=query_BQN,
            dense_BHQK=_joined(self.dense_BHQK, other.dense_BHQK, torch.logical_and),
            counted=_join_counted(self, other),
        )

    @property
    def hides(self) -> bool:
        """Tell whether there is anything that this mask could hide."""
        band = self.left is not None or self.right is not None or self.start_causal
        held = (self.key_length_B, self.key_segment_BKN, self.dense_BHQK)
        return band or any(part is not None for part in held)

    def extent(self, queries: int, keys: int) -> Extent:
        """Place the queries among the keys: numbers where no lengths are given, else tensors of shape (B, 1, 1, 1)."""
        start, key_count, query_count = self.key_start_B, self.key_length_B, self.query_length_B
        return Extent(
            0 if start is None else start[:, None, None, None],
            keys if key_count is None else key_count[:, None, None, None],
            queries if query_count is None else query_count[:, None, None, None],
        )

    def visible(self, queries: int, keys: int, device: torch.device | str | None = None) -> Tensor:
        """Write the mask out as booleans of shape (B, H, Q, K), with size 1 where the mask does not vary.

        Args:
            queries: number of query positions.
            keys: number of key positions.
            device: where to put a mask that holds no tensor.
        """
        mask = self.resolved(queries)
        held = [part for part in vars(mask).values() if isinstance(part, Tensor)]
        device = held[0].device if held else device
        rows_Q, keys_K = torch.arange(queries, device=device), torch.arange(keys, device=device)
        allowed_BHQK = mask.visible_at(rows_Q, keys_K, mask.extent(queries, keys))
        if allowed_BHQK is None:
            return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        return allowed_BHQK.expand(*allowed_BHQK.shape[:2], queries, keys)

    def visible_at(self, rows_Q: Tensor, keys_K: Tensor, extent: Extent) -> Tensor | None:
        """Write out a part of the mask: these query rows, these key columns; `None` when nothing is hidden.

        The tensors that the mask holds must already be cut to those rows and columns; the indices place the band.
        """
        terms: list[Tensor] = []
        if self.key_length_B is not None:
            place_K = keys_K - extent.start
            terms += [place_K >= 0, place_K < extent.keys]
        if self.query_length_B is not None:
            terms.append(rows_Q[:, None] < extent.queries)
        if self.left is not None or self.right is not None:
            relative_QK = extent.relative(rows_Q, keys_K)
            terms += [] if self.left is None else [relative_QK >= -self.left]
            terms += [] if self.right is None else [relative_QK <= self.right]
        if self.start_causal:
            terms.append(keys_K - extent.start <= rows_Q[:, None])
        if self.key_segment_BKN is not None and self.query_segment_BQN is not None:
            terms.append((self.query_segment_BQN[:, None, :, None] == self.key_segment_BKN[:, None, None]).all(-1))
        if self.dense_BHQK is not None:
            terms.append(self.dense_BHQK)
        if not terms:
            return None
        allowed = terms[0]
        for term in terms[1:]:
            allowed = allowed & term
        return allowed[(None,) * (4 - allowed.dim())]

    def check_lengths(self, queries: int, keys: int) -> None:
        """Raise `InputError` for lengths that leave the tensors; on an accelerator, where looking waits, trust them."""
        start_B, length_B, count_B = self.key_start_B, self.key_length_B, self.query_length_B
        if start_B is None or length_B is None or length_B.device.type != "cpu":
            return
        outside_B = (length_B < 0) | (length_B > keys) | (start_B < 0) | (start_B > keys - length_B)  # no sum wraps
        if bool(outside_B.any()):
            told = f"starts {start_B.tolist()}, lengths {length_B.tolist()}"
            raise InputError(f"valid keys must lie in the {keys} keys given; got {told}. {_COUNTED}")
        if count_B is not None and bool(((count_B < 0) | (count_B > queries)).any()):
            told = f"lengths {count_B.tolist()}"
            raise InputError(f"valid queries must lie in the {queries} queries given; got {told}. {_COUNTED}")

    def resolved(self, queries: int) -> Mask:
        """Fill in what depends on the number of queries: the segments of the queries, and where valid keys start."""
        changes: dict[str, Any] = {} if self.counted is None else {"counted": None}
        if self.key_segment_BKN is not None and self.query_segment_BQN is None:
            first = self.key_segment_BKN.shape[1] - queries
            if not torch.compiler.is_compiling() and first < 0:
                told = f"{first + queries} keys and {queries} queries"
                raise InputError(f"segment ids of the keys must cover the queries; got {told}. Pass `query_ids`.")
            changes["query_segment_BQN"] = self.key_segment_BKN[:, first:]
        if self.key_length_B is not None and self.key_start_B is None:
            changes["key_start_B"] = torch.zeros_like(self.key_length_B)
        return Mask(**{**vars(self), **changes}) if changes else self


_COUNTED = "Count the valid positions of each sample."
_NUMBERED = "Number the packed sequences of each row."


def _told(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _joined(first: Any, second: Any, join: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    return join(first, second)


def _join_counted(first: Mask, second: Mask) -> Mask | None:
    """Join what counts, where it differs from what is seen."""
    if first.counted is None and second.counted is None:
        return None
    return (first.counted or first) & (second.counted or second)


def _join_lengths(first: Any, second: Any, start_B: Tensor | None) -> Tensor | None:
    """Intersect two ranges of valid keys."""
    if first.key_length_B is None or second.key_length_B is None or start_B is None:
        shorter_B: Tensor | None = _joined(first.key_length_B, second.key_length_B, torch.minimum)
        return shorter_B
    ends = [mask.key_length_B + (0 if mask.key_start_B is None else mask.key_start_B) for mask in (first, second)]
    return (torch.minimum(ends[0], ends[1]) - start_B).clamp(min=0)


def _join_segments(first: Mask, second: Mask) -> tuple[Tensor | None, Tensor | None]:
    key_BKN = _joined(first.key_segment_BKN, second.key_segment_BKN, lambda a, b: torch.cat([a, b], -1))
    given = [mask.query_segment_BQN for mask in (first, second) if mask.query_segment_BQN is not None]
    if not given:
        return key_BKN, None
    queries = given[0].shape[1]
    resolved = (first.resolved(queries).query_segment_BQN, second.resolved(queries).query_segment_BQN)
    return key_BKN, _joined(*resolved, lambda a, b: torch.cat([a, b], -1))
