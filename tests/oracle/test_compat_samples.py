"""PyTorch's own test inputs, through PyTorch and through `headwise.compat`: forward and gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

from headwise import compat
from tests.oracle.side_by_side import assert_same

# PyTorch's samples have scores in the hundreds, and exp turns their rounding into errors of eps times the score, which
# luck spreads unevenly: twice law 1.
SLACK = 2
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep two threads from waiting for each other over a handful of numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def op_samples(name, dtype, requires_grad=True):
    (info,) = [info for info in op_db if info.name == f"nn.functional.{name}"]
    return list(info.sample_inputs("cpu", dtype, requires_grad=requires_grad))


def module_samples(dtype):
    (info,) = [info for info in module_db if info.module_cls is nn.MultiheadAttention]
    settings = {"device": "cpu", "dtype": dtype, "requires_grad": True}
    return [(mode, x) for mode in (True, False) for x in info.module_inputs_func(info, training=mode, **settings)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sample_of_scaled_dot_product_attention(dtype):
    samples, explained = op_samples("scaled_dot_product_attention", dtype), 0
    assert len(samples) >= 25
    for sample in samples:
        args, kwargs = (sample.input, *sample.args), sample.kwargs | {"dropout_p": 0.0}
        explained += assert_same(
            compat.scaled_dot_product_attention, F.scaled_dot_product_attention, args, slack=SLACK, **kwargs
        )
    assert explained == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("requires_grad", "least"), [(True, 1), (False, 192)])
def test_every_sample_of_multi_head_attention_forward(dtype, requires_grad, least):
    """PyTorch has one sample for gradients and 192 for values; all go both ways here."""
    samples, explained = op_samples("multi_head_attention_forward", dtype, requires_grad), 0
    assert len(samples) >= least
    for sample in samples:
        args = [sample.input, *sample.args]
        args[10] = 0.0  # dropout_p
        explained += assert_same(
            compat.multi_head_attention_forward, F.multi_head_attention_forward, args, slack=SLACK, **sample.kwargs
        )
    assert explained == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sample_of_multihead_attention(dtype):
    samples, explained = module_samples(dtype), 0
    assert len(samples) >= 128
    for training, sample in samples:
        built, called = sample.constructor_input, sample.forward_input
        ours, theirs = (
            module(*built.args, **built.kwargs, dtype=dtype).train(training)
            for module in (compat.MultiheadAttention, nn.MultiheadAttention)
        )
        explained += assert_same(ours, theirs, called.args, slack=SLACK, **called.kwargs)
    assert explained == 0
