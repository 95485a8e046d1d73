"""Hold two writers of texts against each other: how far apart they are, and whether chance alone explains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headwise.errors import InputError
from headwise.models import Seq2Seq
from headwise.recipes.rewrite import rewritten, scores
from headwise.recipes.run import Run, with_data
from headwise.tasks.sources import Source
from headwise.training import Runtime

__all__ = ["significance"]


def significance(
    run: Run, against: Run | Path, source: Source, runtime: Runtime, *, split: str | None = None
) -> dict[str, Any]:
    """Score a run and another on the same pairs, and tell by paired bootstrap whether they differ.

    For each score it gives the run's own under its name, the other's as `_of_other`, the difference in points with the
    ends of its 95 % interval, and `_p`: how often so large a difference arises where both are equally good, 0 to 1.

    Args:
        run: the run, whose settings say how texts are scored.
        against: another run of the task, or a file with a line for each pair that is scored.
        source: a table of pairs, or two files of lines.
        runtime: on what.
        split: rows of which split; left out, `test` where there is one, else all.

    Raises:
        InputError: for a classifier, a run of another task, other pairs, or a file of another number of lines.
    """
    for each in (run, against):
        if isinstance(each, Run) and (not isinstance(each.model, Seq2Seq) or each.config.task != run.config.task):
            told = f"{run.config.task} and {each.config.task}" if each is not run else each.config.task
            raise InputError(f"both runs must translate, or both summarize; got {told}. Name another run.")
    ours = rewritten(run, source, runtime, split=split)
    if isinstance(against, Run):
        # Both are given the same data.
        read = {name: getattr(run.config.data, name) for name in ("source_column", "target_column", "on_error")}
        against = with_data(against, read)
        theirs = rewritten(against, source, runtime, split=split)
        if theirs.references != ours.references:
            raise InputError("both runs must be scored on the same pairs; got other texts. Name the columns.")
        others = theirs.texts
    else:
        others = _lines(against, len(ours.texts))
    figures: dict[str, Any] = {}
    pairs = zip(
        scores(run, ours.texts, ours.references).items(), scores(run, others, ours.references).values(), strict=True
    )
    for (name, mine), other in pairs:
        found = mine.compare(other)
        figures |= {
            name: mine.value,
            f"{name}_of_other": other.value,
            f"{name}_difference": found.difference,
            f"{name}_difference_low": found.low,
            f"{name}_difference_high": found.high,
            f"{name}_p": found.p,
            f"{name}_signature": mine.signature,
        }
    return {**figures, "count": len(others)}


def _lines(path: Path, count: int) -> list[str]:
    """Read what somebody wrote, a line a pair."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        told = f"{path}: {error}"
        raise InputError(f"`--against` must be a run, or a file of lines in UTF-8; got {told}. Check it.") from error
    if len(lines) != count:
        told = f"a line for each of the {count} pairs; got {len(lines)}"
        raise InputError(f"`{path}` must hold {told}. Write it for the same data and split.")
    return lines
