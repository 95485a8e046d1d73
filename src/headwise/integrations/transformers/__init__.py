"""Make every attention layer of a Transformers model ours: observable, gateable, and fast on the CPU."""

from headwise.integrations.transformers.attaching import attach, detach

__all__ = ["attach", "detach"]
