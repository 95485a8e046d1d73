"""Attached models of Transformers equal their own eager attention: outputs, gradients, and what they generate."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers

from headwise import BackendError, InputError
from headwise.heads import observe
from headwise.integrations.transformers import TransformersLayout, attach, detach
from tests.oracle.architectures import (
    EQUAL,
    REFUSED,
    TOKENS,
    Architecture,
    build,
    document,
    inputs,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
BY_NAME = {each.name: each for each in (*EQUAL, *REFUSED)}
GENERATING = [each for each in EQUAL if each.kind in ("decoder", "pair", "speech")]
NEAR = 1e-5
"""Largest difference beside the largest number, in float32: eager attention has no softmax of more digits."""


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()


def named(architectures):
    return pytest.mark.parametrize("architecture", architectures, ids=[each.name for each in architectures])


def assert_near(ours, theirs, where=...):
    """Hold one tensor against another where rows count."""
    ours, theirs = ours.detach()[where], theirs.detach()[where]
    assert float((ours - theirs).abs().max()) <= NEAR * float(theirs.abs().max())


class Rows:
    """Note which query rows may look at something, from the masks that eager attention gets."""

    def __enter__(self):
        self.live, self.given = None, transformers.AttentionMaskInterface._global_mapping["eager"]
        transformers.AttentionMaskInterface.register("eager", self.noted)
        return self

    def __exit__(self, *problem):
        transformers.AttentionMaskInterface.register("eager", self.given)

    def noted(self, **call):
        mask = self.given(**call)
        if mask is not None and mask.shape[2] == TOKENS:
            live = (mask > torch.finfo(mask.dtype).min).any(-1)[:, 0]
            self.live = live if self.live is None else self.live & live
        return mask


def paddings(architecture):
    return ("none",) if architecture.kind in ("image", "sound", "speech") else ("none", "left", "right")


@named(EQUAL)
def test_an_attached_model_equals_its_eager_self(architecture):
    theirs, ours = build(architecture), attach(build(architecture))
    for padding in paddings(architecture):
        given = inputs(architecture, padding)
        with Rows() as rows:
            expected = theirs(**given)[0]
        found = ours(**given)[0]
        by_token = rows.live is not None and expected.shape[:2] == rows.live.shape
        where = rows.live if by_token else torch.ones(expected.shape[:1], dtype=torch.bool)
        assert found.isfinite().all()
        assert_near(found, expected, where)
        pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
        for model, output in ((theirs, expected), (ours, found)):
            model.zero_grad()
            (output * pull)[where].sum().backward()
        pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
        largest = max(float(x.grad.abs().max()) for x in theirs.parameters() if x.grad is not None)
        for (name, mine), other in pairs:
            assert (mine.grad is None) == (other.grad is None), name
            if mine.grad is not None:
                assert float((mine.grad - other.grad).abs().max()) <= NEAR * largest, name


@named([each for each in EQUAL if each.kind in ("encoder", "decoder")])
def test_rows_that_see_nothing_are_finite_and_without_gradient(architecture):
    model, given = attach(build(architecture)), inputs(architecture, "left")
    embedded = model.get_input_embeddings()(given.pop("input_ids")).detach().requires_grad_()
    with Rows() as rows:
        build(architecture)(inputs_embeds=embedded, **given)
    output = model(inputs_embeds=embedded, **given)[0]
    assert output.isfinite().all()
    output[rows.live & given["attention_mask"].bool()].sum().backward()
    assert embedded.grad.isfinite().all()
    assert not embedded.grad[given["attention_mask"] == 0].any(), "padding has a part in what counts"


@pytest.mark.parametrize("beams", [1, 3])
@named(GENERATING)
def test_an_attached_model_generates_the_same(architecture, beams):
    padding = "right" if architecture.kind == "pair" else "left"
    given = inputs(architecture, "none" if architecture.kind == "speech" else padding)
    given.pop("decoder_input_ids", None)
    settings = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = build(architecture).generate(**given, **settings)
    found = attach(build(architecture)).generate(**given, **settings)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Mistral", "Gemma 2", "T5"])
def test_a_static_cache_generates_the_same(name):
    architecture = BY_NAME[name]
    given = inputs(architecture, "left")
    given.pop("decoder_input_ids", None)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    settings["cache_implementation"] = "static"
    expected = build(architecture).generate(**given, **settings)
    assert torch.equal(attach(build(architecture)).generate(**given, **settings), expected)


@named(REFUSED)
def test_a_refused_model_is_named_and_left_as_it_was(architecture):
    model = build(architecture)
    with pytest.raises(BackendError, match=r"; got .*\. \S"):
        attach(model)
    assert model.config._attn_implementation == "eager"
    assert not any("headwise" in name for name, _ in model.named_modules())


def test_attaching_leaves_no_trace_of_the_trial():
    model = build(BY_NAME["BERT"]).train()
    names, state = list(model.state_dict()), torch.get_rng_state()
    assert attach(model) is model
    assert list(model.state_dict()) == names
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(each.grad is None for each in model.parameters())


def test_detaching_gives_its_own_attention_back():
    for name in ("BERT", "CLIP", "T5"):
        architecture = BY_NAME[name]
        model, given = build(architecture), inputs(architecture, "right")
        expected = model(**given)[0]
        detach(attach(attach(model)))
        assert torch.equal(model(**given)[0], expected)
        assert model.config._attn_implementation == "eager"
        with pytest.raises(InputError, match="must hold"), observe(model):
            pass


def test_a_saved_model_is_an_ordinary_one(tmp_path):
    architecture = BY_NAME["BERT"]
    model, given = attach(build(architecture)), inputs(architecture, "right")
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert_near(again(**given)[0], model(**given)[0])


def test_weights_are_given_to_whoever_asks_for_them():
    for name in ("GPT-2", "BERT", "BART"):
        architecture = BY_NAME[name]
        given = inputs(architecture, "none")
        expected = build(architecture)(**given, output_attentions=True)
        found = attach(build(architecture))(**given, output_attentions=True)
        for kind in ("attentions", "decoder_attentions", "cross_attentions"):
            if kind in expected and expected[kind] is not None:
                for mine, other in zip(found[kind], expected[kind], strict=True):
                    assert_near(mine, other)


def test_bfloat16_runs_on_the_same_path():
    for name in ("BERT", "Gemma 2", "T5"):
        architecture = BY_NAME[name]
        given = inputs(architecture, "none")
        expected = build(architecture)(**given)[0]
        found = attach(build(architecture).bfloat16())(**given)[0]
        assert float((found - expected).detach().abs().max()) <= 0.1 * float(expected.detach().abs().max())


def test_what_is_not_honoured_is_refused():
    model = attach(build(BY_NAME["Llama"]))
    tokens = torch.tensor([[7, 8, 9]])
    with pytest.raises(BackendError, match=r"got `cu_seq_lens_q` from LlamaAttention\. Leave it out"):
        model(tokens, cu_seq_lens_q=torch.tensor([0, 3]))
    with pytest.raises(BackendError, match="got `indices` from"):
        model(tokens, indices=tokens)
    with pytest.raises(InputError, match=r"must be a transformers\.PreTrainedModel; got Linear"):
        attach(torch.nn.Linear(2, 2))
    bare = build(BY_NAME["Llama"])
    bare.set_attn_implementation("headwise")
    with pytest.raises(BackendError, match="must be attached before it runs"):
        bare(tokens)
    with pytest.raises(InputError, match=r"must have shape \(B, H, 3, 3\)"):
        model(tokens, attention_mask=torch.ones(1, 1, 3, 5, dtype=torch.bool))


def test_a_trial_that_misses_a_layer_names_it():
    model = build(BY_NAME["CLIP"])
    model.forward = model.get_text_features
    given = {name: x for name, x in inputs(BY_NAME["CLIP"], "none").items() if name != "pixel_values"}
    with pytest.raises(BackendError, match=r"got no call from vision_model\..*Pass `inputs`"):
        attach(model, given)


def test_the_table_of_architectures_is_current():
    assert len(EQUAL) >= 25
    reasons = {each.name: refusal(each) for each in REFUSED}
    text = document({each.name: kinds(each) for each in EQUAL}, {each.name: cuts(each) for each in EQUAL}, reasons)
    if os.environ.get("HEADWISE_WRITE"):
        DOCUMENT.write_text(text, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == text, "stale; HEADWISE_WRITE=1 makes this test write it anew"


def refusal(architecture: Architecture) -> str:
    with pytest.raises(BackendError) as caught:
        attach(build(architecture))
    return str(caught.value)


def cuts(architecture: Architecture) -> dict[str, str]:
    """Tell why heads cannot be cut, and why they cannot be shared; nothing where they can."""
    model = attach(build(architecture))
    tried = {
        "cut": lambda layout: layout.cut({place.path: place.groups[0] for place in layout.places}),
        "shared": lambda layout: layout.share(1),
    }
    found = {}
    for name, change in tried.items():
        try:
            change(TransformersLayout(model))
            found[name] = ""
        except BackendError as error:
            found[name] = str(error)
    return found


def kinds(architecture: Architecture) -> str:
    given = inputs(architecture, "none")
    model = attach(build(architecture))
    with torch.no_grad(), observe(model) as observer:
        model(**given)
    return ", ".join(sorted({row["kind"] for row in observer.table().rows()}, reverse=True))
