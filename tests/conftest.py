"""What every test starts from: two threads, one seed, and hypothesis profiles that repeat themselves."""

import importlib
import logging
import os
from unittest.mock import patch

import hypothesis
import pytest
import torch

# Triton asks for its interpreter once, when it is imported; later only the tests of its backend ask for it.
with patch.dict(os.environ, {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}):
    importlib.import_module("headwise")

torch.set_num_threads(2)

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("random", deadline=None, print_blob=True)
hypothesis.settings.register_profile("long", max_examples=2_000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci")


def slow(*values):
    """Give values of a parameter that only `make test-all` tries."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


class _TorchRandom:
    """PyTorch's default generator under hypothesis, which seeds it before each example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_torch_random = _TorchRandom()  # hypothesis holds only a weak reference
hypothesis.register_random(_torch_random)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loggers():
    """Undo what a command sets: it logs to the terminal of its own test, which is closed afterwards."""
    logger = logging.getLogger("headwise")
    before = logger.handlers, logger.level
    yield
    logger.handlers, logger.level = before
