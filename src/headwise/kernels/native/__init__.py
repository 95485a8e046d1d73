"""Compute attention on the CPU with a kernel of our own: one pass, no n x n memory, statistics on the way."""

from headwise.kernels.native.backend import LIBRARY, NAME, backward, describe, forward, refusal

__all__ = ["LIBRARY", "NAME", "backward", "describe", "forward", "refusal"]
