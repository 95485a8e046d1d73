"""Run headwise from the shell."""

from headwise.cli.program import main

__all__ = ["main"]
