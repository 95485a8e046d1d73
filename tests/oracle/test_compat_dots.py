"""`compat.scaled_dot_product_attention` beside PyTorch's: ranks, broadcasting, masks, groups, errors."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from headwise import InputError, compat
from tests.oracle.side_by_side import assert_same

ours, theirs = compat.scaled_dot_product_attention, F.scaled_dot_product_attention


def triple(query, key, value=None, dtype=torch.float32):
    return tuple(torch.randn(shape, dtype=dtype) for shape in (query, key, value or key))


SHAPES = {
    "2": ((3, 8), (7, 8)),
    "2, wide values": ((3, 8), (7, 8), (7, 5)),
    "3": ((5, 3, 8), (5, 7, 8)),
    "3 and 2": ((5, 3, 8), (7, 8)),
    "2 and 3": ((3, 8), (5, 7, 8)),
    "4": ((2, 5, 3, 8), (2, 5, 7, 8), (2, 5, 7, 11)),
    "4, long": ((1, 2, 150, 8), (1, 2, 131, 8)),
    "4, shared keys": ((2, 5, 3, 8), (2, 1, 7, 8)),
    "4, shared queries": ((1, 1, 3, 8), (2, 5, 7, 8)),
    "4, shared by one": ((2, 5, 3, 8), (2, 1, 7, 8), (2, 5, 7, 8)),
    "3 and 4": ((5, 3, 8), (2, 5, 7, 8)),
    "5": ((2, 1, 5, 3, 8), (2, 3, 5, 7, 8), (1, 3, 5, 7, 8)),
    "6": ((2, 1, 3, 1, 3, 8), (1, 2, 1, 5, 7, 8)),
    "more queries": ((2, 5, 7, 8), (2, 5, 3, 8)),
    "no batch": ((0, 5, 3, 8), (0, 5, 7, 8)),
    "no queries": ((2, 5, 0, 8), (2, 5, 7, 8)),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_ranks_and_broadcasting(shapes, dtype, causal):
    assert assert_same(ours, theirs, triple(*shapes, dtype=dtype), is_causal=causal) == 0


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize(
    ("shapes", "mask"),
    [
        ("2", (3, 7)),
        ("3", (3, 7)),
        ("3", (5, 1, 7)),
        ("3", (1, 3, 1)),
        ("3", (7,)),
        ("4", (2, 5, 3, 7)),
        ("4", (2, 1, 1, 7)),
        ("4", (5, 3, 7)),
        ("4, long", (150, 131)),
        ("3 and 4", (2, 1, 3, 7)),
        ("5", (3, 7)),
        ("5", (2, 3, 1, 3, 7)),
        ("5", (1, 3, 1, 1, 7)),
    ],
)
def test_masks(shapes, mask, kind):
    """A boolean is seen where True, a float is added and has a gradient."""
    numbers = torch.randn(mask)
    assert (
        assert_same(ours, theirs, triple(*SHAPES[shapes]), attn_mask=numbers > -1 if kind == "bool" else numbers) == 0
    )


def test_true_is_seen():
    query, key, value = triple((1, 8), (3, 8))
    mask = torch.tensor([[False, True, False]])
    torch.testing.assert_close(ours(query, key, value, attn_mask=mask), value[1:2])


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        ((2, 6, 3, 8), (2, 2, 7, 8), (2, 2, 7, 8)),
        ((2, 6, 3, 8), (2, 2, 7, 8), (2, 3, 7, 5)),
        ((6, 3, 8), (2, 7, 8), (2, 7, 8)),
        ((6, 3, 8), (4, 2, 7, 8), (4, 2, 7, 8)),
        ((5, 2, 6, 3, 8), (1, 2, 3, 7, 8), (5, 1, 3, 7, 8)),
    ],
)
def test_groups(query, key, value):
    assert assert_same(ours, theirs, triple(query, key, value), enable_gqa=True) == 0
    mask = torch.randn(3, 7) > 0
    assert assert_same(ours, theirs, triple(query, key, value), enable_gqa=True, attn_mask=mask) == 0


@pytest.mark.parametrize("scale", [0.3, 0, -1.5])
def test_scale(scale):
    assert assert_same(ours, theirs, triple((2, 5, 3, 8), (2, 5, 7, 8)), scale=scale) == 0


@pytest.mark.parametrize("corner", [causal_lower_right, causal_upper_left])
def test_causal_bias(corner):
    assert assert_same(ours, theirs, triple((2, 5, 3, 8), (2, 5, 7, 8)), attn_mask=corner(3, 7)) == 0


def test_a_query_that_sees_nothing_gives_zeros():
    query, key, value = (x.requires_grad_() for x in triple((2, 5, 3, 8), (2, 5, 7, 8)))
    mask = torch.ones(2, 1, 3, 7, dtype=torch.bool)
    mask[1, :, 2] = False
    output = ours(query, key, value, attn_mask=mask)
    output.sum().backward()
    assert (output[1, :, 2] == 0).all()
    assert (query.grad[1, :, 2] == 0).all()
    assert all(x.grad.isfinite().all() for x in (query, key, value))


def test_no_keys_give_zeros():
    assert (ours(*triple((2, 5, 3, 8), (2, 5, 0, 8))) == 0).all()


def test_dropout_drops_in_the_mean_and_by_the_seed():
    query, key = torch.zeros(400, 1, 8), torch.randn(64, 8)
    value = torch.ones(64, 1)
    first = ours(query, key, value, dropout_p=0.5)
    assert first.std() > 0.05
    torch.testing.assert_close(first.mean(), torch.tensor(1.0), atol=0.03, rtol=0)
    torch.manual_seed(3)
    again = ours(query, key, value, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(ours(query, key, value, dropout_p=0.5), again)
    assert not torch.equal(first, again)
    assert (ours(query, key, value, dropout_p=1.0) == 0).all()


# The first torch.compile of a process imports torch.jit parts that PyTorch itself has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize(("shapes", "dynamic"), [("4", False), ("3", True)])
def test_compiles_whole(shapes, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, dynamic=dynamic, backend="eager")
    mask = torch.randn(3, 7) > 0
    assert assert_same(compiled, theirs, triple(*SHAPES[shapes]), attn_mask=mask) == 0
    assert assert_same(compiled, theirs, triple(*SHAPES[shapes]), is_causal=True) == 0


def test_batches_and_differentiates():
    query, key, value = triple((4, 5, 3, 8), (4, 5, 7, 8))
    mask = torch.randn(3, 7)
    one_by_one = torch.vmap(lambda q, k, v: ours(q, k, v, attn_mask=mask))(query, key, value)
    torch.testing.assert_close(one_by_one, theirs(query, key, value, attn_mask=mask))
    grad = torch.func.grad(lambda q: ours(q, key, value).sum())(query)
    torch.testing.assert_close(grad, torch.func.grad(lambda q: theirs(q, key, value).sum())(query))


X = torch.randn(2, 5, 3, 8)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (
            (X, X, X),
            {"attn_mask": torch.ones(3, 3), "is_causal": True},
            r"left out with `is_causal`; got both",
        ),
        ((X[0, 0, 0], X, X), {}, r"`query` must have at least 2 axes; got \(8,\)"),
        ((X[0, 0], X, X), {"enable_gqa": True}, r"`query` must have at least 3 axes; got \(3, 8\)"),
        ((X, X[:, :3], X[:, :3]), {}, r"leading axes must broadcast; got query \(2, 5, 3, 8\), key \(2, 3, 3, 8\)"),
        ((X, X[:, :3], X[:, :3]), {"enable_gqa": True}, "query heads must be a multiple of key heads; got query"),
        ((X, X, X), {"attn_mask": torch.ones(3, 3, dtype=torch.int64)}, "bool or float tensor; got torch.int64"),
        ((X, X, X), {"attn_mask": [[True]]}, "bool or float tensor; got list"),
        ((X, X, X), {"attn_mask": torch.ones(4, 3)}, r"must broadcast to \(2, 5, 3, 3\); got \(4, 3\)"),
        (
            (X, X, X),
            {"attn_mask": torch.ones(7, 2, 5, 3, 3)},
            r"must broadcast to \(2, 5, 3, 3\); got \(7, 2, 5, 3, 3\)",
        ),
        ((X, X[..., :7], X), {}, "query and key must have the same width"),
        ((X, X, X[..., :2, :]), {}, "key and value must have the same"),
        ((X.long(), X.long(), X.long()), {}, "float type; got torch.int64"),
        ((X, X.double(), X), {}, "share dtype and device"),
        ((X, X, X), {"dropout_p": -0.5}, "between 0 and 1; got -0.5"),
        ((X, X, X), {"scale": float("nan")}, "finite number; got nan"),
    ],
)
def test_what_does_not_fit_is_refused(args, kwargs, message):
    with pytest.raises(InputError, match=message) as caught:
        ours(*args, **kwargs)
    assert "; got " in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)])
    with pytest.raises(InputError, match="`query` must be a plain tensor; got a nested one"):
        ours(nested, nested, nested)
