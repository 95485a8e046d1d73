"""Look at heads: what each one does, as a table and as a page."""

from headwise.heads.observe import Observer, observe
from headwise.heads.report import write_page
from headwise.heads.table import HeadTable, Seam

__all__ = ["HeadTable", "Observer", "Seam", "observe", "write_page"]
