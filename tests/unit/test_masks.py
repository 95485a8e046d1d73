"""Masks: what each one lets be seen, and what `&` makes of two."""

import itertools

import pytest
import torch
from torch import Tensor

import headwise
from headwise import InputError, Mask
from tests.laws import dense
from tests.laws.checks import mask_of
from tests.laws.dense import Call, Causal, Dense, Lengths, Segments, Window

SAMPLES, HEADS, QUERIES, KEYS = 2, 3, 4, 6
NUMBERS = torch.arange(KEYS)
PARTS = {
    "causal": Causal(),
    "causal from the start": Causal("start"),
    "window": Window(2, 1),
    "window to the left": Window(1, None),
    "window to the right": Window(None, 0),
    "lengths": Lengths(torch.tensor([5, 2])),
    "lengths of both": Lengths(torch.tensor([4, 6]), torch.tensor([3, 2])),
    "left padding": Lengths(torch.tensor([4, 3]), None, torch.tensor([2, 3])),
    "segments": Segments(torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 3, 3, 3, 4]])),
    "segments of both": Segments(
        torch.tensor([[0, 0, 1, 1, 2, 2], [7, 7, 7, 7, 8, 8]]), torch.tensor([[0, 1, 1, 2], [8, 7, 7, 9]])
    ),
    "dense": Dense(torch.ones(QUERIES, KEYS).bool().tril(1)[None, None]),
    "dense per head": Dense((torch.arange(HEADS * KEYS).reshape(1, HEADS, 1, KEYS) % 4) > 0),
}


def call(*names: str) -> Call:
    shapes = (SAMPLES, HEADS, QUERIES, 2), (SAMPLES, 1, KEYS, 2), (SAMPLES, 1, KEYS, 2)
    return Call(*(torch.zeros(shape) for shape in shapes), parts=tuple(PARTS[name] for name in names))


def assert_shows(mask: Mask, wanted_BHQK: Tensor) -> None:
    found_BHQK = mask.visible(QUERIES, KEYS)
    assert found_BHQK.dtype == torch.bool
    assert torch.equal(found_BHQK.expand(wanted_BHQK.shape), wanted_BHQK)


@pytest.mark.parametrize("name", PARTS)
def test_a_mask_shows_what_its_definition_says(name):
    assert_shows(mask_of(call(name)), dense.visible(call(name)))


@pytest.mark.parametrize(("first", "second"), list(itertools.product(PARTS, PARTS)))
def test_joined_masks_show_what_both_do(first, second):
    joined = call(first, second)
    assert_shows(mask_of(joined), dense.visible(joined))
    assert_shows(mask_of(call(second, first)), dense.visible(joined))
    assert_shows(mask_of(joined) & Mask(), dense.visible(joined))
    assert_shows(Mask() & mask_of(joined), dense.visible(joined))


@pytest.mark.parametrize("name", PARTS)
def test_a_mask_joined_with_itself_is_itself(name):
    mask = mask_of(call(name))
    assert_shows(mask & mask, dense.visible(call(name)))


def test_three_parts_join_in_any_order():
    names = "lengths of both", "causal", "segments"
    wanted = dense.visible(call(*names))
    for order in itertools.permutations(names):
        assert_shows(mask_of(call(*order)), wanted)


def test_the_end_of_a_causal_mask_is_the_last_valid_key():
    shown = (Mask.causal() & Mask.lengths(torch.tensor([4]), torch.tensor([2]))).visible(3, 6)[0, 0].int().tolist()
    assert shown == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_a_window_lies_around_the_query_of_the_same_place():
    shown = Mask.window(1, 0).visible(2, 4)[0, 0].int().tolist()
    assert shown == [[0, 1, 1, 0], [0, 0, 1, 1]]


def test_queries_take_the_last_segments():
    shown = Mask.segments(torch.tensor([[5, 5, 6, 7]])).resolved(2).visible(2, 4)[0, 0].int().tolist()
    assert shown == [[0, 0, 1, 0], [0, 0, 0, 1]]


