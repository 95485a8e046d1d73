"""Kill training at random moments, resume it, and compare the end with that of a run nobody touched, bit for bit.

Run with `python benchmarks/kills.py --kills 50 --inside 10`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.pop(0)  # this folder, whose statistics.py would stand before Python's own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.toy import TOY, toy_job
from headwise.training import start, train


def child(out: Path, *, resume: bool) -> int:
    """Start a run in a process of its own, and give its id."""
    if process := os.fork():
        return process
    status = 1
    try:
        with start("cpu", "float32") as runtime:
            train(toy_job(runtime), TOY, out, runtime, resume=resume, quiet=True)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(process: int) -> int | None:
    """Give the status of a process that has ended: negative where a signal ended it."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def complete(out: Path, *, resume: bool) -> None:
    _, status = os.waitpid(child(out, resume=resume), 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"the run in {out} ended with status {status}"


def result(out: Path) -> dict[str, bytes]:
    """Read what a run leaves: the model, and the last state with all that the optimizer remembers."""
    files = (
        out / "model.safetensors",
        out / "metrics.json",
        *sorted((out / "training").glob(f"state-{TOY.steps:06d}/*")),
    )
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def kill_when(out: Path, moment: Callable[[], bool], *, resume: bool) -> bool:
    """Run until a moment comes, and kill; tell whether it came before the end."""
    process = child(out, resume=resume)
    while (status := ended(process)) is None:
        if moment():
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return True
    assert status == 0, f"the run in {out} failed"
    return False


def inside_a_save(out: Path, skipped: int) -> Callable[[], bool]:
    """Wait for a state that is half written, after some others."""
    seen: set[str] = set()

    def moment() -> bool:
        seen.update(path.name for path in out.glob("training/.state-*.part"))
        return len(seen) > skipped

    return moment


def after(out: Path, seconds: float) -> Callable[[], bool]:
    """Wait some time from the first saved state on."""
    first: list[float] = []

    def moment() -> bool:
        if not first and next(out.glob("training/state-*"), None) is not None:
            first.append(time.monotonic())
        return bool(first) and time.monotonic() - first[0] >= seconds

    return moment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="runs to kill")
    parser.add_argument("--inside", type=int, default=10, help="how many of them inside a save")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(given.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        began = time.monotonic()
        complete(folder / "whole", resume=False)
        expected, took = result(folder / "whole"), time.monotonic() - began
        different = killed = torn = 0
        while killed < given.kills:
            out = folder / f"run-{killed}"
            moment = (
                inside_a_save(out, draw.randrange(5))
                if killed < given.inside
                else after(out, draw.uniform(0, took * 0.6))
            )
            if kill_when(out, moment, resume=False):
                killed += 1
                torn += any(out.glob("training/.state-*.part"))
                complete(out, resume=True)
                different += result(out) != expected
            shutil.rmtree(out)
    finally:
        shutil.rmtree(folder)
    print(f"{killed} kills, {torn} with a state half written: {killed - different} ended equal, {different} did not")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
