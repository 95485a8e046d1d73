"""What the tests of training start from: one thread, and a run that nobody touched."""

import pytest
import torch

from benchmarks.toy import TOY, toy_job
from headwise.training import train
from tests.unit.runs import CPU


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Train the toy once, untouched: the folder and the outcome."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished")
    outcome = train(toy_job(CPU), TOY, out, CPU, quiet=True)
    torch.set_num_threads(before)
    return out, outcome