def test_lengths_that_do_not_overlap_leave_nothing():
    first = Mask.lengths(torch.tensor([2, 3]))
    second = Mask.lengths(torch.tensor([1, 3]), key_start=torch.tensor([4, 1]))
    shown = (first & second).visible(1, 6)[:, 0, 0].int().tolist()
    assert shown == [[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_narrow_integers_count_like_wide_ones(dtype):
    lengths, starts = torch.tensor([100, 5, 90]), torch.tensor([100, 0, 110])
    query, key = torch.randn(3, 1, 120, 2), torch.randn(3, 1, 200, 2)

    def mask(dtype: torch.dtype) -> Mask:
        queries = torch.tensor([120, 9, 1])
        return Mask.causal() & Mask.lengths(lengths.to(dtype), queries.to(dtype), key_start=starts.to(dtype))

    assert torch.equal(mask(dtype).visible(120, 200), mask(torch.int64).visible(120, 200))
    for backend in ("reference", "fused"):
        found = [headwise.attend(query, key, key, mask(kind), backend=backend) for kind in (dtype, torch.int64)]
        assert torch.equal(*found)


def test_hides_tells_whether_anything_could_be_hidden():
    assert not Mask().hides
    assert not Mask.window(None, None).hides
    assert all(mask_of(call(name)).hides for name in PARTS)


def test_a_mask_takes_only_masks():
    with pytest.raises(TypeError):
        Mask.causal() & torch.ones(2, 2).bool()


def test_a_mask_cannot_be_changed():
    with pytest.raises(AttributeError):
        Mask.causal().left = 3


@pytest.mark.parametrize("name", PARTS)
def test_a_mask_is_a_tree_of_its_tensors(name):
    mask = mask_of(call(name))
    leaves, tree = torch.utils._pytree.tree_flatten(mask)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    assert len(leaves) == sum(isinstance(value, Tensor) for value in vars(mask).values())
    assert_shows(torch.utils._pytree.tree_unflatten(leaves, tree), dense.visible(call(name)))


@pytest.mark.parametrize(
    ("way", "told"),
    [
        (lambda: Mask.causal("middle"), r'`align` must be "end" or "start"; got \'middle\'. '),
        (lambda: Mask.window(-1), r"`left` must be a whole number, at least 0; got -1. "),
        (lambda: Mask.window(2, -3), r"`right` must be a whole number, at least 0; got -3. "),
        (lambda: Mask.window(1.5), r"`left` must be a whole number, at least 0; got 1.5. "),
        (lambda: Mask.window(0, "2"), r"`right` must be a whole number, at least 0; got '2'. "),
        (lambda: Mask.segments(NUMBERS[None]).visible(7, 6), r"cover the queries; got 6 keys and 7 queries. "),
        (lambda: Mask.lengths([3, 2]), r"`keys` must be an integer tensor of shape \(B,\); got \[3, 2\]. "),
        (lambda: Mask.lengths(torch.ones(2)), r"`keys` must be .*; got torch.float32 of shape \(2,\). "),
        (lambda: Mask.lengths(NUMBERS, NUMBERS[None]), r"`queries` must be .*; got torch.int64 of shape \(1, 6\). "),
        (lambda: Mask.lengths(NUMBERS, key_start=3), r"`key_start` must be .*; got 3. "),
        (lambda: Mask.segments(NUMBERS), r"`ids` must be .* of shape \(B, T\); got torch.int64 of shape \(6,\). "),
        (
            lambda: Mask.segments(NUMBERS[None], NUMBERS[None] > 2),
            r"`query_ids` must be .*; got torch.bool of shape \(1, 6\). ",
        ),
        (lambda: Mask.dense(torch.ones(3, 3)), r"a dense mask must be .*; got torch.float32 of shape \(3, 3\). "),
        (lambda: Mask.dense(torch.ones(3, 3, 3).bool()), r"a dense mask .*; got torch.bool of shape \(3, 3, 3\). "),
        (lambda: Mask.dense(None), r"a dense mask must be .*; got None. "),
    ],
)
def test_a_mask_that_cannot_be_is_refused(way, told):
    with pytest.raises(InputError, match=told):
        way()


@pytest.mark.parametrize("backend", ["native", "fused", "reference"])
@pytest.mark.parametrize("given", [{"left": -1}, {"right": -1}, {"left": 2**70}])
def test_a_limit_that_cannot_be_is_refused_whoever_made_the_mask(given, backend):
    query = torch.randn(1, 1, 3, 8)
    with pytest.raises(InputError, match=r"`(left|right)` must be at least 0 and below 2\*\*62"):
        headwise.attend(query, query, query, Mask(**given), backend=backend)


@pytest.mark.parametrize("queries", [0, 1, 4])
@pytest.mark.parametrize("backend", ["native", "fused", "reference"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"keys": (5, 6)}, "valid keys"),
        ({"keys": (5, -1)}, "valid keys"),
        ({"keys": (3, 3), "key_start": (0, 3)}, "valid keys"),
        ({"keys": (3, 3), "key_start": (-1, 2)}, "valid keys"),
        ({"keys": (2**63 - 1, 1), "key_start": (1, 1)}, "valid keys"),
        ({"keys": (5, 5), "queries": (0, 5)}, "valid queries"),
        ({"keys": (5, 5), "queries": (0, -1)}, "valid queries"),
    ],
)
def test_lengths_that_leave_the_tensors_are_refused(given, told, backend, queries):
    mask = Mask.lengths(**{name: torch.tensor(numbers) for name, numbers in given.items()})
    query, key, value = torch.randn(2, 2, queries, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    with pytest.raises(InputError, match=f"{told} must lie in the"):
        headwise.attend(query, key, value, mask, backend=backend)
