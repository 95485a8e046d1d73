"""Attach headwise to a Transformers model, and take it off again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from headwise.errors import BackendError, InputError
from headwise.integrations.transformers.bridge import NAME, Bridge, attention, bridging
from headwise.integrations.transformers.masks import compact_mask
from headwise.integrations.transformers.trial import run, sample

__all__ = ["attach", "detach"]

_Model = TypeVar("_Model", bound=PreTrainedModel)
_BEFORE = "_headwise_before"
_LEAST = (5, 15)


def attach(model: _Model, inputs: Mapping[str, Tensor] | None = None) -> _Model:
    """Make every attention layer of a Transformers model ours, in place.

    Outputs and gradients are those of its own attention; `headwise.heads.observe(model)` then sees every head. The
    model is run once on small random inputs, without gradients and without a trace, to see that every attention layer
    calls us. Positions that are padding look as they do in Transformers, but no statistic counts them; the rows of a
    `map` begin with the first position all the same, so pad texts on the right where maps are wanted.

    Args:
        model: a Transformers model, before it is compiled or wrapped.
        inputs: what to run it on, by the names of its `forward`; made from its config where left out.

    Returns:
        The same model.

    Raises:
        InputError: when it is no Transformers model, or `inputs` do not reach every attention layer.
        BackendError: when the architecture computes attention by itself, or in a way that is not honoured here.

    Example:
        >>> from headwise.heads import observe
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> model = attach(BertModel(BertConfig(**sizes, vocab_size=50)).eval())
        >>> with observe(model) as observer:
        ...     _ = model(torch.tensor([[4, 2, 3]]))
        >>> [(row["layer"], row["kind"], row["head"]) for row in observer.table().rows()]
        [(0, 'self', 0), (0, 'self', 1)]
    """
    _check(model)
    detach(model)
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, compact_mask)
    with ExitStack() as undo:
        undo.callback(detach, model)
        vars(model)[_BEFORE] = _implementations(model.config)
        model.set_attn_implementation(NAME)
        _check_accepted(model)
        with bridging() as reached:
            run(model, sample(model) if inputs is None else inputs)
        _check_reached(model, reached)
        undo.pop_all()
    return model


def detach(model: PreTrainedModel) -> None:
    """Give a model its own attention back; one that was not attached stays as it is."""
    _check(model)
    for module in [each for each in model.modules() if isinstance(getattr(each, NAME, None), Bridge)]:
        delattr(module, NAME)
    before = vars(model).pop(_BEFORE, None)
    if before is not None:
        model.set_attn_implementation(before)


def _check(model: Any) -> None:
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version < _LEAST:
        raise InputError(
            f"transformers must be at least {'.'.join(map(str, _LEAST))}; got {transformers.__version__}. Upgrade it."
        )
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"`model` must be a transformers.PreTrainedModel; got {type(model).__name__}. "
            "Attach it before it is compiled or wrapped."
        )


def _implementations(config: Any) -> dict[str, Any]:
    """Note which attention a config and those inside it ask for."""
    inner = {name: getattr(config, name, None) for name in config.sub_configs}
    noted = {name: _implementations(sub) for name, sub in inner.items() if sub is not None}
    return {"": config._attn_implementation, **noted}


def _check_accepted(model: PreTrainedModel) -> None:
    """Raise for a part whose code does not ask Transformers' interface for its attention."""
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    own = sorted({type(part).__name__ for part in parts if part.config._attn_implementation != NAME})
    if own:
        raise BackendError(
            f"a model must call attention through transformers' AttentionInterface; got {', '.join(own)} "
            f"({model.config.model_type}) with attention of its own. {_OTHERS}"
        )


_OTHERS = "Take an architecture that docs/architectures.md lists as equal."


def _check_reached(model: PreTrainedModel, reached: list[nn.Module]) -> None:
    """Raise unless the trial has come to us in every attention layer."""
    missed = [place for place, layer in _layers(model).items() if not any(each in reached for each in layer.modules())]
    if missed:
        raise BackendError(
            f"a run of the model must reach every attention layer; got no call from {', '.join(missed)}. Pass `inputs` "
            f"that use them all; if you did, they compute attention by themselves. {_OTHERS}"
        )
    if not reached:
        raise BackendError(f"a model must have attention; got {type(model).__name__} without any. {_OTHERS}")


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find attention layers by the names of their classes: the innermost ones."""
    named = {place: each for place, each in model.named_modules() if "attention" in type(each).__name__.lower()}
    return {
        place: each
        for place, each in named.items()
        if not any(other.startswith(f"{place}.") for other in named) and not _is_part(each)
    }


def _is_part(module: nn.Module) -> bool:
    """Tell a helper, such as a normalisation or a dropout, from a layer: it projects nothing."""
    return not any(True for _ in module.parameters())
