"""Heads: looking changes nothing, and tables merge."""

import pytest
import torch
from torch import nn

from headwise import InputError, Mask, MultiHeadAttention, Statistics
from headwise.heads import HeadTable, observe


class Layers(nn.Module):
    def __init__(self, kv_heads=None):
        super().__init__()
        self.layers = nn.ModuleList(
            MultiHeadAttention(14, names, d_head=7, kv_heads=kv_heads, dropout=0.1) for names in ((0, 1), (2, 0))
        )
        self.spare = MultiHeadAttention(14, 2) if kv_heads else None

    def forward(self, x_BTM, length_B):
        for layer in self.layers:
            x_BTM = x_BTM + layer(x_BTM, mask=Mask.lengths(length_B, length_B))
        return x_BTM


class Looking(nn.Module):
    def __init__(self):
        super().__init__()
        self.over = MultiHeadAttention(14, 2)

    def forward(self, x_BTM, context_BKM):
        return self.over(x_BTM, context_BKM)


def texts(*lengths):
    return torch.randn(len(lengths), max(lengths), 14), torch.tensor(lengths)


def table_of(model, *calls, **settings):
    with torch.no_grad(), observe(model, **settings) as observer:
        for call in calls:
            model(*call)
    return observer.table()


def test_looking_changes_no_bit_and_leaves_nothing():
    model, (x, lengths) = Layers().train(), texts(11, 7, 3)
    found = []
    for looks in (False, True):
        torch.manual_seed(5)
        model.zero_grad()
        if looks:
            with observe(model) as observer:
                output = model(x, lengths)
            assert len(observer.table().seams) == 2
        else:
            output = model(x, lengths)
        output.sum().backward()
        found.append([output, *(each.grad.clone() for each in model.parameters()), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not any(seam._forward_hooks or seam._forward_pre_hooks for seam in model.modules())


def test_nothing_is_left_after_an_exception():
    model = Layers()
    with pytest.raises(KeyError), observe(model):
        raise KeyError
    assert not any(seam._forward_hooks or seam._forward_pre_hooks for seam in model.modules())


def test_tables_of_parts_add_up():
    model, first, second = Layers().eval(), texts(11, 7), texts(5, 13, 2)
    merged = table_of(model, first) + table_of(model, second)
    whole = table_of(model, first, second)
    assert [row["queries"] for row in whole.rows()] == [11 + 7 + 5 + 13 + 2] * 4
    for mine, wanted in zip(merged.rows(), whole.rows(), strict=True):
        assert (mine.pop("kind"), wanted.pop("kind")) == ("self", "self")
        assert mine == pytest.approx(wanted, rel=1e-6)


def test_rows_name_layers_and_heads():
    table = table_of(Layers().eval(), texts(11, 7))
    assert [(row["layer"], row["kind"], row["head"]) for row in table.rows()] == [
        (0, "self", 0), (0, "self", 1), (1, "self", 2), (1, "self", 0),
    ]  # fmt: skip
    assert all(0 <= row["entropy"] <= torch.tensor(11.0).log() for row in table.rows())
    assert len(str(table).splitlines()) == 5


def test_a_layer_is_numbered_by_its_place_and_not_by_a_digit_in_a_name():
    model = nn.ModuleDict({"wav2vec2": Layers()}).eval()
    model.forward = model["wav2vec2"].forward
    assert [row["layer"] for row in table_of(model, texts(5)).rows()] == [0, 0, 1, 1]


def test_cross_attention_is_looked_at_without_an_own_position():
    (row, _) = table_of(Looking(), (torch.randn(2, 5, 14), torch.randn(2, 3, 14))).rows()
    assert row["kind"] == "cross"
    assert "entropy" in row
    assert "diagonal" not in row


def test_a_compiled_model_is_seen_too():
    model, call = Layers().eval(), texts(11, 7)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(*call)
    assert table_of(compiled, call).to_json() == table_of(model, call).to_json().replace(
        '"place": "', '"place": "_orig_mod.'
    )


def test_json_gives_the_table_back():
    table = table_of(Layers().eval(), texts(11, 7))
    again = HeadTable.from_json(table.to_json())
    assert again.to_json() == table.to_json()
    for torn in ('{"format": 9}', '{"format": 1}', "nonsense", "[]"):
        with pytest.raises(InputError, match=r"a head table must be JSON of format 1; got .*Write it with `to_json`"):
            HeadTable.from_json(torn)


def test_a_table_of_numbers_that_are_none_is_not_written():
    model, (x, lengths) = Layers().eval(), texts(5)
    table = table_of(model, (x * torch.nan, lengths))
    with pytest.raises(InputError, match="a head table must hold finite numbers to be written"):
        table.to_json()


def test_what_cannot_be_observed_is_refused():
    with pytest.raises(InputError, match=r"must hold `headwise\.Attend`"), observe(nn.Linear(2, 2)):
        pass
    model = Layers(kv_heads=1)
    with observe(model) as observer:
        model(*texts(5))
    with pytest.raises(InputError, match=r"no call of spare\.attend"):
        observer.table()
    entropy = Statistics(entropy=True)
    with pytest.raises(InputError, match="same heads and statistics"):
        table_of(Layers().eval(), texts(5)) + table_of(Layers().eval(), texts(5), statistics=entropy)
    with pytest.raises(InputError, match="same layers"):
        table_of(Layers().eval(), texts(5)) + table_of(Looking(), (torch.randn(1, 2, 14),) * 2)
