"""Turn users' files into batches, and results into figures."""

from headwise.contracts.files import cache_folder
from headwise.tasks.columns import Wanted
from headwise.tasks.data import Table, open_table, split
from headwise.tasks.labels import Labels, Prediction
from headwise.tasks.metrics import Confusion, Matches, score
from headwise.tasks.pieces import TokenizerSettings
from headwise.tasks.tokenizer import Tokenizer
from headwise.tasks.vectors import Vectors, read_vectors

__all__ = [
    "Confusion",
    "Labels",
    "Matches",
    "Prediction",
    "Table",
    "Tokenizer",
    "TokenizerSettings",
    "Vectors",
    "Wanted",
    "cache_folder",
    "open_table",
    "read_vectors",
    "score",
    "split",
]
