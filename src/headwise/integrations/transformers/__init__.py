"""Make every attention layer of a Transformers model ours: observable, gateable, prunable, and fast on the CPU."""

from headwise.integrations.transformers.attaching import attach, detach
from headwise.integrations.transformers.keeping import load, save
from headwise.integrations.transformers.layout import TransformersLayout

__all__ = ["TransformersLayout", "attach", "detach", "load", "save"]
