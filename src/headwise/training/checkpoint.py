"""Keep the state of a run on disk, so that a run that was killed goes on to the very result it would have had.

A state is a folder `state-000500` with `tensors.safetensors`, the parameters and what AdamW remembers, and
`state.json`, all else. It is written beside, synced and renamed. Random states need no place in it: every step draws
from a seed of its own.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headwise.contracts.files import replacing, sync, write_whole
from headwise.errors import HeadwiseError, InputError
from headwise.training.parallel import assign, gathered

__all__ = [
    "Progress",
    "State",
    "States",
    "averaged",
    "drop_snapshots",
    "fill",
    "publish",
    "room",
    "several",
    "snapshot",
    "state_tensors",
    "tensors_of",
]

_log = logging.getLogger(__name__)

_FORMAT = 1
_NEW = ".new"
"""Ends the name of a state while there is another of its step."""
_KEPT = 2
"""States on disk: the newest, and one to fall back on when a disk has spoilt it."""


@dataclass(frozen=True)
class Progress:
    """Say how far a run has come."""

    step: int = 0
    """Steps done."""
    passes: int = 0
    """Passes done."""
    place: int = 0
    """Batches done of the pass after them."""
    validated: int = 0
    """Step of the last validation."""
    best_step: int = 0
    """Step of the best validation; 0 before the first."""
    best: Mapping[str, float] = field(default_factory=dict)
    """Its figures."""
    stale: int = 0
    """Validations since then."""


@dataclass(frozen=True)
class State:
    """Hold what a run needs to go on."""

    progress: Progress
    """How far it came."""
    facts: Mapping[str, Any]
    """Settings, data, versions and threads under which it ran."""
    tensors: Mapping[str, Tensor]
    """Parameters, what AdamW remembers, and running sums, by name, on the CPU."""

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, sums: Mapping[str, Tensor]) -> None:
        """Fill a model, its optimizer and the running sums.

        Raises:
            InputError: when the state is that of another model.
        """
        held = {(f"model/{name}", tuple(tensor.shape)) for name, tensor in _named(model).items()}
        stored = {(name, tuple(each.shape)) for name, each in self.tensors.items() if name.startswith("model/")}
        if held != stored:
            told = ", ".join(f"{name} {shape}" for name, shape in sorted(held ^ stored)[:3])
            raise InputError(
                f"a state must have the model's parameters; got {told} on one side only. "
                "Resume with the settings of the run, or choose another folder."
            )
        fill(model, {name: self.tensors[f"model/{name}"] for name in _named(model)})
        for name, tensor in sums.items():
            assign(tensor, self.tensors[f"sums/{name}"])
        for name, parameter in model.named_parameters():
            stem = f"optimizer/{name}/"
            for key in [key for key in self.tensors if key.startswith(stem)]:
                optimizer.state[parameter][key.removeprefix(stem)] = self._like(parameter, self.tensors[key])

    @staticmethod
    def _like(parameter: Tensor, tensor: Tensor) -> Tensor:
        # Fresh tensors: those of safetensors may lie unaligned, and other kernels would round otherwise.
        if tensor.dim() == 0:
            return tensor.clone().to(parameter.device)
        moment = torch.empty_like(parameter)
        assign(moment, tensor)
        return moment.detach()


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Collect the tensors of a state; where they lie in shards every process must ask."""
    tensors = {f"model/{name}": tensor for name, tensor in tensors_of(model).items()}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = gathered(tensor)
    return tensors | {f"sums/{name}": gathered(tensor) for name, tensor in sums.items()}


