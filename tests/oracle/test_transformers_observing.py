"""Heads of attached models are seen: what their weights say, whatever the padding, step by step, compiled, wrapped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headwise import Statistics
from headwise.heads import observe
from headwise.integrations.transformers import attach
from tests.conftest import slow
from tests.oracle.architectures import EQUAL, TOKENS, build, inputs

BY_NAME = {each.name: each for each in EQUAL}
LOOKED = ["BERT", "ModernBERT", "GPT-2", "Mistral", "Gemma 2", "Llama"]
ALL = Statistics(
    entropy=True,
    peak=True,
    position=True,
    distance=True,
    sink=1,
    diagonal=True,
    previous=True,
    next=True,
    local=2,
    map=4,
)


def rows_of(model, *calls):
    with torch.no_grad(), observe(model, ALL) as observer:
        for call in calls:
            model(**call)
    return list(observer.table().rows()), list(observer.table().maps())


def single(given):
    """Cut a padded batch into texts without padding."""
    for tokens, valid in zip(given["input_ids"], given["attention_mask"].bool(), strict=True):
        yield {"input_ids": tokens[valid][None]}


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", LOOKED)
def test_padding_does_not_count(name, padding):
    model, given = attach(build(BY_NAME[name])), inputs(BY_NAME[name], padding)
    if name in ("BERT", "GPT-2"):  # whose positions are those of the tensor
        given["position_ids"] = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    rows, maps = rows_of(model, given)
    expected_rows, expected_maps = rows_of(model, *single(given))
    for mine, other in zip(rows, expected_rows, strict=True):
        assert mine.pop("kind") == other.pop("kind")
        assert mine == pytest.approx(other, abs=1e-5)
    if padding == "right":  # the rows of a map are counted from the first query, padding or not
        assert torch.tensor(maps) == pytest.approx(torch.tensor(expected_maps), abs=1e-5)


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Gemma 2", "BART"])
def test_statistics_are_those_of_the_weights(name):
    given = inputs(BY_NAME[name], "none")
    with torch.no_grad():
        expected = build(BY_NAME[name])(**given, output_attentions=True)
    rows, _ = rows_of(attach(build(BY_NAME[name])), given)
    kinds = ("encoder_attentions", "decoder_attentions", "cross_attentions", "attentions")
    found = {kind: expected[kind] for kind in kinds if expected.get(kind) is not None}
    own = [weights for kind in found if kind != "cross_attentions" for weights in found[kind]]
    for kind, layers in (("self", own), ("cross", found.get("cross_attentions", ()))):
        entropies = [float(each) for layer in layers for each in entropy(layer)]
        assert [row["entropy"] for row in rows if row["kind"] == kind] == pytest.approx(entropies, abs=1e-5)


def entropy(weights_BHQK):
    return -(weights_BHQK * weights_BHQK.clamp(min=1e-30).log()).sum(-1).mean((0, 2))


def test_layers_heads_and_kinds_are_named():
    rows, _ = rows_of(attach(build(BY_NAME["BART"])), inputs(BY_NAME["BART"], "right"))
    encoder = [(layer, "self", head) for layer in (0, 1) for head in (0, 1, 2)]
    decoder = [(layer, kind, head) for layer in (0, 1) for kind in ("self", "cross") for head in (0, 1)]
    assert [(row["layer"], row["kind"], row["head"]) for row in rows] == encoder + decoder


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", ["GPT-2", "Mistral", "T5", "Whisper"])
def test_generation_is_seen_step_by_step(name, beams):
    model, given = attach(build(BY_NAME[name])), inputs(BY_NAME[name], "none")
    given.pop("decoder_input_ids", None)
    settings = {"max_new_tokens": 4, "num_beams": beams, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(**given, **settings)
    with observe(model) as observer:
        assert torch.equal(model.generate(**given, **settings), expected)
    texts = len(expected)
    last = list(observer.table().rows())[-1]
    asked = TOKENS + 3 if last["kind"] == "self" else 4
    assert last["queries"] == texts * beams * asked


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", ["BERT", "Mistral"])
def test_looking_changes_no_bit_and_leaves_nothing(name, padding):
    model, given = attach(build(BY_NAME[name])).train(), inputs(BY_NAME[name], padding)
    found = []
    for looks in (False, True):
        torch.manual_seed(5)
        model.zero_grad()
        if looks:
            with observe(model):
                output = model(**given)[0]
        else:
            output = model(**given)[0]
        output.sum().backward()
        grads = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        found.append([output, *grads, torch.rand(1)])
    assert all(torch.equal(mine, other) for mine, other in zip(*found, strict=True))
    assert not any(each._forward_pre_hooks for each in model.modules())


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, **given):
        return self.module(**given)


@pytest.mark.parametrize("way", [("BERT", "right"), *slow(("GPT-2", "left"), ("Mistral", "none"))])
def test_a_compiled_and_wrapped_model_is_the_same_and_seen(way):
    name, padding = way
    model, given = attach(build(BY_NAME[name])), inputs(BY_NAME[name], padding)
    with torch.no_grad():
        expected = model(**given)[0]
        compiled = torch.compile(Wrapped(model), backend="eager")
        assert float((compiled(**given)[0] - expected).abs().max()) < 1e-5
    assert rows_of(compiled, given) == rows_of(model, given)
