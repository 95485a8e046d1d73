"""Masks of Transformers: compact where its own functions are asked for, and the same to the last row."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import masking_utils as theirs

from headwise import Mask
from headwise.integrations.transformers.masks import CompactMask, compact_mask

RULES = {
    "causal": theirs.causal_mask_function,
    "full": theirs.bidirectional_mask_function,
    "window": theirs.sliding_window_causal_mask_function(4),
    "window of one": theirs.sliding_window_causal_mask_function(1),
    "window both ways": theirs.sliding_window_bidirectional_mask_function(3),
}
LENGTHS = torch.tensor([[11], [4], [7]])
INDEX = torch.arange(11)
PADDING = {
    "none": None,
    "all there": INDEX >= 0 * LENGTHS,
    "right": INDEX < LENGTHS,
    "left": INDEX >= 11 - LENGTHS,
    "both sides": (INDEX >= 2) & (INDEX < LENGTHS),
    "holes": (INDEX + LENGTHS) % 3 > 0,
    "an empty text": torch.tensor([[11], [0], [7]]) > INDEX,
}
PLACES = {
    "whole": {"q_length": 11, "kv_length": 11},
    "one token with a cache": {"q_length": 1, "kv_length": 11, "q_offset": 10},
    "a chunk with a cache": {"q_length": 4, "kv_length": 11, "q_offset": 7},
    "an empty static cache": {"q_length": 6, "kv_length": 11},
    "a token in a static cache": {"q_length": 1, "kv_length": 11, "q_offset": torch.tensor(6)},
    "a cache that slid": {"q_length": 2, "kv_length": 5, "q_offset": 9, "kv_offset": 6},
}


def asked(rule, padding, place):
    return {"batch_size": 3, "mask_function": rule, "attention_mask": padding, "device": torch.device("cpu"), **place}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("rule", RULES)
def test_a_compact_mask_hides_what_theirs_hides(rule, padding, place):
    call = asked(RULES[rule], PADDING[padding], PLACES[place])
    mask = compact_mask(**call)
    expected = theirs.sdpa_mask(**call, allow_is_causal_skip=False)
    assert mask.shape == expected.shape
    assert torch.equal(mask & True, expected), "an operation on it writes it out"
    if isinstance(mask, CompactMask):
        seen = mask.mask.visible(call["q_length"], call["kv_length"])
        assert torch.equal(seen.expand_as(expected), expected)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("rule", RULES)
def test_no_mask_of_their_own_functions_is_written_out(rule, padding):
    mask = compact_mask(**asked(RULES[rule], PADDING[padding], PLACES["whole"]))
    assert isinstance(mask, CompactMask)
    dense = mask.mask.dense_BHQK
    assert dense is None or dense.shape[2] == 1 or padding in ("both sides", "holes", "an empty text")


def test_packed_texts_are_segments():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3, 4, 5]]).expand(3, -1)
    packed = theirs.find_packed_sequence_indices(positions)
    rule = theirs.remap_positions_for_packed_sequence(theirs.sliding_window_causal_mask_function(3), positions)
    call = asked(theirs.and_masks(rule, theirs.packed_sequence_mask_function(packed)), None, PLACES["whole"])
    mask = compact_mask(**call).mask
    assert (mask.left, mask.right, mask.dense_BHQK) == (2, 0, None)
    assert torch.equal(mask.visible(11, 11).expand(3, 1, 11, 11), theirs.sdpa_mask(**call, allow_is_causal_skip=False))


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("rule", ["causal", "full", "window", "window both ways"])
def test_queries_that_are_padding_do_not_count(rule, padding):
    mask = compact_mask(**asked(RULES[rule], PADDING[padding], PLACES["whole"])).mask
    live = mask.counted.visible(11, 11).any(-1)[:, 0]
    assert torch.equal(live, PADDING[padding])
    shown = (mask.visible(11, 11) & PADDING[padding][:, None, :, None]).expand(3, 1, 11, 11)
    assert torch.equal(mask.counted.visible(11, 11).expand(3, 1, 11, 11), shown)
    if padding == "right":
        assert (mask.counted & Mask()).counted is None
        assert torch.equal(mask.counted.query_length_B, LENGTHS[:, 0])


def test_another_function_is_written_out_and_said(caplog):
    def every_second(batch, head, query, key):
        return (query - key) % 2 == 0

    call = asked(theirs.and_masks(theirs.causal_mask_function, every_second), PADDING["right"], PLACES["whole"])
    with caplog.at_level(logging.WARNING, logger="headwise"):
        mask = compact_mask(**call)
    assert not isinstance(mask, CompactMask)
    assert torch.equal(mask, theirs.sdpa_mask(**call))
    assert "short form of the mask causal_mask_function & test_another" in caplog.text


def test_a_function_that_does_something_else_is_noticed(monkeypatch, caplog):
    monkeypatch.setattr(theirs, "causal_mask_function", lambda batch, head, query, key: key < query)
    call = asked(theirs.causal_mask_function, None, PLACES["whole"])
    with caplog.at_level(logging.WARNING, logger="headwise"):
        mask = compact_mask(**call)
    assert torch.equal(mask, theirs.sdpa_mask(**call, allow_is_causal_skip=False))
    assert "short form of the mask test_a_function" in caplog.text
