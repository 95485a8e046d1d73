"""Two processes equal one, whole or in shards; one that would train alone is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headwise import ConfigError
from headwise.training import Runtime, start

ROOT = Path(__file__).parents[2]
TOY = ("-m", "benchmarks.toy")
ONE = [sys.executable, "-W", "error", *TOY]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *TOY]
EXACT = ("--dropout", "0", "--set", "log_every=1", "--set", "average=0", "--set", "steps=20", "--set", "clip=0")

TOLD = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_SIZE", "ACCELERATE_MIXED_PRECISION")


def run(command, out, *options):
    done = subprocess.run([*command, str(out), *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def settings(*assignments):
    return [word for assignment in assignments for word in ("--set", assignment)]


def state(out, step):
    return load_file(out / "training" / f"state-{step:06d}" / "tensors.safetensors")


def losses(out):
    read = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in read if "loss" in line])


def figures(out):
    read = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [line["validation"] for line in read if "validation" in line]


def check_same_gradients(out, whole):
    """After one step AdamW remembers a tenth of the gradient."""
    expected, found = state(whole, 1), state(out, 1)
    gradients = [name for name in expected if name.endswith("exp_avg")]
    assert found.keys() == expected.keys()
    largest = max(expected[name].abs().max() for name in gradients)
    for name in gradients:
        error = (found[name] - expected[name]).abs().max()
        assert error <= 1e-5 * expected[name].abs().max() + 1e-7 * largest, f"{name}: {error}"


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
@pytest.mark.parametrize("batch", [256, 20])
def test_two_processes_equal_one(shard, batch, tmp_path):
    options = [*EXACT, *settings(f"batch_tokens={batch}", "accumulation=2")]
    for name, command, sharded in (("one", ONE, "false"), ("two", TWO, shard)):
        given = [*options, *settings(f"shard={sharded}")]
        run(command, tmp_path / name, *given)
        run(command, tmp_path / f"{name}-step", *given, *settings("steps=1", "validate_every=1"))
    check_same_gradients(tmp_path / "two-step", tmp_path / "one-step")
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5, atol=1e-7)
    assert len(losses(tmp_path / "two")) == 20
    assert figures(tmp_path / "two")[-1] == pytest.approx(figures(tmp_path / "one")[-1], rel=1e-4)
    assert (
        load_file(tmp_path / "two" / "model.safetensors").keys()
        == load_file(tmp_path / "one" / "model.safetensors").keys()
    )


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_processes_stop_and_go_on(shard, tmp_path):
    options = settings(f"shard={shard}", "steps=400", "validate_every=100")
    run(TWO, tmp_path / "whole", *options)
    out = tmp_path / "stopped"
    begun = subprocess.Popen(
        [*TWO, str(out), *options], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list((out / "training").glob("state-*")):
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGINT)
    _, errors = begun.communicate()
    assert "stopped after step" in errors
    run(TWO, out, *options, "--resume")
    expected, found = state(tmp_path / "whole", 400), state(out, 400)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_state_of_shards_goes_on_in_one_process(tmp_path):
    run(TWO, tmp_path, *EXACT, *settings("shard=true"))
    run(ONE, tmp_path, "--resume", *EXACT, *settings("steps=40"))
    run(ONE, tmp_path / "one", *EXACT, *settings("steps=40"))
    # The settings say 40 steps from the start there, so that only the form is compared, not the learning rates.
    assert state(tmp_path, 40).keys() == state(tmp_path / "one", 40).keys()
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


@pytest.mark.slow
def test_accelerate_launches_one_process(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes"]
    run([*launch, "1", *TOY], tmp_path / "one")
    done = subprocess.run(
        [*launch, "2", *TOY, str(tmp_path / "two")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "ConfigError: each of several processes must know the others" in done.stderr


@pytest.fixture
def launched(monkeypatch):
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "told",
    [
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"PMI_SIZE": "3"},
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost"},
        {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
    ],
)
def test_a_process_that_would_train_alone_is_refused(told, launched):
    for name, value in told.items():
        launched.setenv(name, value)
    with pytest.raises(ConfigError, match=r"it would train alone; got .*torchrun"):
        start("cpu", "float32")


@pytest.mark.parametrize(
    "told", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"MASTER_ADDR": "localhost"}, {"PMI_SIZE": "1"}]
)
def test_a_single_process_needs_no_others(told, launched):
    for name, value in told.items():
        launched.setenv(name, value)
    with start("cpu", "float32") as found:
        assert (found.rank, found.processes, found.first) == (0, 1, True)
        assert (found.gather("abc"), found.share("abc")) == (["a", "b", "c"], "abc")


def test_shares_are_all_there_is():
    shares = [Runtime(torch.device("cpu"), rank=rank, processes=3).share(range(7)) for rank in range(3)]
    assert sorted(row for share in shares for row in share) == list(range(7))


@pytest.mark.slow
def test_results_come_back_in_order(tmp_path):
    program = tmp_path / "shared.py"
    program.write_text(
        "import torch\n"
        "from headwise import Scored\n"
        "from headwise.training import start\n"
        "with start('cpu', 'float32') as runtime:\n"
        "    for n in (0, 1, 7):\n"
        "        done = [10 * item for item in runtime.share(range(n))]\n"
        "        assert runtime.gather(done) == [10 * item for item in range(n)]\n"
        "    rank = torch.tensor(runtime.rank)\n"
        "    total = runtime.total(Scored(torch.tensor([0.5, 1.5]), rank + 1))\n"
        "    assert (total.sum.tolist(), int(total.count)) == ([1.0, 3.0], 3)\n"
        "    assert runtime.any(runtime.rank == 1, False) == (True, False)\n"
        "    assert runtime.from_first({'rank': runtime.rank}) == {'rank': 0}\n"
        "    runtime.wait()\n"
    )
    run([*TWO[: -len(TOY)]], program)


@pytest.mark.parametrize(
    ("native", "asked", "dtype"),
    [
        (True, "auto", torch.bfloat16),
        (False, "auto", torch.float32),
        (True, "float32", torch.float32),
        (False, "bf16", torch.bfloat16),
    ],
)
def test_bf16_is_taken_where_it_is_native(native, asked, dtype, launched):
    launched.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    found = start("cpu", asked)
    assert found.dtype == dtype
    assert ("avx512_bf16" in found.reason) == native


def test_the_launcher_may_ask_for_a_precision(launched):
    launched.setattr(torch.cpu, "get_capabilities", dict)
    launched.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert start("cpu").dtype == torch.bfloat16
    launched.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="got fp16 from accelerate"):
        start("cpu")


@pytest.mark.parametrize(("device", "told"), [("gpu", "that PyTorch knows; got 'gpu'"), ("cuda:99", "got cuda:99 of")])
def test_a_device_that_is_not_there_is_refused(device, told, launched):
    with pytest.raises(ConfigError, match=told):
        start(device)


def test_threads_are_set(launched):
    before = torch.get_num_threads()
    start("cpu", "float32", threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
