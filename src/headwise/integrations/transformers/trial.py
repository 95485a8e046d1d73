"""Run a Transformers model once on small random inputs that its config admits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headwise.errors import InputError

__all__ = ["run", "sample"]

_TOKENS, _TARGETS = 7, 5


def run(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run a model in evaluation, without gradients, random numbers or anything else that would stay.

    Returns:
        The first thing that it gives.
    """
    training = {module: module.training for module in model.modules()}
    devices = {each.device for each in model.parameters() if each.device.type == "cuda"}
    try:
        model.train(False)
        with torch.no_grad(), torch.random.fork_rng(devices):
            given = model(**inputs, **({"use_cache": False} if "use_cache" in _accepted(model) else {}))
            first: Tensor = given[0]
            return first
    finally:
        for module, was in training.items():
            module.training = was


def sample(model: PreTrainedModel) -> dict[str, Tensor]:
    """Make inputs of two lengths for two texts, so that cross attention shows, or an image, or a sound.

    Raises:
        InputError: when the model takes something else.
    """
    accepted, config = _accepted(model), model.config
    generator = torch.Generator().manual_seed(0)
    makers = {"pixel_values": _image, "input_values": _sound, "input_features": _features, "input_ids": _tokens}
    tried = {name: maker(config, generator) for name, maker in makers.items() if name in accepted}
    made = {name: x for name, x in tried.items() if x is not None}
    if not made or len(made) < len(tried):
        raise InputError(
            f"a model must take tokens, images or sounds to be tried; got {type(model).__name__}. "
            "Pass `inputs`, a small batch of what it takes."
        )
    if "decoder_input_ids" in accepted:
        made["decoder_input_ids"] = _tokens(config, generator)[:, :_TARGETS]
    dtype = model.dtype
    return {name: x.to(model.device, dtype if x.is_floating_point() else x.dtype) for name, x in made.items()}


def _accepted(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _tokens(config: Any, generator: torch.Generator) -> Tensor:
    words = config.get_text_config().vocab_size
    # Special tokens stand first in most vocabularies.
    tokens: Tensor = torch.randint(min(5, words - 1), words, (1, _TOKENS), generator=generator)
    return tokens


def _image(config: Any, generator: torch.Generator) -> Tensor | None:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None)
    if size is None:
        return None
    sides = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(1, getattr(config, "num_channels", 3), *sides, generator=generator)


def _sound(config: Any, generator: torch.Generator) -> Tensor | None:
    ratio = getattr(config, "inputs_to_logits_ratio", None)
    return None if ratio is None else torch.randn(1, (_TOKENS + 2) * ratio, generator=generator)


def _features(config: Any, generator: torch.Generator) -> Tensor | None:
    bins, frames = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    return None if bins is None or frames is None else torch.randn(1, bins, 2 * frames, generator=generator)
