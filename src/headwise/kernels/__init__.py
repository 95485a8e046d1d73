"""Hold the kernels: one backend a file, all behind one narrow protocol."""

from headwise.kernels.choice import BACKENDS, choose, named, preferred
from headwise.kernels.operation import run
from headwise.kernels.rule import kind_of, machine, measured, rule_file, write_rule

__all__ = [
    "BACKENDS",
    "choose",
    "kind_of",
    "machine",
    "measured",
    "named",
    "preferred",
    "rule_file",
    "run",
    "write_rule",
]
