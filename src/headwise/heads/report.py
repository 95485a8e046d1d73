"""Show a table of heads as one page that opens from disk, without a network."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from headwise.heads.table import HeadTable

__all__ = ["write_page"]


def write_page(table: HeadTable, path: Path, *, about: str = "") -> None:
    """Write the table, sortable, and one map per head as a single HTML file.

    Args:
        table: what to show; a table without `map` gives a page without pictures.
        path: the file to write.
        about: a line that says which model and texts it is about; shown as text, whatever it holds.
    """
    rows = [{name: value for name, value in row.items() if name != "lse"} for row in table.rows()]
    maps = [[[round(mass, 4) for mass in line] for line in cells] for cells in table.maps()]
    data = json.dumps({"about": about, "rows": rows, "maps": maps}, allow_nan=False)
    template = files("headwise.heads").joinpath("page.html").read_text(encoding="utf-8")
    # Inside a script element only `<` could end it.
    path.write_text(template.replace("/*data*/", data.replace("<", "\\u003c")), encoding="utf-8")
