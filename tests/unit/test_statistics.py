"""Statistics: what can be asked, what comes back, and numbers worked out by hand."""

import math

import pytest
import torch

import headwise
from headwise import ConfigError, Mask, Scored, Seen, Statistics

BACKENDS = ("reference", "fused")
SIMPLE = ("entropy", "position", "distance", "diagonal", "previous", "next", "received")
FIELDS = {
    "lse": {},
    **{name: {f"{name}_BHQ": ()} for name in SIMPLE[:-1]},
    "received": {"received_BHK": ()},
    "peak": {"peak_BHQ": (), "peak_key_BHQ": ()},
    "sink": {"sink_BHQ": ()},
    "local": {"local_BHQ": ()},
    "map": {"map_BHPP": (3, 3), "map_count_BHP": (3,)},
    "links": {"link_weight_BHQN": (3,), "link_key_BHQN": (3,)},
}


@pytest.mark.parametrize(
    "asked", ["", "lse", "entropy, peak", "sink=1, map=64, links=4", "local=0", "entropy, next, local=8"]
)
def test_a_choice_is_written_as_it_is_read(asked):
    statistics = Statistics.parse(asked)
    assert statistics.asked == asked
    assert repr(statistics) == f"Statistics({asked})"
    assert Statistics.parse(statistics.asked) == statistics


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_is_asked_is_filled(backend, name):
    number = 3 if name in ("sink", "local", "map", "links") else True
    query, key = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 7, 6)
    _, seen = headwise.attend(query, key, key, statistics=Statistics(**{name: number}), backend=backend)
    filled = {field for field, value in vars(seen).items() if value is not None}
    assert filled == {"lse_BHQ", *FIELDS[name]}
    for field, cells in FIELDS[name].items():
        first = (2, 4, 7) if field == "received_BHK" else (2, 4) if field.startswith("map") else (2, 4, 5)
        assert getattr(seen, field).shape == first + cells
        assert getattr(seen, field).dtype == (torch.int64 if "key" in field or "count" in field else torch.float32)


@pytest.mark.parametrize("name", ["sink", "map", "links", "local"])
@pytest.mark.parametrize("value", [-1, 1.5, True, "2", 2**30 + 1, 2**70])
def test_a_number_out_of_range_is_refused(name, value):
    query = torch.randn(1, 1, 2, 2)
    for backend in BACKENDS:
        with pytest.raises(
            ConfigError, match=rf"`{name}` must be a whole number of at least 0, at most 2\*\*30; got {value!r}\. \w"
        ):
            headwise.attend(query, query, query, statistics=Statistics(**{name: value}), backend=backend)


def by_hand(backend: str, weights: list[list[float]], asked: Statistics, mask: Mask | None = None) -> Seen:
    """Attend with weights that are given: scores are their logarithms."""
    bias = torch.tensor(weights, dtype=torch.float64).log()[None, None]
    query = torch.zeros(1, 1, *bias.shape[2:3], 1, dtype=torch.float64)
    key = torch.zeros(1, 1, bias.shape[3], 1, dtype=torch.float64)
    return headwise.attend(query, key, key, mask, bias=bias, statistics=asked, backend=backend)[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_worked_out_by_hand(backend):
    weights = [[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0], [0.125, 0.125, 0.5, 0.25], [0.25, 0.25, 0.25, 0.25]]
    asked = Statistics(True, True, True, True, True, 2, True, True, True, 1, True, 2, 3)
    seen = by_hand(backend, weights, asked)
    wanted = {
        "lse_BHQ": [0, 0, 0, 0],
        "entropy_BHQ": [1.5 * math.log(2), 0, 1.75 * math.log(2), math.log(4)],
        "peak_BHQ": [0.5, 1, 0.5, 0.25],
        "position_BHQ": [0.75, 3, 1.875, 1.5],
        "distance_BHQ": [0.75, 2, 0.625, 1.5],
        "sink_BHQ": [0.75, 0, 0.25, 0.5],
        "diagonal_BHQ": [0.5, 0, 0.5, 0.25],
        "previous_BHQ": [0, 0, 0.125, 0.25],
        "next_BHQ": [0.25, 0, 0.25, 0],
        "local_BHQ": [0.75, 0, 0.875, 0.5],
        "received_BHK": [0.875, 0.625, 1.0, 1.5],
        "map_BHPP": [[0.75, 1.25], [0.75, 1.25]],
        "map_count_BHP": [2, 2],
    }
    for field, numbers in wanted.items():
        found = getattr(seen, field)[0, 0]
        torch.testing.assert_close(
            found, torch.tensor(numbers, dtype=found.dtype), msg=lambda told, field=field: field + told
        )
    assert seen.peak_key_BHQ[0, 0, :3].tolist() == [0, 3, 2]
    assert seen.link_key_BHQN[0, 0, 1].tolist() == [3, -1, -1]
    torch.testing.assert_close(seen.link_weight_BHQN[0, 0, 2], torch.tensor([0.5, 0.25, 0.125]).double())


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_count_from_the_first_valid_key(backend):
    asked = Statistics(peak=True, position=True, sink=1, diagonal=True, links=1)
    mask = Mask.causal() & Mask.lengths(torch.tensor([2]), key_start=torch.tensor([2]))
    seen = by_hand(backend, [[0.1, 0.2, 0.3, 0.1], [0.1, 0.2, 0.3, 0.1]], asked, mask)
    torch.testing.assert_close(seen.position_BHQ[0, 0], torch.tensor([0, 0.25]).double())
    torch.testing.assert_close(seen.sink_BHQ[0, 0], torch.tensor([1, 0.75]).double())
    torch.testing.assert_close(seen.diagonal_BHQ[0, 0], torch.tensor([1, 0.25]).double())
    assert seen.peak_key_BHQ[0, 0].tolist() == [2, 2], "an index of the key tensor"
    assert seen.link_key_BHQN[0, 0].tolist() == [[2], [2]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_sees_nothing_is_not_counted(backend):
    mask = Mask.lengths(torch.tensor([3]), torch.tensor([1]))
    asked = Statistics(entropy=True, position=True, map=2)
    seen = by_hand(backend, [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], asked, mask)
    assert seen.live_BHQ[0, 0].tolist() == [True, False]
    table = seen.per_head()
    assert table["position"].count.tolist() == [1]
    torch.testing.assert_close(table["position"].mean, torch.tensor([0.5]).double())
    torch.testing.assert_close(table["entropy"].mean, torch.tensor([math.log(2)]).double())
    assert table["map"].count[0, :, 0].tolist() == seen.map_count_BHP[0, 0].tolist() == [1, 0]
    torch.testing.assert_close(table["map"].mean[0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double())


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_cells_than_positions_leave_cells_empty(backend):
    seen = by_hand(backend, [[0.5, 0.5]], Statistics(map=5))
    assert seen.map_count_BHP[0, 0].tolist() == [1, 0, 0, 0, 0]
    torch.testing.assert_close(seen.map_BHPP[0, 0, 0], torch.tensor([0.5, 0, 0.5, 0, 0]).double())


def test_scores_add_up_like_their_parts():
    first, second = Scored(torch.tensor([1.0, 2.0]), torch.tensor(3)), Scored(torch.tensor([5.0, 0.0]), torch.tensor(1))
    assert torch.equal((first + second).mean, torch.tensor([1.5, 0.5]))
    assert torch.equal((first + second).sum, (second + first).sum)
