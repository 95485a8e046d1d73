"""`compat.multi_head_attention_forward` beside PyTorch's: masks, appended keys, weights, projections, errors."""

import inspect
from functools import partial
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from headwise import InputError, compat
from tests.oracle.side_by_side import assert_same

ours, theirs = compat.multi_head_attention_forward, F.multi_head_attention_forward
B, Q, K, H, M = 2, 3, 5, 2, 6
randn = partial(torch.randn, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep two threads from waiting for each other over a handful of numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def arguments(batched=True, separate=False, more=False, zero=False, bias=True):
    """Give the positional arguments, and those of the projections."""
    shapes = [(Q, B, M), (K, B, M + separate), (K, B, M + 2 * separate)]
    query, key, value = (randn(shape if batched else shape[::2]) for shape in shapes)
    packed = None if separate else randn(3 * M, M)
    learned = [randn(1, 1, M) if more else None for _ in range(2)]
    in_bias, out_bias = (randn(size) if bias else None for size in (3 * M, M))
    args = query, key, value, M, H, packed, in_bias, *learned, zero, 0.0, randn(M, M), out_bias
    if not separate:
        return args, {}
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    weights = {name: randn(M, x.shape[-1]) for name, x in zip(names, (query, key, value), strict=True)}
    return args, {"use_separate_proj_weight": True, **weights}


def masks(padding, attn, batched=True):
    """Make masks by the names of their kinds; every query may look at the first key."""
    samples = B if batched else 1
    shapes = {"2": (Q, K), "3": (samples * H, Q, K), "1": (samples, K) if batched else (K,)}

    def mask(kind, rank):
        if kind is None:
            return None
        numbers = randn(shapes[rank])
        numbers[..., 0] = -1
        return numbers > 0 if kind == "bool" else numbers.masked_fill(numbers > 1, -torch.inf)

    return {"key_padding_mask": mask(padding, "1"), "attn_mask": mask(attn and attn[:-1], attn and attn[-1])}


# Our masks may be of different types; PyTorch's may too, but it says so.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
@pytest.mark.parametrize("attn", [None, "bool2", "float2", "bool3", "float3"])
@pytest.mark.parametrize("padding", [None, "bool", "float"])
def test_masks_with_everything(padding, attn):
    explained = 0
    for batched, separate, more, zero in product([True, False], repeat=4):
        for wanted in ({"need_weights": False}, {}, {"average_attn_weights": False}):
            args, weights = arguments(batched, separate, more, zero)
            explained += assert_same(ours, theirs, args, **weights, **wanted, **masks(padding, attn, batched))
    assert explained == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("alike", ["query, key and value", "key and value", "query and key", "none"])
@pytest.mark.parametrize("separate", [True, False])
def test_projections(separate, alike, bias):
    (query, key, value, *rest), weights = arguments(separate=separate, bias=bias)
    if separate and alike != "none":
        weights["k_proj_weight"], weights["v_proj_weight"] = randn(2, M, M)
        key, value = randn(2, K, B, M)
    groups = {
        "query, key and value": (query, query, query),
        "key and value": (query, key, key),
        "query and key": (key, key, value),
        "none": (query, key, value),
    }
    assert assert_same(ours, theirs, [*groups[alike], *rest], **weights) == 0


@pytest.mark.parametrize("batched", [True, False])
def test_static_keys_and_values(batched):
    samples = B if batched else 1
    static = {name: randn(samples * H, K, M // H) for name in ("static_k", "static_v")}
    assert assert_same(ours, theirs, arguments(batched)[0], **static) == 0
    assert assert_same(ours, theirs, arguments(batched, zero=True)[0], static_v=static["static_v"]) == 0


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("padding", [None, "bool"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_the_causal_hint(need_weights, padding, more, zero):
    """It replaces the mask only where PyTorch lets it, appended keys included."""
    causal = torch.ones(Q, K, dtype=torch.bool).triu(1)
    kwargs = masks(padding, None) | {"attn_mask": causal, "is_causal": True, "need_weights": need_weights}
    assert assert_same(ours, theirs, arguments(more=more, zero=zero)[0], **kwargs) == 0
    wrong = kwargs | {"attn_mask": torch.zeros(Q, K, dtype=torch.float64)}
    if padding is None:
        assert assert_same(ours, theirs, arguments(more=more, zero=zero)[0], **wrong) == 0


def test_true_is_hidden():
    args, _ = arguments()
    hidden = torch.tensor([[True, False, True, True, True]] * B)
    weights = ours(*args, key_padding_mask=hidden)[1]
    assert (weights == torch.tensor([0.0, 1, 0, 0, 0])).all()


@pytest.mark.parametrize("average", [True, False])
def test_finite_where_pytorch_is_not(average):
    """A sample without any key: zeros before the output projection, zero weights, and gradients of the others."""
    args, _ = arguments()
    padding = torch.tensor([[False] * K, [True] * K])
    kwargs = {"key_padding_mask": padding, "average_attn_weights": average}
    # Output, weights, and the gradients of all eight tensors that have one but the output's bias.
    assert assert_same(ours, theirs, args, **kwargs) == 8
    output, weights = ours(*args, **kwargs)
    assert (weights[1] == 0).all()
    assert torch.equal(output[:, 1], args[-1].expand(Q, M))


def test_weights_are_those_before_dropout():
    args = list(arguments()[0])
    before = ours(*args)
    args[10] = 0.5
    torch.testing.assert_close(ours(*args)[1], before[1])
    assert not torch.allclose(ours(*args)[0], before[0])
    torch.testing.assert_close(ours(*args, training=False), before)


@pytest.mark.parametrize("average", [True, False])
def test_many_weights_come_in_windows(average, monkeypatch):
    args, _ = arguments()
    kwargs = {"average_attn_weights": average, **masks("float", "float2")}
    monkeypatch.setattr(compat, "_MOST_AT_ONCE", 2 * B * H * K)
    assert assert_same(ours, theirs, args, **kwargs) == 0


def test_no_query_no_key_no_sample():
    (query, key, value, *rest), _ = arguments()
    output, weights = ours(query[:0], key, value, *rest)
    assert (output.shape, weights.shape) == ((0, B, M), (B, 0, K))
    output, weights = ours(query, key[:0], value[:0], *rest)
    assert torch.equal(output, rest[-1].expand(Q, B, M))
    assert weights.shape == (B, Q, 0)
    output, weights = ours(query[:, :0], key[:, :0], value[:, :0], *rest)
    assert (output.shape, weights.shape) == ((Q, 0, M), (0, Q, K))


# The first torch.compile of a process imports torch.jit parts that PyTorch itself has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_compiles_whole():
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    args, _ = arguments(more=True, zero=True)
    assert assert_same(compiled, theirs, args, **masks("bool", "bool3")) == 0


@pytest.mark.parametrize("name", ["multi_head_attention_forward", "scaled_dot_product_attention"])
def test_signature(name):
    mine = inspect.signature(getattr(compat, name)).parameters
    if name == "scaled_dot_product_attention":  # PyTorch's has none that Python can read; these are documented
        documented = "query key value attn_mask dropout_p is_causal scale enable_gqa"
        assert list(mine) == documented.split()
        return
    peer = inspect.signature(theirs).parameters
    assert {k: v.default for k, v in mine.items()} == {k: v.default for k, v in peer.items()}
    assert list(mine) == list(peer)


def changed(**changes):
    """Give arguments by name with some of them changed."""
    names = list(inspect.signature(ours).parameters)
    return dict(zip(names, arguments()[0], strict=False)) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim_to_check": 8}, "the width 8 of `embed_dim_to_check`; got 6"),
        ({"num_heads": 4}, "`num_heads` must divide the width 6; got 4"),
        ({"num_heads": 0}, "`num_heads` must divide the width 6; got 0"),
        ({"query": randn(1, Q, B, M)}, r"2 axes, or 3 with a batch; got query \(1, 3, 2, 6\), key"),
        ({"key": randn(K, M)}, r"2 axes, or 3 with a batch; got .*key \(5, 6\)"),
        ({"key": randn(K + 1, B, M)}, r"same samples and positions; got .*key \(6, 2, 6\), value \(5, 2, 6\)"),
        ({"query": randn(Q, B + 1, M)}, "same samples; got"),
        ({"key": randn(K, B, M + 1)}, r"`in_proj_weight` must have shape \(18, 7\); got \(18, 6\)"),
        ({"in_proj_weight": None}, r"`in_proj_weight` must have shape \(18, 6\); got None"),
        ({"use_separate_proj_weight": True}, r"`q_proj_weight` must have shape \(6, 6\); got None"),
        ({"bias_k": randn(1, 1, M)}, r"`bias_v` must have shape \(1, 1, 6\) or \(6,\); got None"),
        ({"static_k": randn(3, K, 3)}, r"`static_k` must have shape \(4, 5, 3\); got \(3, 5, 3\)"),
        ({"attn_mask": torch.ones(Q, K, dtype=torch.int64)}, "`attn_mask` must be a bool or float .*; got torch.int64"),
        ({"attn_mask": torch.ones(Q, Q)}, r"`attn_mask` must have shape \(3, 5\) or \(4, 3, 5\); got \(3, 3\)"),
        ({"attn_mask": torch.ones(1, Q, K)}, r"`attn_mask` must have shape .*; got \(1, 3, 5\)"),
        ({"key_padding_mask": torch.ones(B, K).byte()}, "`key_padding_mask` must be a bool or .*; got torch.uint8"),
        ({"key_padding_mask": torch.ones(K, B)}, r"`key_padding_mask` must have shape \(2, 5\); got \(5, 2\)"),
        ({"is_causal": True}, "`attn_mask` must be given with `is_causal`, a hint about it; got None"),
        ({"dropout_p": 1.5}, "between 0 and 1; got 1.5"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        ours(**changed(**changes))
    assert str(caught.value).endswith(".")


def test_our_masks_may_differ_in_type_without_a_word():
    assert ours(*arguments()[0], **masks("bool", "float2"))[0].isfinite().all()
