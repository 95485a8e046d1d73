"""What a disk, a shell or a careless hand does to a run: told in a line, and nothing written is lost."""

import io
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from headwise.cli import main
from headwise.models import checkpoint as model_files
from headwise.training import loop
from tests.cli.conftest import TINY, trained


def told_by(capsys, code, *arguments):
    """Check that a command ends with this code and a line of the house's form, and give all that it told."""
    capsys.readouterr()
    assert main([str(each) for each in arguments]) == code
    told = capsys.readouterr().err
    assert "headwise: " in told
    assert "Traceback" not in told
    return told


def train_told(capsys, table, out, *more):
    capsys.readouterr()
    code = trained(table, out, *more)
    return code, capsys.readouterr().err


def test_resuming_where_no_run_is_tells_the_remedy(table, tmp_path, capsys):
    code, told = train_told(capsys, table, tmp_path / "none", "--resume")
    assert code == 2
    assert "Leave --resume out." in told


def test_a_run_killed_before_its_first_state_begins_anew(table, tmp_path):
    (tmp_path / "out" / "training" / ".state-000003.part").mkdir(parents=True)
    assert trained(table, tmp_path / "out", "--resume") == 0
    assert not list((tmp_path / "out" / "training").glob(".*"))


def test_a_model_without_its_state_is_not_trained_over(table, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "training")
    code, told = train_told(capsys, table, copy)
    assert code == 2
    assert "holds a run" in told


@pytest.mark.parametrize("setting", ["model.encoder.d_model=32", "model.encoder.d_ff=32", "model.pooling=attention"])
def test_resuming_with_another_model_is_refused(table, run, tmp_path, capsys, setting):
    copy = shutil.copytree(run, tmp_path / "copy")
    code, told = train_told(capsys, table, copy, "--resume", "--set", setting)
    assert code == 2
    assert "a state must have the model's parameters" in told


@pytest.mark.parametrize("part", ["tensors.safetensors", "state.json"])
def test_a_torn_state_is_passed_over(table, tmp_path, capsys, part):
    more = ("--set", "training.save_every=5")
    assert trained(table, tmp_path / "out", *more) == 0
    whole = load_file(tmp_path / "out" / "model.safetensors")
    *_, newest = sorted((tmp_path / "out" / "training").glob("state-*"))
    (newest / part).write_bytes((newest / part).read_bytes()[:20])
    code, told = train_told(capsys, table, tmp_path / "out", *more, "--resume")
    assert code == 0
    assert "is torn and passed over" in told
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.equal(found[name]) for name, tensor in whole.items())


def test_out_below_a_file_is_refused(table, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    code, told = train_told(capsys, table, tmp_path / "file" / "out")
    assert code == 2
    assert "is not a folder" in told


@pytest.mark.parametrize("device", ["meta", "vulkan"])
def test_a_device_that_holds_no_numbers_is_refused(run, capsys, device):
    assert "`device` must be there" in told_by(capsys, 2, "predict", run, "--text", "x", "--device", device)


def test_a_dev_file_without_rows_is_refused(table, tmp_path, capsys):
    (tmp_path / "dev.tsv").write_text("label\ttext\n")
    code, told = train_told(capsys, table, tmp_path / "out", "--dev", tmp_path / "dev.tsv")
    assert code == 2
    assert "dev.tsv must have at least one good row" in told


def test_rows_that_are_all_equal_are_refused(tmp_path, capsys):
    (tmp_path / "same.tsv").write_text("label\ttext\n" + "good\ta thing\nbad\ta thing\n" * 15)
    code, told = train_told(capsys, tmp_path / "same.tsv", tmp_path / "out")
    assert code == 2
    assert "equal texts stay together" in told


def test_one_column_for_both_is_refused(run, table, capsys):
    both = ("--text-column", "text", "--label-column", "text")
    assert "must differ" in told_by(capsys, 2, "evaluate", run, "--data", table, *both)


def test_texts_come_from_one_place(run, table, capsys):
    assert "got both" in told_by(capsys, 2, "predict", run, "--data", table, "--text", "x")


def test_standard_input_of_another_encoding_is_told(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("fine\ncaf\xe9\n".encode("latin-1"))))
    assert "byte 0xe9 in line 2" in told_by(capsys, 2, "predict", run)


def test_bytes_of_another_encoding_on_the_command_line_are_told(run, capsys):
    assert "must be in UTF-8" in told_by(capsys, 2, "predict", run, "--text", "caf\udce9")


@pytest.fixture
def small_disk():
    """Let no file grow beyond 8 KB, which ends a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_what_was_saved_is_whole(table, tmp_path, capsys, monkeypatch, small_disk):
    more = ("--set", "training.save_every=3")
    assert trained(table, tmp_path / "whole", *more) == 0

    def filling(self):
        step(self)
        if self.progress.step == 8:
            small_disk()

    step = loop._Run._step
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", filling)
        code, told = train_told(capsys, table, tmp_path / "out", *more)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert code == 1
    assert "Make room and resume: what was saved is whole." in told
    assert trained(table, tmp_path / "out", *more, "--resume") == 0
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())


def test_a_model_that_cannot_be_written_leaves_the_one_before(table, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_files, "write_whole", full)
    code, told = train_told(capsys, table, tmp_path / "out")
    assert code == 1
    assert "No space left on device" in told


def command(*arguments):
    return [sys.executable, "-m", "headwise", *map(str, arguments)]


def test_a_reader_that_goes_away_is_no_traceback(run, table):
    line = " ".join(command("predict", run, "--data", table, "--threads", 1))
    done = subprocess.run(["bash", "-c", f"{line} | head -1"], capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def start_training(table, out, *more):
    given = [word for each in TINY for word in ("--set", each)]
    usual = command("train", "sentiment", "--data", table, "--out", out, "--quiet", *given, *more)
    return subprocess.Popen(usual, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_runs_in_one_folder_are_refused_until_the_first_ends(table, tmp_path, capsys):
    out, more = tmp_path / "out", ("--set", "training.passes=2000", "--set", "training.save_every=5")
    first = start_training(table, out, *more)
    try:
        while not list(out.glob("training/state-*")):
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.01)
        for again in ((), ("--resume",)):
            code, told = train_told(capsys, table, out, *more, *again)
            assert code == 2
            assert "no other run trains in" in told or (not again and "holds a run" in told)
            assert "Traceback" not in told
    finally:
        first.kill()
        first.communicate(timeout=100)
    assert trained(table, out, "--resume") == 0, "a lock must end with its process"


def kill_soon(process, folder, seconds):
    """Kill a run some time after it has begun to write; tell whether it was still alive."""
    while not (folder / "training" / "log.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    _, told = process.communicate(timeout=100)
    assert process.returncode in (0, -signal.SIGKILL), told
    return process.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(table, tmp_path, seed):
    more = ("--set", "training.passes=60", "--set", "training.save_every=1")
    assert trained(table, tmp_path / "whole", *more) == 0
    draw, out = random.Random(seed), tmp_path / "out"
    assert kill_soon(start_training(table, out, *more), out, draw.uniform(0, 0.5))
    for _ in range(2):
        kill_soon(start_training(table, out, *more, "--resume"), out, draw.uniform(2, 4))
    assert trained(table, out, *more, "--resume") == 0
    for name in ("model.safetensors", "metrics.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
