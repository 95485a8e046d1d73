"""The random words of dropout: known answers, and an independent generator."""

import numpy as np
import pytest
import torch

import headwise
from headwise.kernels.philox import keep_mask, philox
from tests.laws import dense

ONES = 0xFFFFFFFF
# From the test vectors of the generator's authors (Random123: philox4x32 with 7 rounds).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    found = philox(tuple(torch.tensor(word) for word in counter), tuple(torch.tensor(word) for word in key))
    assert tuple(int(word) for word in found) == words
    assert tuple(int(word) for word in dense.philox(counter, key)) == words


def test_an_independent_generator_gives_the_same_words():
    generator = np.random.default_rng(0)
    counter = [generator.integers(0, 2**32, 100, dtype=np.int64) for _ in range(4)]
    key = tuple(int(word) for word in generator.integers(0, 2**32, 2))
    found = philox(tuple(map(torch.from_numpy, counter)), tuple(torch.tensor(word) for word in key))
    for ours, theirs in zip(found, dense.philox(tuple(counter), key), strict=True):
        assert (ours.numpy() == theirs.astype(np.int64)).all()


def test_the_decisions_of_one_seed_are_fixed():
    kept = keep_mask(torch.tensor(7), 0.5, *(torch.arange(n) for n in (1, 1, 2)), slice(0, 16))[0, 0].int()
    words = [
        [int(word) >> shift & 0xFFFF for word in dense.philox((n, i, 0, 0), (7, 0)) for shift in (0, 16)]
        for i in range(2)
        for n in range(2)
    ]
    wanted = (torch.tensor(words).reshape(2, 16) >= 32768).int()
    assert torch.equal(kept, wanted)


@pytest.mark.parametrize("backend", ["native", "fused", "reference"])
def test_what_is_kept_grows_by_the_rate_as_it_is_drawn(backend):
    """At a rate of 0.99999 one word in 65,536 is kept: growing by 1 / 0.00001 would give half as much again."""
    x = torch.zeros(1, 1, 2048, 1)
    output = headwise.attend(x, x, x + 1, dropout=headwise.Dropout(0.99999, 1), backend=backend)
    kept = output / (65536 / 2048)
    torch.testing.assert_close(kept, kept.round())
    assert 30 < kept.sum() < 100, "about 64 weights are kept"


@pytest.mark.parametrize("first", [0, 1, 5, 8, 13])
def test_a_part_of_the_keys_has_the_decisions_of_the_whole(first):
    seed = torch.tensor(-5)
    whole = keep_mask(seed, 0.3, *(torch.arange(n) for n in (3, 2, 5)), slice(0, 29))
    places = torch.arange(1, 3), torch.arange(1, 2), torch.arange(2, 5), slice(first, 29)
    assert torch.equal(keep_mask(seed, 0.3, *places), whole[1:3, 1:2, 2:5, first:])
