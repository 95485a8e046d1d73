"""What the tests of training ask of a run that has ended."""

import json

import torch
from safetensors.torch import load_file

from benchmarks.toy import TOY
from headwise.training import Runtime

CPU = Runtime(torch.device("cpu"))


class KilledError(Exception):
    """Stand in for a death between two steps."""


def state(out, step):
    return load_file(out / "training" / f"state-{step:06d}" / "tensors.safetensors")


def lines(out):
    read = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in read]


def states(out):
    return sorted(path.name for path in (out / "training").glob("state-*"))


def at(step, action):
    return lambda done: action() if done == step else None


def kill():
    raise KilledError


def check_same_end(out, whole):
    expected, found = state(whole, TOY.steps), state(out, TOY.steps)
    assert expected.keys() == found.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    assert not different
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert lines(out) == lines(whole)


def check_near(found, expected, relative):
    largest = max(tensor.abs().max() for tensor in expected.values())
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max()
        assert error <= relative * tensor.abs().max() + 1e-12 * largest, f"{name}: {error}"
