"""What ruff does not check: lengths, parameters, what a module exports, and banners."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FOLDERS = ("src", "tests", "benchmarks")
LANGUAGES = {".py", ".cpp", ".hpp", ".h"}
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 400, 40, 8
BANNER = re.compile(r"^\s*(#|//|/\*).*[-=*#~─═]{4,}")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: Path) -> Iterator[tuple[Path, str]]:
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in LANGUAGES:
                yield path, path.read_text(encoding="utf-8")


def modules(root: Path, *folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def check_files(root: Path) -> None:
    problems = []
    for path, text in sources(root):
        lines = text.splitlines()
        if len(lines) > MOST_LINES:
            problems.append(f"{path}: {len(lines)} lines")
        problems += [f"{path}:{at} banner: {line}" for at, line in enumerate(lines, 1) if BANNER.match(line)]
    assert not problems, "\n".join(problems)


def function_lines(function: Function) -> int:
    docstring = ast.get_docstring(function, clean=False)
    lines = function.end_lineno - function.lineno + 1
    return lines if docstring is None else lines - docstring.count("\n") - 1


def parameter_count(function: Function) -> int:
    given = function.args
    names = [
        each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if each
    ]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def check_functions(root: Path) -> None:
    problems = []
    for path, tree in modules(root, *FOLDERS):
        if path.name == "compat.py":  # keeps PyTorch's signatures
            continue
        for node in ast.walk(tree):
            if isinstance(node, Function) and node.name not in ("attend", "explain"):  # they take a whole call
                lines, parameters = function_lines(node), parameter_count(node)
                if lines > MOST_FUNCTION_LINES or parameters > MOST_PARAMETERS:
                    problems.append(f"{path}:{node.lineno} {node.name}: {lines} lines, {parameters} parameters")
    assert not problems, "\n".join(problems)


def defined(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def reexported(node: ast.stmt) -> list[str]:
    ours = isinstance(node, ast.ImportFrom) and (node.level > 0 or (node.module or "").split(".")[0] == "headwise")
    return [alias.asname or alias.name for alias in node.names] if ours else []


def exports(tree: ast.Module) -> set[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and defined(node) == ["__all__"]:
            return {name for name in ast.literal_eval(node.value) if not name.startswith("__")}
    return set()


def check_exports(root: Path) -> None:
    problems = []
    for path, tree in modules(root, "src"):
        names = [name for node in tree.body for name in defined(node)]
        if path.name == "__init__.py":
            names += [name for node in tree.body for name in reexported(node)]
        public, listed = {name for name in names if not name.startswith("_")}, exports(tree)
        problems += [f"{path}: `{name}` is public, but not in `__all__`" for name in sorted(public - listed)]
        problems += [f"{path}: `{name}` is in `__all__`, but not defined" for name in sorted(listed - public)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("check", [check_files, check_functions, check_exports])
def test_the_house_keeps_its_style(check: Callable[[Path], None]):
    check(ROOT)


LONG_BODY = "\n    x = 1" * 40
WIDE = "a, b, c, d, e, f, g, h"

BROKEN = [
    (check_files, "tests/a.py", "x = 1\n" * 401, "401 lines"),
    (check_files, "src/headwise/a.cpp", "int x;\n" * 401, "401 lines"),
    (check_files, "src/headwise/a.py", "x = 1\n# " + "-" * 20, ":2 banner"),
    (check_files, "src/headwise/a.hpp", "//" + "=" * 20 + " forward", ":1 banner"),
    (check_functions, "src/headwise/a.py", f"def f():{LONG_BODY}", "f: 41 lines"),
    (check_functions, "benchmarks/a.py", f"class A:\n  async def f(self, {WIDE}, *, i): ...", "9 parameters"),
    (check_functions, "tests/a.py", f"def f({WIDE}, **i): ...", "9 parameters"),
    (check_exports, "src/headwise/a.py", "def f(): ...", "`f` is public"),
    (check_exports, "src/headwise/a.py", "__all__ = ['A']\nclass A: ...\nB: int = 1", "`B` is public"),
    (check_exports, "src/headwise/a.py", "__all__ = ['f']\nfrom headwise.b import f", "`f` is in"),
    (check_exports, "src/headwise/a/__init__.py", "__all__ = ['f']\nfrom .b import f, g", "`g` is public"),
    (check_exports, "src/headwise/a/__init__.py", "__all__ = ['f', 'g']\nfrom headwise.a.b import f", "`g` is in"),
]

SOUND = [
    (check_files, "src/headwise/a.cpp", "int x;\n" * 399 + "#ifdef __AVX512F__"),
    (check_functions, "src/headwise/a.py", f'def f({WIDE}):\n    """One.\n\n    Two.\n    """' + LONG_BODY[:-10]),
    (check_functions, "src/headwise/a.py", f"class A:\n  def f(self, {WIDE}): ..."),
    (check_functions, "src/headwise/compat.py", f"def f({WIDE}, i):{LONG_BODY}"),
    (check_functions, "src/headwise/functional/attention.py", f"def attend({WIDE}, i):{LONG_BODY}"),
    (check_exports, "src/headwise/a.py", "__all__ = ['A']\nimport json\nfrom .b import f\nclass A: ...\n_B = f"),
    (check_exports, "src/headwise/__init__.py", "__all__ = ['f']\nfrom torch import Tensor\nfrom .a import f"),
    (check_exports, "src/headwise/__init__.py", "__all__ = ['__version__']\n__version__ = '1'"),
]


@pytest.mark.parametrize(("check", "file", "text", "problem"), BROKEN)
def test_a_breach_is_found(plant, check, file, text, problem):
    with pytest.raises(AssertionError, match=re.escape(problem)):
        check(plant(file, text))


@pytest.mark.parametrize(("check", "file", "text"), SOUND)
def test_what_is_allowed_passes(plant, check, file, text):
    check(plant(file, text))
