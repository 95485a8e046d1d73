"""Evaluate, predict and observe give over two processes what they give in one."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from headwise.heads import HeadTable
from tests.cli.conftest import _cache, run, table  # noqa: F401, fixtures
from tests.cli.test_pairs import numbers, translator, write_lines  # noqa: F401, fixture

ONE = [sys.executable, "-m", "headwise"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "headwise"]


def printed(command, *arguments):
    given = [*command, *map(str, arguments), "--threads", "1", "--quiet"]
    done = subprocess.run(given, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_two_processes_evaluate_as_one(run, table):  # noqa: F811
    one, two = (printed(command, "evaluate", run, "--data", table, "--json") for command in (ONE, TWO))
    assert one == two


@pytest.mark.slow
def test_two_processes_predict_as_one(run, table, tmp_path):  # noqa: F811
    for given in (("--data", table), ("--text", "a fine thing", "--text", "cold", "--text", "dull and stale")):
        one, two = (
            [json.loads(line) for line in printed(command, "predict", run, *given, "--json")] for command in (ONE, TWO)
        )
        assert [each["label"] for each in one] == [each["label"] for each in two]
        for mine, other in zip(one, two, strict=True):
            assert mine["probabilities"] == pytest.approx(other["probabilities"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_observe_as_one(run, table, tmp_path):  # noqa: F811
    given = ("observe", run, "--data", table, "--page", tmp_path / "heads.html", "--json")
    one, two = (list(HeadTable.from_json(printed(command, *given)[-1]).rows()) for command in (ONE, TWO))
    for mine, other in zip(one, two, strict=True):
        assert mine.pop("kind") == other.pop("kind")
        assert mine == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_two_processes_align_as_one(translator, tmp_path):  # noqa: F811
    found = []
    for name, command in (("one", ONE), ("two", TWO)):
        folder, links = tmp_path / name, tmp_path / f"{name}.txt"
        shutil.copytree(translator, folder)
        data = write_lines(folder, numbers(300))
        told = printed(command, "align", folder, "--data", *data, "--output", links)
        found.append((told, (folder / "aligner.json").read_text(), links.read_text()))
    assert found[0] == found[1]
