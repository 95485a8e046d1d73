"""Heads are gated, scored and cut: gates are affine, importance is a derivative, and what is cut is gone for good."""

import math

import pytest
import torch
from torch.nn import functional as F

from headwise import ConfigError, InputError
from headwise.contracts import HeadId
from headwise.heads import (
    HeadScores,
    Plan,
    ablate,
    gated,
    gradient_importance,
    plan,
    plan_within,
    prune,
    random_scores,
    representatives,
)
from headwise.models import Classifier, ClassifierConfig, EncoderConfig, OwnLayout, load, save

TOKENS, LENGTHS = torch.randint(1, 50, (3, 11), generator=torch.Generator().manual_seed(0)), torch.tensor([11, 7, 2])
TARGETS = torch.tensor([0, 1, 2])
PLACES = [f"encoder.layers.{i}.attention.attend" for i in range(2)]


def built(dtype=torch.float64, pooling="mean", **settings):
    torch.manual_seed(0)
    encoder = EncoderConfig(**{"vocabulary": 50, "d_model": 24, "layers": 2, "heads": 4, "d_ff": 40} | settings)
    model = Classifier(ClassifierConfig(encoder, classes=("a", "b", "c"), pooling=pooling)).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def logits(model):
    with torch.no_grad():
        return model(TOKENS, LENGTHS)


def losses(model, targets=TARGETS):
    return F.cross_entropy(model(TOKENS, LENGTHS), targets, reduction="none")


def test_a_gate_of_1_changes_no_bit_and_nothing_is_left():
    model = built()
    plain = logits(model)
    with gated(model, {place: torch.ones(4) for place in PLACES}):
        assert torch.equal(logits(model), plain)
    with pytest.raises(RuntimeError, match="stop"), gated(model, {PLACES[0]: torch.zeros(4)}):
        raise RuntimeError("stop")
    assert torch.equal(logits(model), plain)


def test_a_layer_is_affine_in_its_gates():
    layer = built().encoder.layers[0].attention
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    one, other = torch.rand(2, 4, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)

    def given(gate):
        with gated(layer, {"attend": gate}):
            return layer(x)

    torch.testing.assert_close(given(0.3 * one + 0.7 * other), 0.3 * given(one) + 0.7 * given(other))


@pytest.mark.parametrize("positions", ["rotary", "relative", "alibi", "learned"])
@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_a_gate_of_0_equals_a_cut_head(positions, kv_heads):
    model = built(positions=positions, kv_heads=kv_heads)
    keep = {PLACES[0]: (0, 2), PLACES[1]: (1, 2) if kv_heads != 2 else (2, 3)}
    gates = {place: torch.tensor([float(name in names) for name in range(4)]) for place, names in keep.items()}
    smaller = OwnLayout(model).cut(keep)
    assert smaller.config.encoder.heads == tuple(keep.values())
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    with gated(model, gates):
        torch.testing.assert_close(logits(smaller), logits(model))


@pytest.mark.parametrize("positions", ["relative", "alibi"])
def test_a_cut_model_is_an_ordinary_one_that_can_be_cut_again(positions, tmp_path):
    once = OwnLayout(built(positions=positions)).cut({PLACES[0]: (0, 2), PLACES[1]: (1, 2)})
    save(once, tmp_path / "once")
    again = load(tmp_path / "once")
    assert torch.equal(logits(again), logits(once))
    twice = OwnLayout(again).cut({PLACES[0]: (2,), PLACES[1]: (1, 2)})
    save(twice, tmp_path / "twice")
    back = load(tmp_path / "twice")
    assert back.config.encoder.heads == ((2,), (1, 2))
    assert torch.equal(logits(back), logits(twice))


def test_importance_is_the_slope_of_each_example():
    model, step = built(), 1e-6
    scores = gradient_importance(model, [None], lambda held, _: losses(held)).scores
    for place in PLACES:
        for head in range(4):
            found = []
            for sign in (1, -1):
                gate = torch.ones(4, dtype=torch.float64)
                gate[head] += sign * step
                with torch.no_grad(), gated(model, {place: gate}):
                    found.append(losses(model))
            slope = ((found[0] - found[1]) / (2 * step)).abs().mean()
            assert scores[HeadId(place, head)] == pytest.approx(float(slope), rel=1e-4)


def test_gates_go_where_the_model_is():
    layer = built().encoder.layers[0].attention.to("meta")
    with gated(layer, {"attend": torch.zeros(4)}):
        assert layer(torch.empty(2, 5, 24, device="meta", dtype=torch.float64)).is_meta


def test_importance_needs_a_loss_that_runs_the_model():
    with pytest.raises(InputError, match=r"every attention layer must reach the loss; got no call of \['encoder"):
        gradient_importance(built(), [0], lambda model, _: model.encoder.tokens.table.weight.sum(1))


def test_importance_of_batches_is_that_of_all():
    model = built()

    def loss(held, rows):
        return F.cross_entropy(held(TOKENS[rows], LENGTHS[rows]), TARGETS[rows], reduction="none")

    whole = gradient_importance(model, [[0, 1, 2]], loss).scores
    parts = gradient_importance(model, [[0], [1, 2]], loss).scores
    assert parts == pytest.approx(whole)


def test_ablation_is_the_loss_without_the_head():
    model = built()
    mean = lambda held: losses(held).mean().item()  # noqa: E731
    scores = ablate(model, mean).scores
    smaller = OwnLayout(model).cut({PLACES[0]: (0, 1, 3), PLACES[1]: (0, 1, 2, 3)})
    assert scores[HeadId(PLACES[0], 2)] == pytest.approx(mean(smaller) - mean(model), abs=1e-9)
    pair = [HeadId(PLACES[0], 2), HeadId(PLACES[1], 0)]
    together = ablate(model, mean, [pair]).scores
    smaller = OwnLayout(model).cut({PLACES[0]: (0, 1, 3), PLACES[1]: (1, 2, 3)})
    assert together == pytest.approx(dict.fromkeys(pair, mean(smaller) - mean(model)))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.75, 1.0])
