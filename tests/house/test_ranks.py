"""A file imports only from lower ranks or from its own package."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"

LADDER = (
    "errors",
    "contracts data",
    "kernels",
    "functional",
    "modules compat",
    "models",
    "tasks heads training integrations",
    "recipes",
    "web",
    "cli",
    "__main__",
)
RANK = {part: rank for rank, parts in enumerate(LADDER) for part in parts.split()}


def imported(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """List the modules that a statement imports, each as its dotted parts."""
    if isinstance(node, ast.Import):
        return [tuple(alias.name.split(".")) for alias in node.names]
    base = package[: len(package) + 1 - node.level] if node.level else ()
    base += tuple(node.module.split(".")) if node.module else ()
    return [(*base, alias.name) for alias in node.names] if base == ("headwise",) else [base]


def problem(part: str, module: tuple[str, ...], late: bool) -> str | None:
    """Say why a file of `part` may not import `module`, or nothing where it may."""
    if late and (module[0] == "headwise" or module[0] in sys.stdlib_module_names):
        return "late: only a heavy third-party package may be imported inside a function"
    if module[0] != "headwise" or module[1:2] == (part,):
        return None
    if len(module) == 1 or module[1] not in RANK:
        return "not a part of the ladder"
    return None if RANK[module[1]] < RANK[part] else f"not below `{part}`"


def imports(path: Path, src: Path) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """Yield the line, the module and the lateness of everything that a file imports."""
    tree, package = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(src).parent.parts
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {inner for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, module, node in late) for module in imported(node, package))


def check_ranks(src: Path) -> None:
    problems = []
    for path in sorted(src.glob("headwise/**/*.py")):
        part = path.relative_to(src / "headwise").with_suffix("").parts[0]
        if part == "__init__":
            continue
        assert part in RANK, f"`{part}` has no rank; add it to the ladder."
        found = [(line, module, problem(part, module, late)) for line, module, late in imports(path, src)]
        problems += [f"{path}:{line} imports `{'.'.join(module)}`: {why}" for line, module, why in found if why]
    assert not problems, "\n".join(problems)


def test_every_file_imports_from_below():
    check_ranks(SRC)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("errors.py", "import headwise.kernels.fused"),
        ("contracts/masks.py", "from headwise.kernels import choice"),
        ("kernels/fused.py", "from headwise import functional"),
        ("kernels/native/bind.py", "from ...functional.attention import attend"),
        ("functional/attention.py", "from headwise import attend"),
        ("modules/attention.py", "from headwise.compat import MultiheadAttention"),
        ("compat.py", "from .modules.attention import Attend"),
        ("heads/prune.py", "def cut():\n    import headwise.training.loop"),
        ("models/config.py", "def load():\n    from headwise.errors import HeadwiseError"),
        ("models/config.py", "async def load():\n    import json"),
        ("analysis.py", "import torch"),
    ],
)
def test_a_wrong_import_is_found(plant, file, line):
    with pytest.raises(AssertionError, match=r"imports `headwise|late: |has no rank"):
        check_ranks(plant(f"headwise/{file}", line))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("__init__.py", "from headwise.cli import main"),
        ("contracts/masks.py", "from headwise.errors import HeadwiseError"),
        ("kernels/native/bind.py", "from ..reference import forward\nfrom headwise import contracts"),
        ("compat.py", "import torch\nimport json\nfrom .functional import attend"),
        ("recipes/serve.py", "def serve():\n    import uvicorn"),
    ],
)
def test_a_right_import_passes(plant, file, line):
    check_ranks(plant(f"headwise/{file}", line))
