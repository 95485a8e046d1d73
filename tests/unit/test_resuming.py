"""A run that was stopped, killed or ran out of disk goes on to the end it would have had, bit for bit."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.toy import TOY, toy_job
from headwise import HeadwiseError, InputError
from headwise.training import checkpoint, train
from tests.unit.runs import CPU, KilledError, at, check_same_end, kill, states

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("step", [7, 20, 33, 59])
def test_a_resumed_run_ends_as_an_untouched_one(step, finished, tmp_path):
    with pytest.raises(KilledError):
        train(replace(toy_job(CPU), on_step=at(step, kill)), TOY, tmp_path, CPU, quiet=True)
    torch.manual_seed(987)
    outcome = train(toy_job(CPU), TOY, tmp_path, CPU, resume=True, quiet=True)
    assert outcome == finished[1]
    check_same_end(tmp_path, finished[0])


def test_a_finished_run_resumes_to_its_end(finished, tmp_path):
    train(toy_job(CPU), TOY, tmp_path, CPU, quiet=True)
    assert train(toy_job(CPU), TOY, tmp_path, CPU, resume=True, quiet=True) == finished[1]
    check_same_end(tmp_path, finished[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(number, finished, tmp_path):
    before = signal.getsignal(number)
    job = replace(toy_job(CPU), on_step=at(23, lambda: signal.raise_signal(number)))
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 23 of 60; .* Resume"):
        train(job, TOY, tmp_path, CPU, quiet=True)
    assert states(tmp_path)[-1] == "state-000023"
    assert signal.getsignal(number) is before
    train(toy_job(CPU), TOY, tmp_path, CPU, resume=True, quiet=True)
    check_same_end(tmp_path, finished[0])


def test_a_second_signal_stops_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="at once"):
        train(replace(toy_job(CPU), on_step=at(23, twice)), TOY, tmp_path, CPU, quiet=True)
    assert states(tmp_path)[-1] == "state-000020"


@pytest.mark.slow
def test_ctrl_c_saves_in_a_process_of_its_own(finished, tmp_path):
    command = [sys.executable, "-W", "error", "-m", "benchmarks.toy", str(tmp_path)]
    begun = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not states(tmp_path):
        time.sleep(0.005)
    begun.send_signal(signal.SIGINT)
    _, errors = begun.communicate()
    assert begun.returncode != 0
    assert "KeyboardInterrupt: stopped after step" in errors
    subprocess.run([*command, "--resume"], cwd=ROOT, check=True)
    check_same_end(tmp_path, finished[0])


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_a_torn_state_is_told_and_passed_over(file, finished, tmp_path, caplog):
    with pytest.raises(KilledError):
        train(replace(toy_job(CPU), on_step=at(33, kill)), TOY, tmp_path, CPU, quiet=True)
    torn = tmp_path / "training" / "state-000030" / file
    torn.write_bytes(torn.read_bytes()[:-100])
    train(toy_job(CPU), TOY, tmp_path, CPU, resume=True, quiet=True)
    assert "state-000030 is torn and passed over" in caplog.text
    check_same_end(tmp_path, finished[0])


def test_without_a_whole_state_the_run_begins_anew(finished, tmp_path, caplog):
    (tmp_path / "training" / "state-000010").mkdir(parents=True)
    train(toy_job(CPU), TOY, tmp_path, CPU, resume=True, quiet=True)
    assert "the run begins anew" in caplog.text
    check_same_end(tmp_path, finished[0])


def test_a_run_is_not_written_over(finished):
    with pytest.raises(InputError, match="must be a new folder"):
        train(toy_job(CPU), TOY, finished[0], CPU, quiet=True)


@pytest.mark.parametrize(
    ("rows", "change", "told"),
    [(601, {"seed": 5}, "another `seed`"), (601, {"batch_tokens": 99}, "`batch_tokens`"), (600, {}, "other data")],
)
def test_a_run_goes_on_with_its_own_data_and_order(rows, change, told, finished):
    with pytest.raises(InputError, match=told):
        train(toy_job(CPU, rows=rows), replace(TOY, **change), finished[0], CPU, resume=True, quiet=True)


def test_a_change_of_settings_and_threads_is_told(tmp_path, caplog):
    with pytest.raises(KilledError):
        train(replace(toy_job(CPU), on_step=at(33, kill)), TOY, tmp_path, CPU, quiet=True)
    torch.set_num_threads(2)
    train(toy_job(CPU), replace(TOY, learning_rate=0.02), tmp_path, CPU, resume=True, quiet=True)
    assert "another `learning_rate`, 0.02 in place of 0.01" in caplog.text
    assert "another `threads`, 2 in place of 1" in caplog.text
    assert "betas" not in caplog.text


def test_the_state_of_another_model_is_refused(finished):
    job = toy_job(CPU)
    job.model.extra = nn.Linear(3, 2)
    with pytest.raises(InputError, match=r"model/extra\.bias"):
        train(job, TOY, finished[0], CPU, resume=True, quiet=True)


def test_a_state_of_another_format_is_refused(tmp_path):
    train(toy_job(CPU), replace(TOY, steps=10), tmp_path, CPU, quiet=True)
    path = tmp_path / "training" / "state-000010" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="must have format 1; got 99"):
        train(toy_job(CPU), TOY, tmp_path, CPU, resume=True, quiet=True)


@pytest.mark.parametrize("fails", ["state", "model"])
def test_a_full_disk_leaves_what_is_there_whole(fails, finished, tmp_path):
    free = resource.getrlimit(resource.RLIMIT_FSIZE)
    job = toy_job(CPU)
    save = job.save

    def fill(*given):
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, free[1]))
        return save(*given) if given else None

    job = replace(job, on_step=at(25, fill)) if fails == "state" else replace(job, save=fill)
    try:
        with pytest.raises(HeadwiseError, match=rf"the (best )?{fails}.* must be written to .* got .*Make room"):
            train(job, TOY, tmp_path, CPU, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, free)
    assert states(tmp_path) == ["state-000010", "state-000020"]
    assert not list(tmp_path.rglob("*.part"))
    train(toy_job(CPU), TOY, tmp_path, CPU, resume=True, quiet=True)
    check_same_end(tmp_path, finished[0])


def test_states_are_saved_by_the_clock(tmp_path):
    train(toy_job(CPU), replace(TOY, steps=5, save_every=0, save_minutes=1e-9), tmp_path, CPU, quiet=True)
    assert states(tmp_path) == ["state-000004", "state-000005"]


@pytest.mark.slow
def test_killed_runs_end_equal():
    command = [sys.executable, "-W", "error", "benchmarks/kills.py", "--kills", "2", "--inside", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(": 2 ended equal, 0 did not\n")


def test_a_state_saved_again_is_whole_at_every_moment(tmp_path, monkeypatch):
    """One saved again after its validation is the only one: killed between any two steps on the disk, one is there."""
    states_of, tensors = checkpoint.States(tmp_path), {"model/a": torch.ones(3)}
    states_of.write(checkpoint.Progress(step=5), {}, tensors)
    steps = (Path.rename, shutil.rmtree, checkpoint.sync)
    for count in range(9):
        left = [count]

        def killed(action, *given, left=left, **named):
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return action(*given, **named)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", lambda *given: killed(steps[0], *given))
            patched.setattr(shutil, "rmtree", lambda *given, **named: killed(steps[1], *given, **named))
            patched.setattr(checkpoint, "sync", lambda *given: killed(steps[2], *given))
            with suppress(KilledError):
                states_of.write(checkpoint.Progress(step=5, validated=5), {}, tensors)
        assert states_of.read().progress.step == 5
    states_of.write(checkpoint.Progress(step=5, validated=5), {}, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["state-000005"]
    assert states_of.read().progress.validated == 5


def test_snapshots_are_numbered_and_not_spelt(tmp_path):
    for step in (999_998, 999_999, 1_000_000):
        checkpoint.snapshot(tmp_path, step, {"a": torch.tensor([float(step)]), "n": torch.tensor(step)}, keep=2)
    averaged = checkpoint.averaged(tmp_path)
    assert (averaged["a"].item(), averaged["n"].item()) == (999_999.5, 1_000_000)
