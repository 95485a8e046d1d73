"""Keep which backend was measured to be the fastest: a file that holds for one machine and one version of PyTorch."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from headwise.contracts.files import cache_folder, write_whole
from headwise.errors import ConfigError
from headwise.kernels import fused, native

__all__ = ["Rule", "kind_of", "machine", "measured", "rule_file", "write_rule"]

Rule = Mapping[str, Mapping[int, str]]
"""Name of the fastest backend, by kind of call and least number of keys."""

_FORMAT = 1
_BACKENDS = (native.NAME, fused.NAME)
_PROCESSORS = Path("/proc/cpuinfo")


def kind_of(dtype: torch.dtype, training: bool) -> str:
    """Name a kind of call in the rule: its type, and whether a gradient follows."""
    return f"{str(dtype).removeprefix('torch.')}, {'training' if training else 'forward'}"


def machine() -> dict[str, str]:
    """Describe what a rule was measured on, and holds for alone."""
    lines = _PROCESSORS.read_text(errors="replace").splitlines() if _PROCESSORS.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(names, platform.processor() or platform.machine())
    return {"torch": torch.__version__, "instructions": native.LIBRARY.isa or "none", "processor": processor}


def rule_file() -> Path:
    """Name the file of the rule: the one in `HEADWISE_CHOICE`, else one in the cache."""
    named = os.environ.get("HEADWISE_CHOICE")
    if named:
        return Path(named).expanduser()
    return cache_folder() / "choice" / f"torch-{torch.__version__}-{native.LIBRARY.isa or 'none'}.json"


def write_rule(rule: Rule, path: Path) -> None:
    """Write a rule that was measured on this machine; where it is the file of the rule, it takes effect at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {"format": _FORMAT, "machine": machine(), "rule": rule}
    write_whole(path, (json.dumps(held, indent=1) + "\n").encode())
    measured.cache_clear()


@cache
def measured() -> Rule:
    """Read which backend was the fastest; nothing where nobody measured.

    Raises:
        ConfigError: for a file that is broken or of another machine, or where `HEADWISE_CHOICE` names none.
    """
    path = rule_file()
    if not path.exists():
        if os.environ.get("HEADWISE_CHOICE"):
            raise ConfigError(f"`HEADWISE_CHOICE` must name a file of `headwise tune`; got {path}. Check the path.")
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        found = {"format": held["format"], **held["machine"]}
        rule = {kind: {int(keys): _known(name) for keys, name in rows.items()} for kind, rows in held["rule"].items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ConfigError(
            f"`{path}` must be what `headwise tune` wrote; got {type(error).__name__}: {error}. {_REMEDY}"
        ) from None
    wanted: dict[str, object] = {"format": _FORMAT, **machine()}
    other = [
        f"{name} {found.get(name)} in place of {value}" for name, value in wanted.items() if found.get(name) != value
    ]
    if other:
        raise ConfigError(f"`{path}` must be measured on this machine; got {', '.join(other)}. {_REMEDY}")
    return rule


_REMEDY = "Delete it, or run `headwise tune` again."


def _known(name: str) -> str:
    if name not in _BACKENDS:
        raise KeyError(name)
    return name
