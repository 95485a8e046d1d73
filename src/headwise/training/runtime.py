"""Find out on what a run computes: the device, the precision, and which of how many processes this is.

Processes come from `torchrun` or from `accelerate launch`, which both tell each process its rank and their number.
The `Accelerator` itself is not used: on CPU it lets each rank train alone, it divides by the number of micro-batches
whatever they count, and it saves pickles.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeVar

import torch
from torch import distributed

from headwise.contracts import Scored
from headwise.errors import ConfigError

__all__ = ["Runtime", "check_device", "keep_few_products", "start"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Runtime:
    """Know the device, the precision and the processes of a run; leaving its context ends what `start` began."""

    device: torch.device
    """Where tensors live."""
    rank: int = 0
    """Which process this is, from 0; the first one writes."""
    processes: int = 1
    """How many processes work together."""
    dtype: torch.dtype = torch.float32
    """Type of matrix products: float32, or bfloat16 by autocast."""
    reason: str = ""
    """Why the precision is what it is."""
    owner: bool = False
    """Whether `start` made the process group, and leaving ends it."""

    @property
    def first(self) -> bool:
        """Tell whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def joined(self) -> bool:
        """Tell whether there is a group of processes, be it of one."""
        return distributed.is_initialized()

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the run's precision."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def share(self, items: Sequence[_T]) -> Sequence[_T]:
        """Take this process's share of the items: every n-th, so that items sorted by length make equal work.

        Example:
            >>> Runtime(torch.device("cpu"), rank=1, processes=2).share("abcde")
            'bd'
        """
        return items[self.rank :: self.processes]

    def gather(self, results: Sequence[_T]) -> list[_T]:
        """Bring the results for all shares together on every process, in the order of the items that were shared."""
        if self.processes == 1:
            return list(results)
        parts: list[list[_T]] = [[] for _ in range(self.processes)]
        distributed.all_gather_object(parts, list(results))
        whole: list[_T] = [part for each in parts for part in each]
        for rank, part in enumerate(parts):
            whole[rank :: self.processes] = part
        return whole

    def total(self, scored: Scored) -> Scored:
        """Add up what all processes scored."""
        if self.processes == 1:
            return scored
        flat = torch.cat([scored.sum.detach().double().flatten(), scored.count.double().flatten()])
        distributed.all_reduce(flat)
        sum_, count = flat.split([scored.sum.numel(), scored.count.numel()])
        return Scored(sum_.view_as(scored.sum).to(scored.sum.dtype), count.view_as(scored.count).to(scored.count.dtype))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Tell of each flag whether any process raised it."""
        if self.processes == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(raised, distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def from_first(self, value: _T) -> _T:
        """Have every process use the value of the first."""
        if self.processes == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held)
        return held[0]

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.any(False)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.owner:
            if kind is None:
                self.wait()
                # Gloo's threads let go of the last tensors a moment after they have told of them. A model in shards
                # keeps these threads, and one that wants the interpreter while that ends takes the process down.
                time.sleep(0.1)
            distributed.destroy_process_group()


def start(device: str = "auto", precision: Literal["auto", "float32", "bf16"] = "auto", *, threads: int = 0) -> Runtime:
    """Join the other processes where there are any, and choose the device and the precision.

    Args:
        device: `auto` for a CUDA GPU where there is one, else the CPU; or a name that PyTorch knows.
        precision: `auto` for bf16 where the processor multiplies it natively, else float32.
        threads: threads of this process; 0 leaves them as they are.

    Raises:
        ConfigError: when this process was started as one of several but would train alone, or the device or the
            precision cannot be had.

    Example:
        >>> with start("cpu", "float32") as runtime:
        ...     runtime.processes, runtime.dtype
        (1, torch.float32)
    """
    rank, processes = _launched()
    place = _device(device)
    dtype, reason = _precision(place, precision)
    if threads < 0:
        raise ConfigError(f"`threads` must be at least 0; got {threads}. 0 leaves them as they are.")
    if threads:
        torch.set_num_threads(threads)
    owner = processes > 1 and not distributed.is_initialized()
    if owner:
        if place.type == "cuda":
            torch.cuda.set_device(place)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    joined = distributed.get_world_size() if distributed.is_initialized() else 1
    if joined != processes:
        raise _alone(f"{joined} in the process group and WORLD_SIZE={processes}")
    return Runtime(place, rank, processes, dtype, reason, owner)


def keep_few_products() -> None:
    """Have oneDNN keep 64 compiled products and not 1,024, unless its variable says otherwise; for its first product.

    Batches of ever other sizes use few of them again, and each holds memory (docs/LOG.md).
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def _launched() -> tuple[int, int]:
    """Read rank and number of processes, and refuse launchers that start several without telling PyTorch's way."""
    told = os.environ
    if told.get("WORLD_SIZE"):
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in told]
        if missing and _number("WORLD_SIZE", 1) > 1:
            raise _alone(f"WORLD_SIZE={told['WORLD_SIZE']} without {', '.join(missing)}")
        return _number("RANK", 0), _number("WORLD_SIZE", 1)
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        if _number(name, 1) > 1:
            raise _alone(f"{name}={told[name]} without WORLD_SIZE")
    if "ACCELERATE_MIXED_PRECISION" in told and "MASTER_ADDR" in told:
        # `accelerate launch --cpu --num_processes 2` sets an address to meet at, and then starts one process.
        raise _alone("accelerate's MASTER_ADDR without WORLD_SIZE")
    return 0, 1