class States:
    """Write and find the states in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, progress: Progress, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        """Add a state, and remove all but the newest two.

        Raises:
            HeadwiseError: when the disk is full or cannot be written; the states before are whole.
        """
        target = self.folder / f"state-{progress.step:06d}"
        beside = self.folder / f".{target.name}.part"
        with room(f"the state of step {progress.step}", beside):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clear()
            beside.mkdir()
            _write_tensors(beside / "tensors.safetensors", tensors)
            described = {"format": _FORMAT, "progress": asdict(progress), **facts}
            write_whole(beside / "state.json", json.dumps(described, indent=1).encode())
            # Of the same step there may be one from before its validation: it goes when this one has a name.
            beside.rename(target.with_name(f"{target.name}{_NEW}") if target.exists() else target)
            sync(self.folder)
            self.clear()
        for _, old in self._numbered()[:-_KEPT]:
            shutil.rmtree(old)
        return target

    def read(self) -> State | None:
        """Read the newest whole state; one that is torn is told and passed over."""
        for _, path in reversed(self._numbered()):
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                if isinstance(error, InputError):
                    raise
                _log.warning("%s is torn and passed over: %s", path, error)
        return None

    def clear(self) -> None:
        """Remove what a killed run left half written, and put a new state in the place of one of the same step."""
        for path in self.folder.glob(".state-*.part"):
            shutil.rmtree(path)
        for path in self.folder.glob(f"state-*{_NEW}"):
            old = path.with_name(path.name.removesuffix(_NEW))
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)

    def __bool__(self) -> bool:
        return bool(self._numbered())

    def _numbered(self) -> list[tuple[int, Path]]:
        found = ((path.name.removeprefix("state-").removesuffix(_NEW), path) for path in self.folder.glob("state-*"))
        return sorted((int(number), path) for number, path in found if number.isdecimal())


def _read(path: Path) -> State:
    described = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if described["format"] != _FORMAT:
        raise InputError(
            f"{path} must have format {_FORMAT}; got {described['format']}. Resume it with the version that wrote it."
        )
    return State(Progress(**described.pop("progress")), described, load_file(path / "tensors.safetensors"))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Collect parameters and buffers, tied ones once, whole and on the CPU; every process must ask for shards."""
    return {name: gathered(tensor) for name, tensor in _named(model).items()}


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole parameters and buffers into a model, or into what this process holds of it."""
    for name, held in _named(model).items():
        assign(held, tensors[name])


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Name parameters and buffers as the model holds them, tied ones once."""
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {**dict(model.named_parameters()), **buffers}


def snapshot(folder: Path, step: int, model_tensors: Mapping[str, Tensor], keep: int) -> None:
    """Put the parameters of a step aside for averaging, and drop all but the last few."""
    path = folder / f"step-{step:06d}.safetensors"
    with room(f"the parameters of step {step}", path.with_name(f".{path.name}.part")):
        folder.mkdir(parents=True, exist_ok=True)
        _write_tensors(path, model_tensors)
    for _, path in list(_snapshots(folder))[:-keep]:
        path.unlink()


def drop_snapshots(folder: Path, after: int) -> None:
    """Remove what a run put aside after the step from which it now goes on."""
    for step, path in _snapshots(folder):
        if step > after:
            path.unlink()


def several(folder: Path) -> bool:
    """Tell whether there is more than one to average."""
    return len(list(_snapshots(folder))) > 1


def averaged(folder: Path) -> dict[str, Tensor]:
    """Average what was put aside, in float64; whole numbers are the newest."""
    paths = [path for _, path in _snapshots(folder)]
    sums = load_file(paths[-1])
    kinds = {name: tensor.dtype for name, tensor in sums.items() if tensor.is_floating_point()}
    sums |= {name: sums[name].double() for name in kinds}
    for path in paths[:-1]:
        held = load_file(path)
        for name in kinds:
            sums[name] += held[name]
    return sums | {name: (sums[name] / len(paths)).to(kind) for name, kind in kinds.items()}


def _snapshots(folder: Path) -> Iterator[tuple[int, Path]]:
    yield from sorted((int(path.stem.removeprefix("step-")), path) for path in folder.glob("step-*.safetensors"))


def publish(save: Callable[[Path], None], out: Path) -> None:
    """Have a model written beside and its files, once they are all on disk, moved into `out`, the parameters last.

    Raises:
        HeadwiseError: when the disk is full or cannot be written; the model before is whole.
    """
    beside = out / ".best.part"
    with room("the best model", beside):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save(beside)
        paths = sorted(beside.iterdir(), key=lambda path: (path.suffix == ".safetensors", path.name))
        for path in paths:
            sync(path)
        for path in paths:
            path.replace(out / path.name)
        beside.rmdir()
        sync(out)


@contextmanager
def room(what: str, beside: Path) -> Iterator[None]:
    """Turn a failure to write into a clear error, and remove what was half written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise HeadwiseError(
            f"{what} must be written to {beside.parent}; got {error}. Make room and resume: what was saved is whole."
        ) from error


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with replacing(path) as beside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
