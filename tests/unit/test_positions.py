"""Positions beside the formulas of their papers, written out with loops."""

import math

import pytest
import torch

from headwise import Alibi, InputError, RelativeBias, Rotary, sinusoidal


def test_sinusoidal_is_the_papers_formula():
    expected = torch.tensor(
        [[f(p / 10_000 ** (2 * (i // 2) / 6)) for i, f in enumerate((math.sin, math.cos) * 3)] for p in range(5, 12)]
    )
    torch.testing.assert_close(sinusoidal(7, 6, offset=5), expected)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs_of_columns(interleaved):
    x = torch.randn(2, 3, 5, 8)
    turned = Rotary(interleaved=interleaved)(x, offset=4)
    for t in range(5):
        for n in range(4):
            a, b = (2 * n, 2 * n + 1) if interleaved else (n, n + 4)
            angle = (t + 4) * 10_000 ** (-2 * n / 8)
            first = x[..., t, a] * math.cos(angle) - x[..., t, b] * math.sin(angle)
            second = x[..., t, a] * math.sin(angle) + x[..., t, b] * math.cos(angle)
            torch.testing.assert_close(turned[..., t, a], first)
            torch.testing.assert_close(turned[..., t, b], second)


def test_rotary_scores_depend_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8).double().unbind()
    rotary = Rotary()
    score = rotary(q, offset=7) @ rotary(k, offset=3).mT
    torch.testing.assert_close(rotary(q, offset=12) @ rotary(k, offset=8).mT, score, rtol=1e-6, atol=1e-6)


def test_rotary_takes_an_offset_a_sample():
    x = torch.randn(2, 3, 5, 8)
    turned = Rotary()(x, offset=torch.tensor([0, 6]))
    torch.testing.assert_close(turned[1:], Rotary()(x[1:], offset=6))
    torch.testing.assert_close(turned[:1], Rotary()(x[:1]))


def test_odd_widths_are_refused():
    with pytest.raises(InputError, match="even width; got 7"):
        Rotary()(torch.randn(1, 1, 2, 7))


@pytest.mark.parametrize("heads", [1, 2, 5, 8, 12])
def test_alibi_slopes_are_the_papers(heads):
    power = 2 ** int(math.log2(heads))
    expected = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(2 * power)]
    expected += between[0::2][: heads - power]
    torch.testing.assert_close(Alibi.geometric(heads).slopes_H, torch.tensor(expected))


def t5_bucket(relative: int, buckets: int, farthest: int, bidirectional: bool) -> int:
    """Find T5's bucket of `key - query` as its paper's code defines it, in plain numbers."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    grown = exact + int(math.log(distance / exact) / math.log(farthest / exact) * (buckets - exact))
    return first + min(grown, buckets - 1)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 20), (12, 37)])
def test_relative_bias_has_t5s_buckets(bidirectional, buckets, farthest):
    table_NH = torch.arange(buckets * 3.0).reshape(buckets, 3)
    by_distance_HN = RelativeBias(table_NH, bidirectional, farthest).by_distance()
    found = by_distance_HN[0] / 3
    expected = [t5_bucket(r, buckets, farthest, bidirectional) for r in range(-farthest, farthest + 1)]
    assert found.long().tolist() == expected
