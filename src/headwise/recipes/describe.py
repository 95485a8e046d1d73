"""Say what a run would do, before it does it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from headwise.models import Seq2SeqConfig
from headwise.recipes.plans import Plan

__all__ = ["describe"]

_ADAM_BYTES = 16
"""Of a trained parameter: itself, its gradient, and AdamW's two averages, in float32."""


def describe(planned: Plan) -> Iterator[str]:
    """Yield the resolved settings as JSON, then the data, the size of the model and its memory."""
    yield json.dumps(asdict(planned.config), indent=2, ensure_ascii=False)
    for name, examples in planned.prepared.examples.items():
        yield f"{name}: {len(examples)} texts, {int(examples.length_N.sum())} tokens"
    sizes = [(each.numel(), each.requires_grad) for each in planned.model.parameters()]
    held = sum(count * (_ADAM_BYTES if trained else 4) for count, trained in sizes)
    yield f"parameters: {sum(count for count, _ in sizes):,}, of which {sum(c for c, t in sizes if t):,} are trained"
    yield f"memory of parameters, gradients and optimizer: {held / 2**20:,.0f} MiB"
    yield f"memory of a batch of {planned.config.training.batch_tokens} tokens, about: {_activations(planned):,.0f} MiB"


def _activations(planned: Plan) -> float:
    """Estimate what a step keeps for its backward pass, in float32: what each matrix product and norm reads.

    A layer of a decoder keeps more than half as much again as one of an encoder, for its second attention.
    """
    model = planned.config.model
    encoder, width = model.encoder, model.encoder.d_model * 8 + model.encoder.d_ff * 3
    kept = encoder.layers * width
    if isinstance(model, Seq2SeqConfig):
        kept += (model.decoder.layers or encoder.layers) * (width + encoder.d_model * 6)
    return planned.config.training.batch_tokens * kept * 4 / 2**20
