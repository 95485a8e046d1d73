"""`compat.MultiheadAttention` beside `nn.MultiheadAttention`: parameters, results, masks, copies, compiling."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from headwise import InputError, compat
from tests.oracle.side_by_side import assert_same

B, Q, K, H, M = 2, 3, 5, 2, 6
LAYERS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "appended": {"add_bias_kv": True, "add_zero_attn": True},
    "widths": {"kdim": 4, "vdim": 8},
    "widths, no bias": {"kdim": 4, "bias": False, "batch_first": True},
    "all": {"kdim": 4, "vdim": 8, "add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep two threads from waiting for each other over a handful of numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(dtype=torch.float32, **settings):
    """Build PyTorch's module and ours with the same random numbers."""
    built = []
    for module in (compat.MultiheadAttention, nn.MultiheadAttention):
        torch.manual_seed(7)
        built.append(module(M, H, dtype=dtype, **settings))
    return built


def inputs(module, batched=True, dtype=torch.float64):
    """Give query, key and value for cross attention."""
    shapes = [(B, Q, M), (B, K, module.kdim), (B, K, module.vdim)]
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    if not batched:
        return [x[0] for x in tensors]
    return tensors if module.batch_first else [x.transpose(0, 1) for x in tensors]


def padding(batched=True):
    hidden = torch.tensor([[False] * K, [False, True, False, True, True]])
    return hidden if batched else hidden[1]


@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)
def test_parameters_are_pytorchs(settings):
    """The same draws from the generator, the same names, and loading either way."""
    ours, theirs = pair(**settings)
    assert isinstance(ours, nn.MultiheadAttention)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(ours.parameters(), theirs.parameters(), strict=True))
    for module in (ours, theirs):
        torch.manual_seed(8)
        module._reset_parameters()
    assert all(torch.equal(x, y) for x, y in zip(ours.parameters(), theirs.parameters(), strict=True))
    fresh = nn.MultiheadAttention(M, H, **settings)
    assert fresh.load_state_dict(ours.state_dict()) == ours.load_state_dict(fresh.state_dict())
    assert ours.bias_k is theirs.bias_k is None or ours.bias_k.shape == theirs.bias_k.shape


@pytest.mark.parametrize("name", ["__init__", "forward"])
def test_signature(name):
    mine, peer = (inspect.signature(getattr(x, name)) for x in (compat.MultiheadAttention, nn.MultiheadAttention))
    assert list(mine.parameters) == list(peer.parameters)
    assert [x.default for x in mine.parameters.values()] == [x.default for x in peer.parameters.values()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)
def test_results_and_gradients_are_pytorchs(settings, training):
    ours, theirs = (module.train(training) for module in pair(torch.float64, **settings))
    explained = 0
    for batched in (True, False):
        for wanted in ({}, {"average_attn_weights": False}, {"need_weights": False}):
            args = inputs(ours, batched)
            masks = {"key_padding_mask": padding(batched), "attn_mask": torch.eye(Q, K).bool()}
            explained += assert_same(ours, theirs, args, **wanted)
            explained += assert_same(ours, theirs, args, **wanted, **masks)
            masks = {name: torch.randn(mask.shape, dtype=torch.float64) for name, mask in masks.items()}
            explained += assert_same(ours, theirs, args, **wanted, **masks)
    assert explained == 0


@pytest.mark.parametrize("wanted", [{}, {"average_attn_weights": False}, {"need_weights": False}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_evaluation_without_gradients_is_pytorchs_fast_path(batch_first, wanted):
    ours, theirs = (module.eval() for module in pair(batch_first=batch_first))
    x = torch.randn(B, K, M) if batch_first else torch.randn(K, B, M)
    for mask in (None, torch.eye(K).bool(), torch.randn(B * H, K, K) > 0.9):
        for hidden in (None, padding()):
            kwargs = {"attn_mask": mask, "key_padding_mask": hidden, **wanted}
            with torch.inference_mode():
                torch.testing.assert_close(ours(x, x, x, **kwargs), theirs(x, x, x, **kwargs))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_a_sample_that_is_all_padding_stays_finite(training, need_weights):
    """In evaluation PyTorch gives NaN with and without weights, in training with weights only."""
    ours, theirs = (module.train(training) for module in pair(batch_first=True))
    x = torch.randn(B, K, M)
    hidden = torch.tensor([[False] * K, [True] * K])
    with torch.set_grad_enabled(training):
        output, weights = ours(x, x, x, hidden, need_weights)
        peer = theirs(x, x, x, hidden, need_weights)[0]
    assert peer[1].isnan().all() == (need_weights or not training)
    assert torch.equal(output[1], ours.out_proj.bias.expand(K, M))
    torch.testing.assert_close(output[0], peer[0])
    assert weights is None or (weights[1] == 0).all()
    if training:
        output.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())


def test_dropout_only_while_training():
    ours, theirs = pair(dropout=0.5)
    args = inputs(ours, dtype=torch.float32)
    assert not torch.allclose(ours(*args)[0], ours(*args)[0])
    torch.testing.assert_close(ours(*args)[1], theirs.eval()(*args)[1])
    torch.testing.assert_close(ours.eval()(*args), theirs(*args))


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_output_is_contiguous(batch_first):
    ours, _ = pair(batch_first=batch_first)
    assert ours(*inputs(ours, dtype=torch.float32))[0].is_contiguous()


@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)
def test_a_trained_module_changes_its_class(settings):
    _, module = pair(**settings)
    args = inputs(module, dtype=torch.float32)
    before, state = module(*args), {name: value.clone() for name, value in module.state_dict().items()}
    module.__class__ = compat.MultiheadAttention
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(copied) is compat.MultiheadAttention
        assert not copied._qkv_same_embed_dim
        torch.testing.assert_close(copied(*args), before)
        assert all(torch.equal(value, state[name]) for name, value in copied.state_dict().items())
    module.__class__ = nn.MultiheadAttention
    assert module._qkv_same_embed_dim == ("kdim" not in settings)
    torch.testing.assert_close(module(*args), before)


