"""Heads of encoder-decoders are gated, scored and cut: those of the encoder, the decoder's own, and those across."""

import pytest
import torch

from headwise import ConfigError
from headwise.contracts import HeadId, PairBatch
from headwise.heads import gated, gradient_importance, plan, prune, random_scores
from headwise.models import DecoderConfig, EncoderConfig, OwnLayout, Seq2Seq, Seq2SeqConfig, load, save

RANDOM = torch.Generator().manual_seed(0)
SOURCE, TARGET = (torch.randint(3, 40, (3, length), generator=RANDOM) for length in (9, 7))
LENGTHS, WRITTEN = torch.tensor([9, 5, 3]), torch.tensor([7, 4, 6])
KINDS = {"encoder": (0, 2), "self": (1, 2, 3), "cross": (3,)}


def built(copy=False, **settings):
    torch.manual_seed(0)
    encoder = {"vocabulary": 40, "d_model": 24, "layers": 2, "heads": 4, "d_ff": 40, "positions": "relative"} | settings
    model = Seq2Seq(Seq2SeqConfig(EncoderConfig(**encoder), DecoderConfig(layers=1), copy=copy)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def states(model):
    with torch.no_grad():
        return model(SOURCE, LENGTHS, TARGET, WRITTEN)


def kind_of(path):
    return "encoder" if path.startswith("encoder") else "cross" if "cross" in path else "self"


def uneven(model):
    return {place.path: KINDS[kind_of(place.path)] for place in OwnLayout(model).places}


def gates_of(keep):
    return {path: torch.tensor([float(name in names) for name in range(4)]) for path, names in keep.items()}


@pytest.mark.parametrize("positions", ["relative", "alibi", "rotary", "sinusoidal"])
def test_a_gate_of_0_equals_a_cut_head(positions):
    model = built(positions=positions)
    keep = uneven(model)
    assert [kind_of(path) for path in keep] == ["encoder", "encoder", "self", "cross"]
    smaller = OwnLayout(model).cut(keep)
    with gated(model, gates_of(keep)):
        torch.testing.assert_close(states(smaller), states(model))
    assert smaller.config.encoder.heads == ((0, 2), (0, 2))
    assert (smaller.config.decoder.heads, smaller.config.decoder.cross_heads) == (((1, 2, 3),), ((3,),))


@pytest.mark.parametrize("copy", [False, True])
def test_a_cut_model_writes_step_by_step_and_comes_back(copy, tmp_path):
    model = built(copy=copy)
    smaller = OwnLayout(model).cut(uneven(model))
    save(smaller, tmp_path)
    again = load(tmp_path)
    assert torch.equal(states(again), states(smaller))
    with torch.no_grad():
        state = again.begin(SOURCE, LENGTHS)
        written = torch.stack([again.step(TARGET[:, [i]], state)[:, 0] for i in range(4)], 1)
        if not copy:
            torch.testing.assert_close(written, again.logits(states(again))[:, :4])
    loss = again.loss(PairBatch(SOURCE, LENGTHS, TARGET, WRITTEN, torch.arange(3)))
    assert loss.sum.isfinite()


def test_a_plan_cuts_the_least_needed_of_all_three_kinds():
    model = built()

    def losses(held, _):
        return held(SOURCE, LENGTHS, TARGET, WRITTEN).square().flatten(1).mean(1)

    scores = gradient_importance(model, [None], losses)
    for head in (HeadId("decoder.layers.0.cross_attention.attend", 2), HeadId("encoder.layers.1.attention.attend", 0)):
        found = []
        for sign in (1, -1):
            gate = torch.ones(4, dtype=torch.float64)
            gate[head.head] += sign * 1e-6
            with torch.no_grad(), gated(model, {head.place: gate}):
                found.append(losses(model, None))
        slope = ((found[0] - found[1]) / 2e-6).abs().mean()
        assert scores.scores[head] == pytest.approx(float(slope), rel=1e-4)
    chosen = plan(OwnLayout(model), scores, 0.5)
    assert sum(map(len, chosen.keep.values())) == 8
    assert isinstance(prune(OwnLayout(model), chosen), Seq2Seq)
    assert plan(OwnLayout(model), random_scores(model), 0.1).share == 0.25


def test_heads_share_keys_and_values():
    model = built()
    shared = OwnLayout(model).share(2)
    assert shared.config.decoder.cross_kv_heads == (2,)
    layer, before = (held.decoder.layers[0].cross_attention for held in (shared, model))
    torch.testing.assert_close(layer.value.weight[6:], (before.value.weight[12:18] + before.value.weight[18:]) / 2)
    with pytest.raises(ConfigError, match="`kv_heads`"):
        OwnLayout(model).share(3)
