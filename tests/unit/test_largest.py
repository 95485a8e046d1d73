"""The largest values of rows, short, long and with a rest behind the last run."""

import pytest
import torch

from headwise.functional.largest import largest


@pytest.mark.parametrize("size", [7, 64, 640, 8_191])
@pytest.mark.parametrize("count", [1, 5])
def test_largest_is_topk(size, count):
    torch.manual_seed(0)
    value_BWV = torch.randn(2, 3, size)
    found_BWN, place_BWN = largest(value_BWV, count)
    expected_BWN, at_BWN = value_BWV.topk(count)
    assert torch.equal(found_BWN, expected_BWN)
    assert torch.equal(place_BWN, at_BWN)


def test_hidden_values_are_none_of_the_largest():
    value_BWV = torch.full((1, 1, 1000), -torch.inf)
    value_BWV[0, 0, [3, 997]] = torch.tensor([1.0, 2.0])
    assert largest(value_BWV, 2)[1].tolist() == [[[997, 3]]]
