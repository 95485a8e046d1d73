"""Score heads: how much a model's loss depends on each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwise.contracts.files import read_format
from headwise.contracts.layout import HeadId
from headwise.errors import InputError
from headwise.heads.gates import gated, sample_gates, seams_of

__all__ = ["HeadScores", "ablate", "closed", "gradient_importance", "random_scores"]

_FORMAT = 1


@dataclass(frozen=True)
class HeadScores:
    """Hold one number a head: the larger, the more the model needs it."""

    by: str
    """How it was measured: gradient, ablation, gates or random."""
    scores: Mapping[HeadId, float]
    """The number of each head."""

    def ranked(self) -> list[HeadId]:
        """List the heads, the most needed first."""
        return sorted(self.scores, key=lambda head: (-self.scores[head], head))

    def to_json(self) -> str:
        """Write the scores, so that `from_json` gives them back."""
        rows = [{"place": head.place, "head": head.head, "score": score} for head, score in self.scores.items()]
        return json.dumps({"format": _FORMAT, "by": self.by, "scores": rows}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> HeadScores:
        """Read scores that `to_json` wrote.

        Raises:
            InputError: when the text holds none, or those of another version.
        """

        def read(held: Any) -> HeadScores:
            scores = {HeadId(row["place"], row["head"]): float(row["score"]) for row in held["scores"]}
            return cls(held["by"], scores)

        return read_format(text, _FORMAT, read, "scores", "Score again.")

    def __str__(self) -> str:
        return "\n".join(f"{self.scores[head]:12.6f}  {head.place} head {head.head}" for head in self.ranked())


def gradient_importance(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> HeadScores:
    """Score each head by how fast an example's loss changes with its gate, |dL/dg| (Michel et al. 2019, section 4.1).

    Exact for every example, from one backward pass a batch: gates have a row for each sample.

    Args:
        model: any model built on `headwise.Attend`; it is left as it was.
        batches: what `loss` takes beside the model.
        loss: gives the loss of each example, shape (B,), of samples that go through every layer in their order.

    Raises:
        InputError: when there is no batch, or a layer was not reached.
    """
    heads = {path: seam.heads for path, seam in seams_of(model).items()}
    total = {path: torch.zeros(len(names), dtype=torch.float64) for path, names in heads.items()}
    count = 0
    for batch in batches:
        with torch.enable_grad(), sample_gates(model) as gates:
            loss_B = loss(model, batch)
        if missed := [path for path, made in gates.items() if not made]:
            raise InputError(f"every attention layer must reach the loss; got no call of {missed}. Check the loss.")
        flat = [gate_BH for made in gates.values() for gate_BH in made]
        slopes = iter(torch.autograd.grad(loss_B.sum(), flat, allow_unused=True))
        for path, made in gates.items():
            found = [slope_BH for slope_BH in (next(slopes) for _ in made) if slope_BH is not None]
            if not found:
                raise InputError(f"every attention layer must reach the loss; got none through {path}. Check the loss.")
            total[path] += torch.stack(found).sum(0).double().abs().sum(0).cpu()
        count += len(loss_B)
    if not count:
        raise InputError("importance needs at least one example; got none. Check the data.")
    return _scores("gradient", heads, {path: (each / count).tolist() for path, each in total.items()})


@torch.no_grad()
def ablate(
    model: nn.Module, loss: Callable[[nn.Module], float], groups: Sequence[Sequence[HeadId]] | None = None
) -> HeadScores:
    """Score each head by how much the loss grows when it is switched off; a group's growth is told of all its heads.

    Args:
        model: any model built on `headwise.Attend`; it is left as it was.
        loss: gives the loss of the model on the texts that count.
        groups: heads to switch off together; each alone where left out.
    """
    heads = {path: seam.heads for path, seam in seams_of(model).items()}
    every = [HeadId(path, name) for path, names in heads.items() for name in names]
    whole, scores = loss(model), dict[HeadId, float]()
    for group in groups if groups is not None else [[head] for head in every]:
        with gated(model, closed(heads, group)):
            growth = loss(model) - whole
        scores |= dict.fromkeys(group, growth)
    return HeadScores("ablation", scores)


def closed(heads: Mapping[str, tuple[int, ...]], group: Sequence[HeadId]) -> dict[str, Tensor]:
    """Give the gates that switch a group of heads off.

    Raises:
        InputError: for a head that the model has not.
    """
    gates = {path: torch.ones(len(heads[path])) for path in {head.place for head in group} if path in heads}
    for head in group:
        if head.head not in heads.get(head.place, ()):
            raise InputError(f"heads must be the model's own; got {head.head} of {head.place}. It has {dict(heads)}.")
        gates[head.place][heads[head.place].index(head.head)] = 0
    return gates


def random_scores(model: nn.Module, seed: int = 0) -> HeadScores:
    """Score heads at random: what any other way of scoring has to beat."""
    heads = {path: seam.heads for path, seam in seams_of(model).items()}
    random = torch.Generator().manual_seed(seed)
    return _scores(
        "random", heads, {path: torch.rand(len(names), generator=random).tolist() for path, names in heads.items()}
    )


def _scores(by: str, heads: Mapping[str, tuple[int, ...]], values: Mapping[str, Sequence[float]]) -> HeadScores:
    scores = {
        HeadId(path, name): value
        for path, names in heads.items()
        for name, value in zip(names, values[path], strict=True)
    }
    return HeadScores(by, scores)