def _number(name: str, default: int) -> int:
    """Read a number that a launcher sets; nothing is none."""
    told = os.environ.get(name) or str(default)
    if not told.isdecimal():
        raise ConfigError(
            f"the variable `{name}` must be a whole number; got {told!r}. Start with torchrun, or unset it."
        )
    return int(told)


def _alone(fact: str) -> ConfigError:
    return ConfigError(
        f"each of several processes must know the others, or it would train alone; got {fact}. "
        "Start them with torchrun --nproc-per-node N."
    )


def check_device(name: str) -> None:
    """Refuse a device that cannot be had, and wake no GPU, which a process forked later could not use.

    Raises:
        ConfigError: for a device that PyTorch does not know, or that is not there.
    """
    if name != "auto":
        _device(name)


def _device(name: str) -> torch.device:
    local = _number("LOCAL_RANK", 0)
    if name == "auto":
        usable = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true"
        name = "cuda" if usable else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"`device` must be one that PyTorch knows; got {name!r}. Try auto, cpu or cuda.") from None
    if device.type != "cuda":
        return _usable(device)
    index, held = local if device.index is None else device.index, torch.cuda.device_count()
    if index >= held:
        raise ConfigError(f"`device` must be there; got cuda:{index} of {held}. Start fewer processes, or use cpu.")
    return torch.device("cuda", index)


def _usable(device: torch.device) -> torch.device:
    """Give a device back if it can hold numbers."""
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        told = str(error).splitlines()[0][:80]
        raise ConfigError(f"`device` must be there; got {str(device)!r} ({told}). Try auto, cpu or cuda.") from None
    return device


def _precision(device: torch.device, asked: str) -> tuple[torch.dtype, str]:
    """Choose the type of matrix products, and say why."""
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launcher not in ("no", "bf16"):
        raise ConfigError(f"precision must be float32 or bf16; got {launcher} from accelerate. Launch with bf16 or no.")
    if asked == "auto" and launcher == "bf16":
        asked = "bf16"
    native, why = _native_bf16(device)
    if asked == "auto":
        return (torch.bfloat16 if native else torch.float32), why
    return (torch.bfloat16 if asked == "bf16" else torch.float32), f"as asked; {why}"


def _native_bf16(device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"{torch.cuda.get_device_name(device)} {'multiplies' if native else 'does not multiply'} bf16"
    if device.type == "cpu":
        held = torch.cpu.get_capabilities()
        found = [name for name in ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16") if held.get(name)]
        return bool(found), f"this CPU has {found[0]}" if found else "this CPU does not multiply bf16"
    return False, f"{device.type} is used in float32"