def test_a_plan_keeps_the_best_and_one_a_layer(keep):
    model = built(pooling="attention")
    scores = random_scores(model, seed=3)
    chosen = Plan.from_json(plan(OwnLayout(model), HeadScores.from_json(scores.to_json()), keep).to_json())
    assert sum(map(len, chosen.keep.values())) == max(2, round(8 * keep))
    assert all(chosen.keep.values())
    assert prune(OwnLayout(model), chosen).config.encoder.heads == tuple(chosen.keep[place] for place in PLACES)
    if keep == 0.5:
        ranked = [head for head in scores.ranked() if head.place in PLACES]
        best = [head for head in ranked if head.head in chosen.keep[head.place]]
        assert best[0] == ranked[0]


def test_a_plan_of_grouped_heads_keeps_whole_groups():
    model = built(kv_heads=2)
    chosen = plan(OwnLayout(model), random_scores(model), 0.5)
    assert set(chosen.keep.values()) <= {(0, 1), (2, 3), (0, 1, 2, 3)}
    assert set(prune(OwnLayout(model), chosen).config.encoder.kv_heads) <= {1, 2}


def test_a_plan_keeps_within_a_limit():
    model = built()
    count = lambda held: sum(p.numel() for p in held.parameters())  # noqa: E731
    for heads in range(2, 9):
        limit = count(prune(OwnLayout(model), plan(OwnLayout(model), random_scores(model), heads / 8)))
        chosen = plan_within(OwnLayout(model), random_scores(model), lambda held, limit=limit: count(held) <= limit)
        assert sum(map(len, chosen.keep.values())) == heads
        most = plan_within(
            OwnLayout(model), random_scores(model), lambda held, limit=limit: count(held) >= limit, heads="fewest"
        )
        assert sum(map(len, most.keep.values())) == heads
    with pytest.raises(ConfigError, match="Loosen"):
        plan_within(OwnLayout(model), random_scores(model), lambda held: False)


def test_heads_share_keys_and_values():
    model = built()
    shared = OwnLayout(model).share(2)
    assert shared.config.encoder.kv_heads == (2, 2)
    layer, before = (held.encoder.layers[1].attention for held in (shared, model))
    torch.testing.assert_close(layer.key.weight[:6], (before.key.weight[:6] + before.key.weight[6:12]) / 2)
    # Where the heads to share are equal, nothing is lost.
    same = OwnLayout(built(kv_heads=2))
    for path, each in same.model.named_modules():
        if path.endswith("attention"):
            for name in ("key", "value"):
                half = getattr(each, name).weight[:6]
                getattr(each, name).weight.data = torch.cat([half, half])
                getattr(each, name).bias.data[6:] = getattr(each, name).bias.data[:6]
    torch.testing.assert_close(logits(same.share(1)), logits(same.model))


def test_the_head_that_is_needed_stands_for_those_that_are_not():
    torch.manual_seed(0)
    model = built()
    for path, layer in model.named_modules():
        if path.endswith("attention"):
            layer.output.weight.data.unflatten(1, (4, 6))[:, [0, 2, 3]] = 0  # what these heads see is not read
    scores = gradient_importance(model, [None], lambda held, _: losses(held))
    chosen = representatives(OwnLayout(model), scores, 1)
    assert {tuple(weights_GN.flatten().tolist()) for weights_GN in chosen.values()} == {(0, 1, 0, 0)}
    torch.testing.assert_close(logits(OwnLayout(model).share(1, chosen)), logits(model))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(logits(OwnLayout(model).share(1)), logits(model))
    few = representatives(OwnLayout(built(kv_heads=2)), random_scores(built(kv_heads=2)), 1)
    assert {tuple(weights_GN.shape) for weights_GN in few.values()} == {(1, 2)}
    with pytest.raises(InputError, match="scores must be of this model's"):
        representatives(OwnLayout(model), HeadScores("random", {}), 1)
    with pytest.raises(ConfigError, match="`kv_heads` must divide"):
        representatives(OwnLayout(model), scores, 3)


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        ({PLACES[0]: (0, 1)}, "of this model"),
        ({PLACES[0]: (), PLACES[1]: (0,)}, "at least one head"),
        ({PLACES[0]: (9,), PLACES[1]: (0,)}, "heads of the model"),
        ({PLACES[0]: (0, 1, 2), PLACES[1]: (0, 1)}, "whole groups"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(keep, told):
    with pytest.raises(InputError, match=told):
        prune(OwnLayout(built(kv_heads=2)), Plan("random", keep, {}))


def test_what_cannot_be_is_refused():
    model = built()
    with pytest.raises(InputError, match="must name seams"):
        gated(model, {"nowhere": torch.ones(4)}).__enter__()
    with pytest.raises(InputError, match=r"\(H,\) or \(B, H\)"):
        gated(model, {PLACES[0]: torch.ones(3)}).__enter__()
    with pytest.raises(ConfigError, match="`keep`"):
        plan(OwnLayout(model), random_scores(model), 0)
    with pytest.raises(ConfigError, match="`kv_heads`"):
        OwnLayout(model).share(3)
    with pytest.raises(InputError, match="got none for"):
        plan(OwnLayout(model), HeadScores("random", {HeadId(PLACES[0], 0): math.pi}), 0.5)
    with pytest.raises(InputError, match="at least one example"):
        gradient_importance(model, [], lambda held, _: losses(held))
