"""Pack numbers for a page: bytes with a stated scale, in one block that is deflated and written in base64."""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import torch
from torch import Tensor

from headwise.contracts.layout import HeadId
from headwise.errors import InputError
from headwise.heads.importance import HeadScores
from headwise.heads.maps import Drawing, Picture
from headwise.heads.table import HeadTable, Seam
from headwise.heads.zoom import Window, cells_of, pooled

__all__ = ["Packed", "packed_drawing", "packed_table"]

_COARSE = 64
"""Cells on a side of the map that every head has."""
_TOP = 255


class Packed:
    """Collect the numbers of a page; what it gives back says where they lie and how to read them."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def shares(self, values: Tensor) -> dict[str, Any]:
        """Pack numbers from 0 up as bytes: value = top (byte / 255)^2, so that small ones keep their digits.

        The error is at most top / 255.
        """
        top = float(values.max()) if values.numel() else 0.0
        root = (values.double() / top).clamp(min=0).sqrt() if top > 0 else torch.zeros_like(values)
        return self._add((root * _TOP).round().to(torch.uint8), values, {"top": top})

    def levels(self, values: Tensor) -> dict[str, Any]:
        """Pack any numbers as bytes: value = low + (high - low) byte / 255; the error is at most (high - low) / 510."""
        low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
        part = (values.double() - low) / (high - low) if high > low else torch.zeros_like(values)
        return self._add((part * _TOP).round().to(torch.uint8), values, {"low": low, "high": high})

    def indices(self, values: Tensor) -> dict[str, Any]:
        """Pack indices from -1 up in 2 bytes where they fit, else in 4."""
        kind = torch.int16 if not values.numel() or int(values.max()) < 1 << 15 else torch.int32
        return self._add(values.to(kind), values, {})

    def floats(self, values: Tensor) -> dict[str, Any]:
        """Pack numbers as they are, in float32."""
        return self._add(values.float(), values, {}) | {"float": True}

    def _add(self, coded: Tensor, values: Tensor, scale: dict[str, float]) -> dict[str, Any]:
        if not all(map(math.isfinite, scale.values())):
            raise InputError("what is shown must be finite; got NaN or infinity. The weights may have diverged.")
        array = coded.contiguous().numpy()
        self._bytes += bytes(-len(self._bytes) % array.itemsize)
        at = len(self._bytes)
        self._bytes += array.astype(array.dtype.newbyteorder("<")).tobytes()
        return {"at": at, "shape": list(values.shape), "bytes": array.itemsize, **scale}

    def to_json(self, data: Any, *, deflated: bool) -> str:
        """Write data as JSON that may stand in a script element, which only `<` could end."""
        told = {**data, "packing": "deflate" if deflated else "none"}
        return json.dumps(told, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")

    def to_base64(self, *, deflated: bool) -> str:
        """Write the numbers as text."""
        return base64.b64encode(zlib.compress(self._bytes, 9) if deflated else self._bytes).decode()


def packed_table(name: str, table: HeadTable, packed: Packed, scores: HeadScores | None = None) -> dict[str, Any]:
    """Pack a table: a row a head, with its score where there are some, and the map of each."""
    seams = [seam for seam in table.seams for _ in seam.heads]
    rows = [
        {"part": _part(seam), **{key: _plain(value) for key, value in row.items() if key not in _UNTOLD}}
        for seam, row in zip(seams, table.full_rows(), strict=True)
    ]
    if scores is not None:
        for row in rows:
            row[f"importance by {scores.by}"] = _plain(scores.scores.get(HeadId(row["place"], row["head"])))
    return {"name": name, "rows": rows, "maps": [packed.shares(torch.tensor(cells)) for cells in table.maps()]}


_UNTOLD = ("lse", "lse_spread")


def packed_drawing(drawing: Drawing, packed: Packed) -> dict[str, Any]:
    """Pack what the heads did on one text."""
    return {
        "title": drawing.title,
        "texts": {"source": list(drawing.source), "target": list(drawing.target)},
        "written": drawing.written,
        "pictures": [_packed_picture(picture, drawing, packed) for picture in drawing.pictures],
    }


def _packed_picture(picture: Picture, drawing: Drawing, packed: Packed) -> dict[str, Any]:
    rows, columns = picture.map_HPN.shape[1:]
    coarse_HPN = _coarser(picture, cells_of(rows, _COARSE), cells_of(columns, _COARSE))
    return {
        "place": picture.place,
        "heads": list(picture.heads),
        "queries": picture.queries,
        "keys": picture.keys,
        "rows": _text_of(drawing, picture.queries, decoder="decoder" in picture.place or picture.kind == "cross"),
        "columns": _text_of(drawing, picture.keys, decoder="decoder" in picture.place and picture.kind == "self"),
        "maps": [packed.shares(map_PN) for map_PN in coarse_HPN],
        "curves": {name: [packed.levels(line) for line in lines] for name, lines in picture.curves.items()},
        "links": {
            "query": packed.indices(picture.link_query_HP),
            "key": packed.indices(picture.link_key_HPL),
            "weight": packed.shares(picture.link_weight_HPL),
        },
        "closer": [
            _packed_closer(picture, head, packed)
            for place, head in drawing.closer
            if place == picture.place and (rows, columns) != coarse_HPN.shape[1:]
        ],
    }


def _coarser(picture: Picture, rows: int, columns: int) -> Tensor:
    """Join the cells of a map to larger ones; a row is the mean of those that it joins."""
    if picture.map_HPN.shape[1:] == (rows, columns):
        return picture.map_HPN
    joined_HNP = pooled(pooled(picture.map_HPN, columns).transpose(1, 2), rows)
    each_P = pooled(torch.ones(picture.map_HPN.shape[1]), rows)
    return joined_HNP.transpose(1, 2) / each_P[:, None]


def _packed_closer(picture: Picture, head: int, packed: Packed) -> dict[str, Any]:
    at = picture.heads.index(head)
    windows = [window for window in picture.windows if window.head == head]
    return {
        "head": head,
        "map": packed.shares(picture.map_HPN[at]),
        "windows": [_packed_window(window, packed) for window in windows],
        "key": packed.indices(picture.every_key_HQL[at, :, :2]),
        "weight": packed.shares(picture.every_weight_HQL[at, :, :2]),
    }


def _packed_window(window: Window, packed: Packed) -> dict[str, Any]:
    return {"query": window.query, "key": window.key, "cell": window.cell, "map": packed.shares(window.map_PN)}


def _text_of(drawing: Drawing, size: int, *, decoder: bool) -> str:
    """Name the text that has as many tokens; none where both differ, as where texts are made one vector."""
    texts = {"target": len(drawing.target), "source": len(drawing.source)}
    order = ("target", "source") if decoder else ("source", "target")
    return next((name for name in order if texts[name] == size), "")


def _part(seam: Seam) -> str:
    """Say in words which part of the model a seam belongs to."""
    if seam.kind == "cross":
        return "decoder, looking at the source" if "decoder" in seam.place else "looking at another text"
    return next((part for part in ("encoder", "decoder") if part in seam.place), "self attention")


def _plain(value: Any) -> Any:
    """Give what JSON can hold: numbers in six digits, anything else as text."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if isinstance(value, bool | int | None) else str(value)