def test_a_module_pickled_without_the_flag_loads():
    """PyTorch 1.1 wrote none."""
    ours, _ = pair()
    state = {name: value for name, value in ours.__dict__.items() if name != "_qkv_same_embed_dim"}
    old = compat.MultiheadAttention.__new__(compat.MultiheadAttention)
    old.__setstate__(state)
    args = inputs(ours, dtype=torch.float32)
    torch.testing.assert_close(old(*args), ours(*args))


def test_under_autocast():
    ours, theirs = pair(add_bias_kv=True)
    args = inputs(ours, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mine, peer = ours(*args), theirs(*args)
    assert [x.dtype for x in mine] == [x.dtype for x in peer]
    torch.testing.assert_close(mine, peer, atol=0.03, rtol=0.03)


# The first torch.compile of a process imports torch.jit parts that PyTorch itself has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_compiles_whole():
    torch.compiler.reset()
    ours, theirs = pair(torch.float64, **LAYERS["all"])
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="eager")
    for batch, keys in ((B, K), (B + 1, K + 2)):
        query, key, value = (
            torch.randn(batch, n, w).double() for n, w in ((Q, M), (keys, ours.kdim), (keys, ours.vdim))
        )
        args = [x if ours.batch_first else x.transpose(0, 1) for x in (query, key, value)]
        hidden = torch.arange(keys) >= torch.arange(1, batch + 1)[:, None]
        torch.testing.assert_close(compiled(*args, hidden), theirs(*args, hidden))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize("need_weights", [False, True])
def test_exports_with_free_sizes(need_weights):
    ours, theirs = (module.eval() for module in pair(batch_first=True))
    samples, length = torch.export.Dim("samples"), torch.export.Dim("length")
    args, shapes = (torch.randn(3, 7, M),) * 3, [{0: samples, 1: length}] * 4
    hidden = torch.zeros(3, 7, dtype=torch.bool)
    program = torch.export.export(ours, (*args, hidden, need_weights), dynamic_shapes=[*shapes, None]).module()
    for batch, keys in ((2, 5), (5, 150)):
        x, hidden = torch.randn(batch, keys, M), torch.rand(batch, keys) > 0.9
        torch.testing.assert_close(program(x, x, x, hidden, need_weights), theirs(x, x, x, hidden, need_weights))


def test_transforms():
    ours, theirs = pair()
    query, key, value = inputs(ours, dtype=torch.float32)

    def loss(module):
        return lambda state: torch.func.functional_call(module, state, (query, key, value))[0].sum()

    grads = [torch.func.grad(loss(module))(dict(module.named_parameters())) for module in (ours, theirs)]
    torch.testing.assert_close(*grads)
    one_by_one = torch.vmap(lambda *args: ours(*args, need_weights=False)[0], in_dims=1, out_dims=1)
    torch.testing.assert_close(one_by_one(query, key, value), theirs(query, key, value)[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attn_mask": torch.ones(Q, K).long()}, "`attn_mask` must be a bool or float tensor; got torch.int64"),
        ({"key_padding_mask": torch.ones(K, B).bool()}, r"`key_padding_mask` must have shape \(2, 5\); got \(5, 2\)"),
        ({"key_padding_mask": torch.ones(K).bool()}, r"`key_padding_mask` must have shape \(2, 5\); got \(5,\)"),
        ({"is_causal": True}, "`attn_mask` must be given with `is_causal`"),
    ],
)
def test_what_does_not_fit_is_refused(kwargs, message):
    ours, _ = pair()
    with pytest.raises(InputError, match=message):
        ours(*inputs(ours, dtype=torch.float32), **kwargs)


def test_a_width_that_does_not_fit_is_refused():
    ours, _ = pair(kdim=4)
    x = torch.randn(K, B, M)
    with pytest.raises(InputError, match=r"`k_proj_weight` must have shape \(6, 6\); got \(6, 4\)"):
        ours(x, x, x)
