"""Hold the GPU kernel: Triton programs that compute attention and its statistics in one pass."""

from headwise.kernels.tritonic.backend import NAME, PASSES, backward, describe, forward, refusal

__all__ = ["NAME", "PASSES", "backward", "describe", "forward", "refusal"]
