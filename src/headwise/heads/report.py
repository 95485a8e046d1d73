"""Show heads as one page that opens from disk, without a network, and as the same page in a notebook."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from headwise.contracts.files import write_whole
from headwise.errors import InputError
from headwise.heads.importance import HeadScores
from headwise.heads.maps import Drawing
from headwise.heads.report_data import Packed, packed_drawing, packed_table
from headwise.heads.table import HeadTable

__all__ = ["Report", "page_of"]

_SCRIPTS = ("page_data.js", "page_overview.js", "page_map.js", "page_text.js", "page_head.js", "page.js")


@dataclass(frozen=True)
class Report:
    """Hold what there is to show of a model's heads; displayed in a notebook, it is the page itself.

    Example:
        >>> from headwise import MultiHeadAttention
        >>> from headwise.heads import draw, observe
        >>> layer, x_BTM = MultiHeadAttention(16, 2).eval(), torch.randn(1, 3, 16)
        >>> with observe(layer) as observer:
        ...     _ = layer(x_BTM)
        >>> drawing = draw(layer, lambda: layer(x_BTM), ["a", "b", "c"])
        >>> Report(observer.table(), (drawing,)).to_html()[:15]
        '<!doctype html>'
    """

    table: HeadTable
    """What every head does on average, over as many texts as were looked at."""
    drawings: Sequence[Drawing] = ()
    """What it does on single texts."""
    about: str = ""
    """Which model and texts it is about; shown as text, whatever it holds."""
    before: HeadTable | None = None
    """The table of the model before it was changed, say before heads were cut; it stands beside the other."""
    scores: HeadScores | None = None
    """How much the model needs each head of `table`, as one more column."""

    def to_html(self, *, deflated: bool = True) -> str:
        """Write the page: one document with all it needs, that loads nothing.

        Args:
            deflated: pack the numbers, which browsers have unpacked since 2023; the page says so in one that cannot.
        """
        packed = Packed()
        tables = [("now", self.table)] if self.before is None else [("before", self.before), ("now", self.table)]
        data = {
            "about": self.about,
            "tables": [
                packed_table(name, table, packed, self.scores if table is self.table else None)
                for name, table in tables
            ],
            "drawings": [packed_drawing(each, packed) for each in self.drawings],
        }
        return page_of("Heads", _SCRIPTS, data, packed, deflated=deflated)

    def write(self, path: Path | str, *, deflated: bool = True) -> None:
        """Write the page to a file, whole or not at all.

        Raises:
            InputError: when it cannot be written there.
        """
        try:
            write_whole(Path(path), self.to_html(deflated=deflated).encode())
        except OSError as error:
            raise InputError(f"a report must go to a file that can be written; got {error}. Choose another.") from error

    def _repr_html_(self) -> str:
        """Show the page in a notebook, in a frame that can reach nothing outside it."""
        page = html.escape(self.to_html(), quote=True)
        style = "width: 100%; height: 44rem; border: 0"
        return f'<iframe title="Heads" sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'


def page_of(title: str, scripts: Sequence[str], data: Any, packed: Packed, *, deflated: bool = True) -> str:
    """Join style, scripts and numbers to one document, which may run its own scripts and nothing else.

    Args:
        title: what the browser's tab says.
        scripts: files of this package, in order.
        data: what the page shows, apart from the numbers that are packed.
        packed: the numbers.
        deflated: as for `Report.to_html`.
    """
    style, script = _joined(["page.css"]), _joined(scripts)
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src '{_hashed(style)}'; "
        f"script-src '{_hashed(script)}'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "script": script,
        "data": packed.to_json(data, deflated=deflated),
        "numbers": packed.to_base64(deflated=deflated),
    }
    # One pass, so that no part is looked through for the marks of another.
    pieces = _joined(["page.html"]).split("@@")
    return "".join(parts[piece] if at % 2 else piece for at, piece in enumerate(pieces))


def _joined(names: Sequence[str]) -> str:
    folder = files("headwise.heads").joinpath("page")
    return "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def _hashed(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
