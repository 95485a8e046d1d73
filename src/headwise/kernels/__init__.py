"""Hold the kernels: one backend a file, all behind one narrow protocol."""

from headwise.kernels.choice import BACKENDS, choose, kind_of, measured, named, preferred, rule_file
from headwise.kernels.operation import run

__all__ = ["BACKENDS", "choose", "kind_of", "measured", "named", "preferred", "rule_file", "run"]
