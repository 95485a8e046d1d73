"""Roles follow their rules, spreads are those of the examples, and tables leave as CSV and data frames."""

import csv
import io
import math

import pytest
import torch

from headwise import Mask, MultiHeadAttention, Statistics, attention_weights
from headwise.heads import HeadTable, Tokens, guess, observe

LENGTHS = torch.tensor([11, 7, 2])


def looked(tokens=None, batches=1, **settings):
    torch.manual_seed(3)
    layer, x = MultiHeadAttention(12, 3, **settings).eval(), torch.randn(3, 11, 12)
    with torch.no_grad(), observe(layer) as observer:
        for _ in range(batches):
            observer.reading(tokens)
            layer(x, mask=Mask.lengths(LENGTHS, LENGTHS))
    return layer, x, observer.table()


@pytest.mark.parametrize(
    ("row", "role"),
    [
        ({"previous": 0.5, "next": 0.3}, "previous token"),
        ({"next": 0.6}, "next token"),
        ({"diagonal": 0.41, "sink": 0.2}, "self"),
        ({"sink": 0.9}, "first token"),
        ({"separator": 0.7, "sink": 0.1}, "separator"),
        ({"same": 0.4}, "same token"),
        ({"rare": 0.35, "rare_tokens": 0.1}, "rare words"),
        ({"rare": 0.35, "rare_tokens": 0.3}, "mixed"),
        ({"previous": 0.3, "next": 0.3, "local": 0.7}, "positional"),
        ({"kind": "cross", "peak": 0.6}, "aligning"),
        ({"kind": "self", "peak": 0.6}, "picking"),
        ({"entropy": 0.8 * math.log(20), "length": 20.0}, "broad"),
        ({"entropy": 0.5 * math.log(20), "length": 20.0}, "mixed"),
        ({}, "mixed"),
    ],
)
def test_a_role_follows_its_rule_and_shows_its_evidence(row, role):
    found = guess(row)
    assert found.name == role
    numbers = [float(word) for word in found.evidence.replace(",", "").split() if word[0].isdigit()]
    assert all(any(abs(number - value) < 0.006 for value in [*_values(row), math.log(20)]) for number in numbers)


def _values(row):
    return [value for value in row.values() if isinstance(value, float)]


def test_the_spread_is_that_of_the_examples():
    layer, x, table = looked()
    _, seen = layer.attend(*layer.split(x), Mask.lengths(LENGTHS, LENGTHS), statistics=Statistics(entropy=True))
    means_BH = torch.stack([seen.entropy_BHQ[i, :, :n].mean(-1) for i, n in enumerate(LENGTHS)])
    expected_H = means_BH.detach().double().std(0, correction=0)
    rows = list(table.full_rows())
    assert [row["entropy_spread"] for row in rows] == pytest.approx(expected_H.tolist(), rel=1e-4)
    assert {row["length"] for row in rows} == {20 / 3}
    _, _, twice = looked(batches=2)
    assert [row["entropy_spread"] for row in twice.full_rows()] == pytest.approx(expected_H.tolist(), rel=1e-4)
    assert (table + table).to_json() == twice.to_json()


def test_shares_of_tokens_are_those_of_the_weights():
    tokens_BT = torch.randint(0, 6, (3, 11), generator=torch.Generator().manual_seed(1))
    layer, x, table = looked(Tokens(tokens_BT, separators=(2,), rare=(4, 5)))
    mask = Mask.lengths(LENGTHS, LENGTHS)
    with torch.no_grad():
        weights_BHQK = attention_weights(*layer.split(x)[:2], mask)
    same_BQK = (tokens_BT[:, :, None] == tokens_BT[:, None]) & ~torch.eye(11, dtype=torch.bool)
    chosen = {
        "separator": (tokens_BT == 2)[:, None].expand(-1, 11, -1),
        "rare": (tokens_BT >= 4)[:, None].expand(-1, 11, -1),
        "same": same_BQK,
    }
    rows = list(table.rows())
    for name, chosen_BQK in chosen.items():
        expected_H = (weights_BHQK * chosen_BQK[:, None]).sum((0, 2, 3)) / LENGTHS.sum()
        assert [row[name] for row in rows] == pytest.approx(expected_H.tolist(), rel=1e-4)
    assert rows[0]["rare_tokens"] == pytest.approx(float((tokens_BT >= 4).float().mean()))
    assert HeadTable.from_json(table.to_json()).to_json() == table.to_json()


def test_tokens_of_another_call_are_passed_over():
    _, _, table = looked(Tokens(torch.zeros(3, 10, dtype=torch.long)))
    assert "separator" not in next(table.rows())


def test_a_table_leaves_as_csv_and_as_a_data_frame():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    _, _, table = looked()
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    frame = table.to_pandas()
    assert len(rows) == len(frame) == 3
    assert isinstance(frame, pandas.DataFrame)
    for row, full, (_, held) in zip(rows, table.full_rows(), frame.iterrows(), strict=True):
        assert list(row) == list(full) == list(frame.columns)
        assert {"place", "layer", "kind", "head", "entropy", "entropy_spread", "role", "evidence"} <= set(row)
        assert float(row["entropy"]) == full["entropy"] == held["entropy"]
        assert row["role"] == full["role"] == held["role"] == guess(full).name
