"""Compare one head with many, at equal parameters."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from headwise.contracts import Scored
from headwise.contracts.files import read_format, write_whole
from headwise.errors import ConfigError, InputError
from headwise.heads import observe
from headwise.recipes.batches import in_batches
from headwise.recipes.config import AnyConfig
from headwise.recipes.kinds import kind_of
from headwise.recipes.plans import Plan
from headwise.recipes.plot import lines_svg
from headwise.recipes.prune import parameters
from headwise.recipes.score import alone
from headwise.recipes.train import plan, train
from headwise.tasks.sources import Source
from headwise.training import Runtime

__all__ = ["Compared", "compare", "table_of", "write_comparison"]

_TOKENS, _FILE, _FORMAT = 2048, "compared.json", 1


@dataclass(frozen=True)
class Compared:
    """Say how one model with so many heads did."""

    heads: int
    """Heads of each layer."""
    seed: int
    """Seed of the run."""
    parameters: int
    """Parameters of the model."""
    figures: Mapping[str, float]
    """Figures of the best model on the dev texts."""
    gap: float
    """Loss on the dev texts less that on the training texts, both in evaluation."""
    seconds: float
    """Time of the training."""
    roles: Mapping[str, int]
    """How many heads have each role on the dev texts."""


def compare(
    source: Source,
    settings: Mapping[int, Sequence[AnyConfig]],
    out: Path,
    runtime: Runtime,
    *,
    quiet: bool = False,
) -> Iterator[Compared]:
    """Train a model for each number of heads and each seed, and yield how it did; those that are done are read.

    Args:
        source: the data, with a dev split.
        settings: for each number of heads the settings of its runs, one a seed.
        out: folder of the runs; what was found stands there as `compared.json`, run by run.
        runtime: on what.
        quiet: show no progress.

    Raises:
        ConfigError: when the models have not equally many parameters, before any is trained.
        InputError: when the folder holds runs of other data or settings, or there are several processes.
    """
    alone(runtime, "numbers of heads must be compared")
    first = {heads: plan(source, configs[0], quiet=True) for heads, configs in settings.items()}
    data = next(iter(first.values())).prepared.table.key
    sizes = {heads: parameters(planned.model) for heads, planned in first.items()}
    if len(set(sizes.values())) > 1:
        raise ConfigError(f"models to compare must have equally many parameters; got {sizes}. See `heads`.")
    for heads, configs in settings.items():
        for config in configs:
            folder = out / f"heads-{heads}-seed-{config.training.seed}"
            held = {"data": data, "settings": json.loads(json.dumps(asdict(config)))}
            found = _done(folder, held)
            if found is None:
                found = _one(plan(source, config, quiet=quiet), heads, folder, runtime, quiet=quiet)
                kept = {"format": _FORMAT, **held, "found": asdict(found)}
                write_whole(folder / _FILE, (json.dumps(kept) + "\n").encode())
            yield found


def _done(folder: Path, asked: Mapping[str, Any]) -> Compared | None:
    """Read how a model did that was trained before; none where there is none.

    Raises:
        InputError: when it was trained on other data or with other settings than is asked.
    """
    path = folder / _FILE
    if not path.is_file():
        return None

    def read(held: Any) -> tuple[Compared, list[str]]:
        return Compared(**held["found"]), [name for name, value in asked.items() if held[name] != value]

    found, other = read_format(path.read_bytes(), _FORMAT, read, f"`{path}`", "Delete it, or choose another folder.")
    if other:
        told = f"the same {other[0]}; got others in {folder}"
        raise InputError(f"`--out` must hold runs of {told}. Choose another folder.")
    return found


def _one(planned: Plan, heads: int, folder: Path, runtime: Runtime, *, quiet: bool) -> Compared:
    size, began = parameters(planned.model), time.monotonic()
    outcome = train(planned, folder, runtime, resume=(folder / "training").is_dir(), quiet=quiet)
    seconds, model = time.monotonic() - began, planned.model.eval()
    job = kind_of(planned.config).job(planned, runtime, lambda *_: None)
    losses, roles = {}, dict[str, int]()
    held: Mapping[str, Any] = planned.prepared.examples
    with torch.inference_mode(), runtime.autocast():
        for name in ("train", "dev"):
            nothing = Scored(torch.zeros((), device=runtime.device), torch.zeros((), device=runtime.device))
            batches = in_batches(held[name], runtime, tokens=_TOKENS)
            losses[name] = float(sum((job.loss(model, batch) for batch in batches), nothing).mean)
        with observe(model) as observer:
            for batch in in_batches(held["dev"], runtime, tokens=_TOKENS):
                kind_of(planned.config).forward(model, batch)
    for row in observer.table().full_rows():
        roles[row["role"]] = roles.get(row["role"], 0) + 1
    gap = losses["dev"] - losses["train"]
    return Compared(heads, planned.config.training.seed, size, outcome.best, gap, seconds, roles)


def table_of(found: Sequence[Compared], figure: str) -> list[dict[str, str]]:
    """Set out one row for each number of heads: mean and standard deviation over the seeds."""
    rows = []
    for heads in sorted({each.heads for each in found}):
        mine = [each for each in found if each.heads == heads]
        roles = {name: sum(each.roles.get(name, 0) for each in mine) for each in mine for name in each.roles}
        told = sorted(roles.items(), key=lambda item: -item[1])[:3]
        rows.append(
            {
                "heads": str(heads),
                "seeds": str(len(mine)),
                "parameters": f"{mine[0].parameters:,}",
                figure: _spread([each.figures[figure] for each in mine]),
                "dev loss - train loss": _spread([each.gap for each in mine]),
                "seconds": f"{mean(each.seconds for each in mine):.0f}",
                "roles": ", ".join(f"{count} {name}" for name, count in told),
            }
        )
    return rows


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f} ± {pstdev(values):.4f}"


def write_comparison(found: Sequence[Compared], figure: str, out: Path) -> list[Path]:
    """Write `comparison.md`, a table, and `comparison.svg`, a plot of the figure and of the gap."""
    rows = table_of(found, figure)
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0]), *(" | ".join(row.values()) for row in rows)]
    ordered = sorted(found, key=lambda each: each.heads)
    curves = {
        figure: [(float(each.heads), each.figures[figure]) for each in ordered],
        "dev loss - train loss": [(float(each.heads), each.gap) for each in ordered],
    }
    paths = [out / "comparison.md", out / "comparison.svg"]
    write_whole(paths[0], ("".join(f"| {line} |\n" for line in lines)).encode())
    write_whole(paths[1], lines_svg(curves, "heads of each layer").encode())
    return paths
