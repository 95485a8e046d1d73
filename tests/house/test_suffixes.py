"""A public parameter that ends in its axes is annotated with the same axes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"

AXES = "BTQKHGDEPMFVCLWN"
SUFFIXED = re.compile(rf"[a-z]\w*_([{AXES}]+)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(body: list[ast.stmt]) -> Iterator[Function]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        if isinstance(node, Function) and (not node.name.startswith("_") or node.name.endswith("__")):
            yield node


def annotated_axes(annotation: ast.expr | None) -> set[str]:
    """Collect the axes of every shape such as `Float[Tensor, "B H Q D"]` in an annotation, run together: `BHQD`."""
    shapes = set()
    for node in ast.walk(annotation) if annotation else ():
        match node:
            case ast.Subscript(value=ast.Name(id=kind), slice=ast.Tuple(elts=[_, ast.Constant(value=str(axes))])) if (
                kind != "Literal"
            ):
                shapes.add("".join(axis.lstrip("#") for axis in axes.split()))
    return shapes


def check_suffixes(src: Path) -> None:
    problems = []
    for path in sorted(src.glob("headwise/functional/*.py")) + sorted(src.glob("headwise/modules/*.py")):
        for function in public_functions(ast.parse(path.read_text(encoding="utf-8")).body):
            for parameter in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
                suffix = SUFFIXED.fullmatch(parameter.arg)
                shapes = annotated_axes(parameter.annotation)
                if shapes != ({suffix[1]} if suffix else set()):
                    found = ", ".join(sorted(shapes)) or "no axes"
                    problems.append(f"{path}:{parameter.lineno} `{parameter.arg}` is annotated with {found}")
    assert not problems, "\n".join(problems)


def test_suffix_and_annotation_agree():
    check_suffixes(SRC)


@pytest.mark.parametrize("folder", ["functional", "modules"])
@pytest.mark.parametrize(
    "signature",
    [
        "def f(query_BHQD): ...",
        "def f(query_BHQD: Tensor): ...",
        "def f(query_BHQD: Float[Tensor, 'B H K D']): ...",
        "def f(query_BHQD: Float[Tensor, 'batch heads queries width']): ...",
        "def f(*, bias_HQK: Float[Tensor, 'H Q K'] | Float[Tensor, 'H K Q'] | None = None): ...",
        "def f(query: Float[Tensor, 'B H Q D']): ...",
        "class A:\n    def forward(self, query_BQM: Tensor): ...",
        "class A:\n    def __call__(self, query_BQM: Tensor): ...",
    ],
)
def test_a_wrong_annotation_is_found(plant, folder, signature):
    with pytest.raises(AssertionError, match="is annotated with"):
        check_suffixes(plant(f"headwise/{folder}/a.py", signature))


@pytest.mark.parametrize(
    "signature",
    [
        "def f(query_BHQD: Float[Tensor, 'B H Q D'], mask: Mask | None = None): ...",
        "def f(key_start_B: Int[Tensor, ' B'] | None, bias_BHQK: Float[Tensor, '#B H #Q K']): ...",
        "def f(rate: float, n_heads: int, d_model: int): ...",
        "def f(norm: Literal['pre', 'post'] = 'pre'): ...",
        "def _f(query_BHQD: Tensor): ...",
        "class _A:\n    def forward(self, query_BQM: Tensor): ...",
    ],
)
def test_a_right_annotation_passes(plant, signature):
    check_suffixes(plant("headwise/functional/a.py", signature))
