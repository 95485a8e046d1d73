"""The sampler: every row once a pass, within the budget, by seed and pass alone, whoever computes the batch."""

import resource
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwise import InputError
from headwise.training import sampler
from headwise.training.sampler import Sampler, split

LENGTHS = st.lists(st.integers(1, 97), min_size=1, max_size=211).map(np.array)
PAIRS = st.lists(st.tuples(st.integers(1, 61), st.integers(1, 61)), min_size=1, max_size=211).map(np.array)


def batches(cut: Sampler, pass_: int) -> list[np.ndarray]:
    return [cut.rows(pass_, place) for place in range(len(cut))]


@given(st.one_of(LENGTHS, PAIRS), st.integers(1, 500))
def test_every_row_comes_once_a_pass_within_the_budget(length, tokens):
    cut = Sampler(length, tokens=tokens, seed=3)
    for pass_ in (0, 1):
        found = batches(cut, pass_)
        assert sorted(np.concatenate(found)) == list(range(len(length)))
        for rows in found:
            padded = len(rows) * length[rows].max(axis=0).sum()
            assert padded <= tokens or len(rows) == 1


def test_the_order_depends_on_seed_and_pass_alone():
    length = np.random.default_rng(0).integers(1, 67, 1009)
    cut, same, other = (Sampler(length, tokens=307, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(cut.rows(7, 11), same.rows(7, 11))
    cut.rows(8, 0)
    assert np.array_equal(cut.rows(7, 11), same.rows(7, 11)), "after another pass"
    assert not np.array_equal(np.concatenate(batches(cut, 0)), np.concatenate(batches(cut, 1)))
    assert not np.array_equal(np.concatenate(batches(cut, 0)), np.concatenate(batches(other, 0)))


def test_rows_meet_others_in_another_pass():
    length = np.random.default_rng(0).integers(40, 44, 1009)
    cut = Sampler(length, tokens=44 * 17, seed=0)
    first, second = ({frozenset(rows.tolist()) for rows in batches(cut, pass_)} for pass_ in (0, 1))
    assert not first & second


@pytest.mark.parametrize("sides", [1, 2])
def test_padding_is_little(sides):
    random = np.random.default_rng(0)
    first = np.exp(random.normal(3, 0.6, 20_011)).astype(np.int32) + 1
    length = (
        first if sides == 1 else np.stack([first, (first * random.uniform(0.7, 1.4, len(first))).astype(int) + 1], 1)
    )
    cut = Sampler(length, tokens=4096, seed=0)
    padded = sum(len(rows) * length[rows].max(axis=0).sum() for rows in batches(cut, 0))
    assert length.sum() / padded > (0.93 if sides == 1 else 0.9)
    assert length.sum() / len(cut) > 0.85 * 4096, "batches are full"


def test_batches_of_like_size_do_not_follow_each_other():
    length = np.sort(np.random.default_rng(0).integers(1, 101, 5003))
    means = np.array([length[rows].mean() for rows in batches(Sampler(length, tokens=512, seed=0), 0)])
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.2


def test_longer_rows_are_told(caplog):
    cut = Sampler(np.array([3, 50, 3]), tokens=10, seed=0)
    assert sorted(map(len, batches(cut, 0))) == [1, 2]
    assert "1 examples have more than 10 tokens" in caplog.text


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="at least one example; got none"):
        Sampler(np.array([], np.int32), tokens=10, seed=0)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 7))
def test_a_batch_is_split_without_loss(length, processes, rounds):
    rows = np.random.default_rng(0).permutation(len(length))
    pieces = split(rows, length, processes=processes, rounds=rounds)
    assert len(pieces) <= rounds
    assert all(len(each) == processes and len(each[0]) for each in pieces), "no round is empty"
    flat = [piece for each in pieces for piece in each]
    assert sorted(np.concatenate(flat)) == list(range(len(length)))
    assert max(map(len, flat)) - min(map(len, flat)) <= 1
    assert list(length[np.concatenate(flat)]) == sorted(length, reverse=True)


@pytest.mark.slow
def test_ten_million_rows_are_light():
    length = np.random.default_rng(0).integers(1, 513, 10_000_019).astype(np.int32)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    Sampler(length, tokens=8192, seed=0).rows(0, 5)
    assert time.perf_counter() - started < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 * 1024, "kilobytes"


def test_sizes_grow_by_a_tenth():
    sizes = sampler._sizes(1000)
    assert sizes[:12].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert sizes[-1] >= 1000
    assert (sizes[1:] / sizes[:-1])[20:].max() <= 1.1
