"""Keep a trained run in a folder, and open it again."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from headwise.contracts import settings
from headwise.contracts.files import write_whole
from headwise.errors import InputError
from headwise.models import Classifier, Seq2Seq, for_inference, load, save
from headwise.recipes.config import AnyConfig, RunConfig, read_run, written_run
from headwise.recipes.pair_config import PairConfig
from headwise.tasks.align import Aligner
from headwise.tasks.decoding import Decodable, Decoding, Hypothesis, decode
from headwise.tasks.labels import Labels
from headwise.tasks.tokenizer import Tokenizer
from headwise.training import Runtime

__all__ = ["Run", "check_folder", "check_out", "open_run", "save_run", "taken", "was_begun", "with_data"]

_log = logging.getLogger("headwise")


@dataclass(frozen=True)
class Run:
    """Hold a model with all that it takes to use it."""

    config: AnyConfig
    """The settings it was trained with."""
    model: Classifier | Seq2Seq
    """The model."""
    tokenizer: Tokenizer
    """What cuts its texts into tokens."""
    aligner: Aligner | None = None
    """Which heads link what is written with what is read; none where no links are wanted."""
    _twins: dict[tuple[torch.dtype, int], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def packed(self, dtype: torch.dtype) -> Any:
        """Give the model packed for inference, made once for its weights as they are."""
        held = self.model.state_dict().values()
        state = tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in held)
        key = dtype, hash(state)
        if key not in self._twins:
            self._twins.clear()
            self._twins[key] = for_inference(self.model, dtype=dtype)
        return self._twins[key]

    def write(
        self,
        source_BK: Tensor,
        source_length_B: Tensor,
        decoding: Decoding,
        *,
        writer: Decodable | None = None,
        row_B: Tensor | None = None,
    ) -> list[list[Hypothesis]]:
        """Write a text for every source, free of what is none: padding, the begin token, the mark of the unknown.

        Args:
            source_BK: the tokens of the sources, each with its end token.
            source_length_B: how many of them are valid.
            decoding: how to write.
            writer: what stands for the model, such as its packed twin.
            row_B: as for `decode`.
        """
        assert isinstance(self.model, Seq2Seq), "only models that write are asked"
        begin, end, pad = (getattr(self.model.config, name) for name in ("begin", "end", "pad"))
        silent = {pad, begin, self.tokenizer.unknown_id} - {end}  # begin and end may be one token
        decoding = replace(decoding, suppress=(*decoding.suppress, *sorted(silent)))
        models = [self.model if writer is None else writer]
        return decode(models, source_BK, source_length_B, decoding, begin=begin, end=end, row_B=row_B)

    @property
    def reader(self) -> Tokenizer:
        """Give what cuts the texts that a model reads, before it writes others, into tokens."""
        assert isinstance(self.config, PairConfig), "only models that write are asked"
        return self.config.data.reader(self.tokenizer)

    @property
    def labels(self) -> Labels:
        """Give the classes that a classifier knows."""
        assert isinstance(self.model, Classifier), "only classifiers are asked"
        assert isinstance(self.config, RunConfig), "a classifier has its settings"
        return Labels(self.model.config.classes, self.config.data.label_separator)


def open_run(folder: Path) -> Run:
    """Open the folder of a trained run.

    Raises:
        InputError: when it holds none, or one that is torn or of another version.
    """
    config = read_run(folder)
    model = load(folder)
    wanted = Classifier if isinstance(config, RunConfig) else Seq2Seq
    if not isinstance(model, wanted):
        told = f"a {wanted.__name__} for {config.task}; got {type(model).__name__}"
        raise InputError(f"{folder} must hold {told}. Copy the run again, or train one.")
    assert isinstance(model, Classifier | Seq2Seq), "one of the two"
    return Run(config, model, Tokenizer.load(folder / "tokenizer.json"))


def with_data(run: Run, changes: Mapping[str, Any]) -> Run:
    """Read data otherwise than in training: other columns, another way with broken rows."""
    data = settings.read(type(run.config.data), {**asdict(run.config.data), **changes})
    changed: Any = {"data": data}
    return replace(run, config=replace(run.config, **changed))


def was_begun(folder: Path) -> bool:
    """Tell whether a training run has written anything into a folder."""
    return (folder / "training").is_dir()


_FILES = ("README.md", "config.json", "run.json", "metrics.json", "tokenizer.json")


def check_out(out: Path, *, resume: bool | None) -> None:
    """Refuse a folder that a run cannot be written to, before anybody waits for the data.

    Args:
        out: the folder.
        resume: whether to go on with the run in it; `None` where that cannot be asked.

    Raises:
        InputError: when it cannot be written, holds a run that is not to be resumed, none where one is, or files that
            are no run's and bear the names of a run's.
    """
    check_folder(out)
    if resume and not was_begun(out):
        raise InputError(f"`--resume` must go on with a run; got {out}, which holds none. Leave --resume out.")
    if not resume and ((out / "model.safetensors").exists() or any((out / "training").glob("state-*"))):
        remedy = "Choose another" if resume is None else "Go on with --resume, or choose another"
        raise InputError(f"`--out` must be a new folder; got {out}, which holds a run. {remedy}.")
    if not resume and not was_begun(out) and (there := [name for name in _FILES if (out / name).exists()]):
        told = f"{out}, which holds {', '.join(there)} and no run"
        raise InputError(f"`--out` must be a new folder; got {told}. Choose another, or move them.")


def check_folder(out: Path) -> None:
    """Refuse what is no folder and cannot become one that can be written to.

    Raises:
        InputError: with what stands in the way.
    """
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        told = "is not a folder" if not nearest.is_dir() else "may not be written"
        raise InputError(f"`--out` must be a folder to write to; got {out}, where {nearest} {told}. Choose another.")


@contextmanager
def taken(out: Path, runtime: Runtime) -> Iterator[None]:
    """Make the folder of a run, and keep it for this run alone.

    The system lets go of the lock when the process ends, killed or not; the file that carries it stays.

    Raises:
        InputError: when the folder cannot be written, or another run trains in it.
    """
    try:
        (out / "training").mkdir(parents=True, exist_ok=True)
        file = (out / "training" / "lock").open("ab")
    except OSError as error:
        raise InputError(f"`--out` must be a folder to write to; got {out}: {error}. Choose another.") from error
    with file:
        if not runtime.from_first(not runtime.first or _locked(file)):
            raise InputError(
                f"`--out` must be a folder that no other run trains in; got {out}, which is in use. "
                "Wait for that run, or choose another."
            )
        yield


def _locked(file: IO[bytes]) -> bool:
    """Lock an open file, unless another process has; a file system that knows no locks is told."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.warning("%s cannot be locked (%s): let no other run train there", file.name, error.strerror)
    return True


def save_run(run: Run, folder: Path, figures: Mapping[str, float], *, card: str) -> None:
    """Write model, tokenizer, settings, figures and a model card."""
    save(run.model, folder)
    run.tokenizer.save(folder / "tokenizer.json")
    write_whole(folder / "run.json", written_run(run.config))
    write_whole(folder / "metrics.json", (json.dumps({"dev": dict(figures)}, indent=2) + "\n").encode())
    write_whole(folder / "README.md", card.encode())
