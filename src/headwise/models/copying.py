"""Copy tokens from the source, by the weights of the heads that look at it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Copying"]


class Copying(nn.Module):
    """Mix what the vocabulary offers with what stands in the source (See et al. 2017, section 2.2).

    The source's tokens have the weights of the heads, themselves mixed by learned shares; a gate on the state tells how
    much is copied.

    Args:
        d_model: width of the states.
        heads: number of heads.
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, 1)
        self.share_H = nn.Parameter(torch.zeros(heads))
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.constant_(self.gate.bias, -2.0)  # at first little is copied, as the heads do not know where to look

    def of_target(
        self, hidden_BTM: Tensor, weights_BHTK: Tensor, source_BK: Tensor, target_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Give the logarithms of the vocabulary's share, and of what copying gives the target, each of shape (B, T)."""
        gate_BT = self.gate(hidden_BTM)[..., 0].to(weights_BHTK.dtype)
        same_BTK = source_BK[:, None] == target_BT[:, :, None]
        copied_BT = (self._mixed(weights_BHTK) * same_BTK).sum(-1)
        return F.logsigmoid(-gate_BT), F.logsigmoid(gate_BT) + _log(copied_BT)

    def of_all(self, hidden_BTM: Tensor, weights_BHTK: Tensor | None, source_BK: Tensor, logits_BTV: Tensor) -> Tensor:
        """Give the log-probabilities of the whole vocabulary in the mixture, shape (B, T, V)."""
        assert weights_BHTK is not None, "a model that copies has its heads' weights"
        gate_BT1 = torch.sigmoid(self.gate(hidden_BTM).to(weights_BHTK.dtype))
        p_BTV = torch.softmax(logits_BTV, -1, dtype=weights_BHTK.dtype) * (1 - gate_BT1)
        copied_BTK = gate_BT1 * self._mixed(weights_BHTK)
        return _log(p_BTV.scatter_add(2, source_BK[:, None].expand(copied_BTK.shape), copied_BTK))

    def _mixed(self, weights_BHTK: Tensor) -> Tensor:
        """Mix the heads: shape (B, T, K)."""
        share_H11 = torch.softmax(self.share_H, 0).to(weights_BHTK.dtype)[:, None, None]
        return (weights_BHTK * share_H11).sum(1)


def _log(p: Tensor) -> Tensor:
    """Take the logarithm, of 0 a finite one: a gradient of infinity times 0 would be no number."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()
