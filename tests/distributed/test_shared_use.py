"""Evaluate, predict and observe give over two processes what they give in one."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from headwise.heads import HeadTable
from tests.cli.conftest import _cache, run, table  # noqa: F401, fixtures
from tests.cli.test_answers import DYING
from tests.cli.test_pairs import SETTINGS, losses, numbers, translator, write_lines  # noqa: F401, fixture

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


@pytest.mark.slow
def test_two_processes_go_on_with_what_was_cut_off(translator, tmp_path):  # noqa: F811
    data, _ = write_lines(tmp_path, numbers(60, 3))
    program = tmp_path / "dying.py"
    program.write_text(DYING)
    whole, out = tmp_path / "whole.txt", tmp_path / "out.txt"
    given = ("predict", translator, "--data", data, "--output")
    printed(ONE, *given, whole, "--json")
    killed = subprocess.run(
        [*TWO[:-2], program, *map(str, given), out, "--json", "--threads", "1", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode != 0, "the first process kills itself"
    (begun,) = tmp_path.glob(".out.txt.begun-*")
    kept = begun.read_text().splitlines()
    assert len(kept) == 30
    refused = subprocess.run(
        [*TWO, *map(str, given), out, "--resume", "--threads", "1"], capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "as it was begun; got another settings" in refused.stderr
    assert begun.read_text().splitlines() == kept
    printed(TWO, *given, out, "--json", "--resume")
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [
        json.loads(line)["text"] for line in whole.read_text().splitlines()
    ]
    assert not begun.exists()


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_processes_guide_alignment_as_one(shard, tmp_path):
    data, ends = write_lines(tmp_path, numbers(200)), []
    for name, command, sharded in (("one", ONE, "false"), ("two", TWO, shard)):
        settings = (*SETTINGS, "training.steps=6", "training.batch_tokens=512", "training.log_every=1", "sample=0")
        settings += ("training.accumulation=2", "training.guided_alignment=1", "data.tokenizer.kind=words")
        settings += (f"training.shard={sharded}",)
        given = [word for each in settings for word in ("--set", each)]
        printed(command, "train", "translation", "--data", *data, "--out", tmp_path / name, *given)
        ends.append(losses(tmp_path / name))
    assert len(ends[0]) == 6
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
