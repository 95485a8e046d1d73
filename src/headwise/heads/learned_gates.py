"""Learn in training which heads a model can do without."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headwise.contracts.layout import HeadId
from headwise.errors import ConfigError, InputError
from headwise.heads.gates import seams_of, turned
from headwise.heads.importance import HeadScores
from headwise.modules import Attend, MultiHeadAttention

__all__ = ["LearnedGates"]

_LOW, _HIGH, _HEAT = -0.1, 1.1, 2 / 3
_OPEN = 2.0


class LearnedGates(nn.Module):
    """Hold a model whose heads each have a gate that is learned with it (Louizos et al. 2018; Voita et al. 2019).

    In training a gate is drawn anew for each call from a hard concrete distribution: exactly 0, exactly 1, or between.
    In evaluation it is what the distribution centres on. `penalty` is small when few gates are open; added to the loss,
    it closes those that the model needs least. Gates begin open, at 0.97. The head of a layer of one has no gate.

    Args:
        model: any model built on `headwise.Attend`; its seams keep their gates until `remove`.
        rate: how many times faster than the model's other numbers the gates learn.

    Raises:
        InputError: when the model has no attention layer of ours.

    Example:
        >>> gates = LearnedGates(MultiHeadAttention(16, 4))
        >>> output = gates(torch.randn(1, 5, 16))
        >>> round(float(gates.penalty().detach()), 2)
        0.97
    """

    def __init__(self, model: nn.Module, *, rate: float = 1.0) -> None:
        super().__init__()
        if not rate > 0:
            raise ConfigError(f"`rate` must be above 0; got {rate}. 1 learns as fast as the model.")
        self.model, self.rate = model, rate
        seams = {path: seam for path, seam in seams_of(model).items() if len(seam.heads) > 1}
        if not seams:
            raise InputError("gates need a layer of several heads; got one head in each. Build more heads.")
        self.paths = tuple(seams)
        device = next(model.parameters()).device
        self.opened = nn.ParameterList(
            torch.full((len(seam.heads),), _OPEN / rate, device=device) for seam in seams.values()
        )
        self._hooks = []
        for opened_H, seam in zip(self.opened, seams.values(), strict=True):
            # Faster by the step and not by the gradient, so that the norm to clip by is the model's.
            opened_H.register_hook(partial(torch.mul, other=1 / rate))
            self._hooks.append(seam.register_forward_hook(partial(self._turn, opened_H)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.model(*args, **kwargs)

    def penalty(self) -> Tensor:
        """Give the mean probability that a gate is not closed, 0 to 1."""
        return torch.cat([self._chance(opened_H) for opened_H in self.opened]).mean()

    def scores(self) -> HeadScores:
        """Score each head by the probability that its gate is not closed."""
        seams = seams_of(self.model)
        values = {path: self._chance(opened_H).tolist() for path, opened_H in zip(self.paths, self.opened, strict=True)}
        pairs = [
            (HeadId(path, name), value)
            for path, seam in seams.items()
            for name, value in zip(seam.heads, values.get(path, [1.0]), strict=True)
        ]
        return HeadScores("gates", dict(pairs))

    def values(self) -> dict[str, Tensor]:
        """Give the gates of evaluation by the path of the seam, each of shape (H,), 0 to 1."""
        return {path: self._centre(held_H).detach() for path, held_H in zip(self.paths, self.opened, strict=True)}

    def remove(self) -> nn.Module:
        """Take the gates off, and give the model without them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        return self.model

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """Copy the model with the gates of evaluation multiplied into the outputs of its heads.

        Raises:
            InputError: when a layer is not a `headwise.MultiHeadAttention`, as those of attached models are.
        """
        bare, gates = copy.deepcopy(self.model), self.values()
        for path in self.paths:
            layer = bare.get_submodule(path.rpartition(".")[0])
            if not isinstance(layer, MultiHeadAttention):
                raise InputError(
                    f"gates must fold into a MultiHeadAttention; got {type(layer).__name__} at {path}. "
                    "Plan by `scores` and prune instead."
                )
            gate_H = gates[path].to(layer.output.weight.dtype)
            layer.output.weight *= gate_H.repeat_interleave(layer.d_head)
            layer.attend._forward_hooks.clear()
        return bare

    def _turn(self, opened_H: Tensor, seam: Attend, args: tuple[Any, ...], result: Any) -> Any:
        gate_H = self._drawn(opened_H) if seam.training else self._centre(opened_H)
        return turned(gate_H, result)

    def _drawn(self, opened_H: Tensor) -> Tensor:
        """Draw gates (Louizos et al. 2018, equations 10 and 11)."""
        chance_H = torch.rand_like(opened_H).clamp(1e-6, 1 - 1e-6)
        return self._stretched(torch.sigmoid((torch.logit(chance_H) + opened_H * self.rate) / _HEAT))

    def _centre(self, opened_H: Tensor) -> Tensor:
        """Give the gates of evaluation (equation 13)."""
        return self._stretched(torch.sigmoid(opened_H * self.rate))

    def _stretched(self, share_H: Tensor) -> Tensor:
        return (share_H * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def _chance(self, opened_H: Tensor) -> Tensor:
        """Give the probability that a gate is not 0 (equation 12)."""
        edge = torch.tensor(-_LOW / _HIGH).log() * _HEAT
        return torch.sigmoid(opened_H * self.rate - edge.to(opened_H.device))
