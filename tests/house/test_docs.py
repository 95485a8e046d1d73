"""What the documents say is true: their examples run, their links resolve, and what they name exists."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

import headwise

ROOT = Path(__file__).parents[2]

PYTHON_BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)")
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
NAMED_FILE = re.compile(r"(?<![\w./-])(?:(?:src|tests|benchmarks|docs|\.ci)/[\w./-]*\w|\w[\w.-]*\.(?:md|py|toml))")
NAMED_TEST = re.compile(r"([\w./-]+\.py)((?:::\w+)+)")


def documents(root: Path) -> list[Path]:
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")])


def modules(src: Path) -> list[str]:
    paths = [path.relative_to(src).with_suffix("") for path in sorted(src.glob("*/**/*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.endswith("__main__")]


def check_blocks(path: Path) -> None:
    """Run the python blocks of one document in order, in one namespace, as lines of that document."""
    text, namespace = path.read_text(encoding="utf-8"), {"__name__": path.stem}
    for block in PYTHON_BLOCK.finditer(text):
        first_line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * first_line + block[1], path, "exec"), namespace)


def check_doctests(name: str) -> None:
    """Run a module's examples as a reader would type them, after `import torch` and `from headwise import *`."""
    known = {"torch": torch, **{public: getattr(headwise, public) for public in headwise.__all__}}
    options = doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(importlib.import_module(name), extraglobs=known, optionflags=options)
    assert failed == 0, f"{failed} examples of `{name}` failed"


def anchors(path: Path) -> set[str]:
    headings = HEADING.findall(path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def check_links(path: Path) -> None:
    problems = []
    for link in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        outside = re.match(r"[a-z]+:", link)
        if not outside and (not target.exists() or (anchor and anchor not in anchors(target))):
            problems.append(f"{path}: {link}")
    assert not problems, "\n".join(problems)


def functions(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def check_coverage(root: Path) -> None:
    text = (root / "docs" / "COVERAGE.md").read_text(encoding="utf-8")
    problems = [name for name in NAMED_FILE.findall(text) if not (root / name).exists()]
    for file, names in NAMED_TEST.findall(text):
        test = names.rpartition("::")[2]
        if not test.startswith("test") or not (root / file).exists() or test not in functions(root / file):
            problems.append(file + names)
    assert not problems, "named in docs/COVERAGE.md, but not there:\n" + "\n".join(problems)


@pytest.mark.parametrize("path", documents(ROOT), ids=lambda path: path.name)
def test_examples_of_a_document_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_blocks(path)


@pytest.mark.parametrize("name", modules(ROOT / "src"))
def test_examples_of_a_docstring_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_doctests(name)


@pytest.mark.parametrize("path", documents(ROOT), ids=lambda path: path.name)
def test_links_resolve(path):
    check_links(path)


def test_coverage_names_what_exists():
    check_coverage(ROOT)


def test_a_broken_block_is_found(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("```python\nx = 1\n```\nText.\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        check_blocks(path)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (path, 6)


def test_a_broken_docstring_is_found(tmp_path, monkeypatch):
    package = tmp_path / "brokenwise"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text('"""One.\n\n>>> 1 + 1\n3\n"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert modules(tmp_path) == ["brokenwise", "brokenwise.a"]
    check_doctests("brokenwise")
    with pytest.raises(AssertionError, match="1 examples"):
        check_doctests("brokenwise.a")


@pytest.mark.parametrize("link", ["gone.md", "../gone.py", "README.md#gone", "#gone"])
def test_a_broken_link_is_found(tmp_path, link):
    path = tmp_path / "README.md"
    path.write_text(f"# The laws, of attention\n[a](#the-laws-of-attention) [b](https://x.y) `[c](no)` [d]({link})\n")
    with pytest.raises(AssertionError, match=re.escape(link)):
        check_links(path)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("| a | `tests/test_a.py::test_gone` |", "test_gone"),
        ("| a | `tests/test_a.py::helper` |", "helper"),
        ("| a | `tests/test_gone.py::test_a` |", "test_gone.py"),
        ("| a | b | `python benchmarks/gone.py --quick` |", "benchmarks/gone.py"),
        ("| a | see ARCHITECTURE.md |", "ARCHITECTURE.md"),
    ],
)
def test_a_wrong_row_is_found(tmp_path, row, problem):
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(
        "def test_a(): ...\nclass TestB:\n    def test_b(self): ...\ndef helper(): ..."
    )
    coverage = tmp_path / "docs" / "COVERAGE.md"
    coverage.write_text(
        "| a | `tests/test_a.py::test_a[x-1]`, `tests/test_a.py::TestB::test_b` in docs/COVERAGE.md |\n"
    )
    check_coverage(tmp_path)
    coverage.write_text(row)
    with pytest.raises(AssertionError, match=re.escape(problem)):
        check_coverage(tmp_path)
