"""Heads of attached models are scored, cut and shared: gate 0 equals cut, and what was cut comes back from files."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from headwise import BackendError, ConfigError, InputError
from headwise.contracts import HeadId
from headwise.heads import HeadScores, gated, gradient_importance, observe, plan, prune, random_scores, representatives
from headwise.integrations.transformers import TransformersLayout, attach, detach, load, save
from headwise.integrations.transformers.projections import find
from tests.oracle.architectures import EQUAL, build, inputs

BY_NAME = {each.name: each for each in EQUAL}
UNCUT = ("Phi-3", "OLMo 2")
CUT = [each.name for each in EQUAL if each.name not in UNCUT]
SHARED = ["BERT", "DistilBERT", "Llama", "T5", "BART", "ViT", "CLIP"]
NEAR = 1e-5


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()


def first(model, given):
    with torch.no_grad():
        return model(**given)[0]


def uneven(layout):
    """Keep other heads in every second layer: a group of many, one head of each group, or two of three."""
    keep = {}
    for i, place in enumerate(layout.places):
        grouped = place.kv_heads < len(place.heads)
        one_each = tuple(group[-1] for group in place.groups)
        keep[place.path] = (place.groups[-1] if i % 2 else one_each) if grouped else place.heads[i % 2 :][:2]
    return keep


def gates_of(layout, keep):
    return {
        place.path: torch.tensor([float(name in keep[place.path]) for name in place.heads]) for place in layout.places
    }


@pytest.mark.parametrize("name", CUT)
def test_a_gate_of_0_equals_a_cut_head_that_comes_back_from_files(name, tmp_path):
    model, given = attach(build(BY_NAME[name])), inputs(BY_NAME[name], "none")
    layout = TransformersLayout(model)
    keep = uneven(layout)
    smaller = layout.cut(keep)
    assert sum(x.numel() for x in smaller.parameters()) < sum(x.numel() for x in model.parameters())
    with gated(model, gates_of(layout, keep)):
        expected = first(model, given)
    found = first(smaller, given)
    assert float((found - expected).abs().max()) <= NEAR * float(expected.abs().max())
    save(smaller, tmp_path)
    again = load(tmp_path)
    assert torch.equal(first(again, given), found)
    assert {place.path: place.heads for place in TransformersLayout(again).places} == keep


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "T5", "BART", "Whisper"])
def test_a_cut_model_generates_as_a_gated_one(name):
    model, given = attach(build(BY_NAME[name])), inputs(BY_NAME[name], "none")
    given.pop("decoder_input_ids", None)
    settings = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    layout = TransformersLayout(model)
    keep = uneven(layout)
    with gated(model, gates_of(layout, keep)):
        expected = model.generate(**given, **settings)
    assert torch.equal(layout.cut(keep).generate(**given, **settings), expected)


# T5 normalises in float32, so that small steps drown in noise.
@pytest.mark.parametrize(("name", "step"), [("BERT", 1e-4), ("GPT-2", 1e-4), ("ALBERT", 1e-4), ("T5", 1e-2)])
def test_importance_is_the_slope_of_each_example(name, step):
    model, given = attach(build(BY_NAME[name]).double()), inputs(BY_NAME[name], "right")

    def losses(held, _=None):
        return held(**given)[0].square().flatten(1).mean(1)

    scores = gradient_importance(model, [None], losses).scores
    for place in TransformersLayout(model).places[-2:]:
        for at, head in enumerate(place.heads):
            found = []
            for sign in (1, -1):
                gate = torch.ones(len(place.heads), dtype=torch.float64)
                gate[at] += sign * step
                with torch.no_grad(), gated(model, {place.path: gate}):
                    found.append(losses(model))
            slope = ((found[0] - found[1]) / (2 * step)).abs().mean()
            assert scores[HeadId(place.path, head)] == pytest.approx(
                float(slope), rel=1e-2 if name == "T5" else 1e-4, abs=1e-9
            )


@pytest.mark.parametrize("name", ["BERT", "Mistral", "T5"])
def test_a_plan_prunes_and_prunes_again(name):
    model, given = attach(build(BY_NAME[name])), inputs(BY_NAME[name], "right")
    once = prune(TransformersLayout(model), plan(TransformersLayout(model), random_scores(model), 0.7))
    least = plan(TransformersLayout(once), random_scores(once, seed=1), 0.1)
    twice = prune(TransformersLayout(once), least)
    with gated(model, gates_of(TransformersLayout(model), least.keep)):
        expected = first(model, given)
    assert float((first(twice, given) - expected).abs().max()) <= NEAR * float(expected.abs().max())
    with torch.no_grad(), observe(twice) as observer:
        twice(**given)
    assert [seam.heads for seam in observer.table().seams] == list(least.keep.values())


@pytest.mark.parametrize("name", SHARED)
def test_heads_share_keys_and_values(name, tmp_path):
    model, given = attach(build(BY_NAME[name])), inputs(BY_NAME[name], "none")
    shared = TransformersLayout(model).share(1)
    assert {place.kv_heads for place in TransformersLayout(shared).places} == {1}
    save(shared, tmp_path)
    assert torch.equal(first(load(tmp_path), given), first(shared, given))
    whole = attach(build(BY_NAME[name]))
    for layer in find(whole):  # where the heads to share are equal, nothing is lost
        for product, rows_GD in zip(layer.products[1:], layer.rows[1:], strict=True):
            for tensor in product.parameters():
                tensor.data[rows_GD] = tensor.data[rows_GD[:1]].clone()
    expected = first(whole, given)
    found = first(TransformersLayout(whole).share(1), given)
    assert float((found - expected).abs().max()) <= NEAR * float(expected.abs().max())


@pytest.mark.parametrize("name", SHARED)
def test_the_head_that_is_needed_stands_for_those_that_are_not(name):
    model, given = attach(build(BY_NAME[name])), inputs(BY_NAME[name], "none")
    layout = TransformersLayout(model)
    needed = {place.path: place.groups[-1] for place in layout.places}
    closed = gates_of(layout, needed)
    scores = {
        HeadId(place.path, head): float(head in needed[place.path]) for place in layout.places for head in place.heads
    }
    shared = layout.share(1, representatives(layout, HeadScores("made up", scores), 1))
    with gated(model, closed), gated(shared, closed):
        assert float((first(shared, given) - first(model, given)).abs().max()) <= NEAR


def test_names_outlive_detaching_and_training_goes_on():
    model, given = attach(build(BY_NAME["T5"])), inputs(BY_NAME["T5"], "none")
    layout = TransformersLayout(model)
    smaller = layout.cut({place.path: place.heads[1:] for place in layout.places})
    expected = first(smaller, given)
    detach(smaller)
    assert torch.equal(first(attach(smaller), given), expected)
    smaller(**given)[0].sum().backward()
    gradients = [each.grad for each in smaller.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", UNCUT)
def test_projections_that_are_not_known_are_refused(name):
    with pytest.raises(BackendError, match=r"must project its heads in a way that is known; got .* in \w+ at model"):
        TransformersLayout(attach(build(BY_NAME[name])))


def test_what_cannot_be_cut_or_shared_is_told(tmp_path):
    with pytest.raises(InputError, match="must be an attached model"):
        TransformersLayout(build(BY_NAME["BERT"]))
    with pytest.raises(BackendError, match=r"must have products of their own; got one for all in GPT2Attention"):
        TransformersLayout(attach(build(BY_NAME["GPT-2"]))).share(1)
    with pytest.raises(BackendError, match="must answer as the whole one"):
        TransformersLayout(attach(build(BY_NAME["OPT"]))).share(1)
    with pytest.raises(ConfigError, match="`kv_heads` must divide"):
        TransformersLayout(attach(build(BY_NAME["BERT"]))).share(2)
    with pytest.raises(InputError, match="must be a file; got none"):
        load(tmp_path)
    save(attach(build(BY_NAME["BERT"])), tmp_path)
    described = json.loads((tmp_path / "headwise.json").read_text())
    for change, told in (
        ({"format": 9}, "must be JSON of format 1"),
        ({"model": "NoSuchModel"}, "must name a model of transformers"),
        ({"model": "is_torch_available"}, "must name a model of transformers"),
        ({"model": "AutoTokenizer"}, "must name a model of transformers"),
        ({"layers": {}}, "must name the layers"),
        ({"layers": {place: {"heads": [7], "kv_heads": 1} for place in described["layers"]}}, "must name heads"),
        ({"layers": {place: {"heads": [0], "kv_heads": 1} for place in described["layers"]}}, "must fit the config"),
    ):
        (tmp_path / "headwise.json").write_text(json.dumps(described | change))
        with pytest.raises(InputError, match=told):
            load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json` must be a file; got none"):
        load(tmp_path)
