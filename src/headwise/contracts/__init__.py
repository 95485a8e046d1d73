"""Hold the plain data that the parts of headwise hand to each other."""

from headwise.contracts.biases import Alibi, Dropout, RelativeBias
from headwise.contracts.examples import Batch, Examples, PairBatch, twice
from headwise.contracts.layout import HeadId, Layout, Place
from headwise.contracts.masks import Mask
from headwise.contracts.problem import Problem
from headwise.contracts.statistics import Scored, Seen, Statistics

__all__ = [
    "Alibi",
    "Batch",
    "Dropout",
    "Examples",
    "HeadId",
    "Layout",
    "Mask",
    "PairBatch",
    "Place",
    "Problem",
    "RelativeBias",
    "Scored",
    "Seen",
    "Statistics",
    "twice",
]
