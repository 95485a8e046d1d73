"""Hold the kernels: one backend a file, all behind one narrow protocol."""

from headwise.kernels.choice import BACKENDS, choose, named
from headwise.kernels.operation import run

__all__ = ["BACKENDS", "choose", "named", "run"]
