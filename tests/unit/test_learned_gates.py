"""Gates are learned: closed ones cost nothing, drawn ones are affine in the output, and the useless head goes first."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from headwise import AttentionBlock, ConfigError, InputError, MultiHeadAttention
from headwise.contracts import HeadId
from headwise.heads import LearnedGates, gated
from headwise.models import Classifier, ClassifierConfig, EncoderConfig, OwnLayout

TOKENS, LENGTHS = torch.randint(1, 50, (3, 11), generator=torch.Generator().manual_seed(0)), torch.tensor([11, 7, 2])


def built(pooling="mean", heads=4):
    torch.manual_seed(0)
    encoder = EncoderConfig(vocabulary=50, d_model=24, layers=2, heads=heads, d_ff=40)
    return Classifier(ClassifierConfig(encoder, classes=("a", "b"), pooling=pooling)).eval()


def logits(model):
    with torch.no_grad():
        return model(TOKENS, LENGTHS)


def opened(gates, *values):
    for opened_H, value in zip(gates.opened, values, strict=True):
        opened_H.data.copy_(torch.tensor(value) / gates.rate)


@pytest.mark.parametrize("rate", [1.0, 50.0])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_gates_of_evaluation_are_gates_and_fold_into_the_weights(rate, pooling):
    model = built(pooling)
    plain = logits(model)
    gates = LearnedGates(model, rate=rate)
    opened(gates, [9.0, -9.0, 9.0, 0.0], [-9.0, 9.0, 9.0, 9.0])
    found = logits(gates)
    values = gates.values()
    assert [value.tolist() for value in values.values()] == [[1, 0, 1, 0.5], [0, 1, 1, 1]]
    torch.testing.assert_close(logits(gates.folded()), found)
    assert logits(gates.remove()).equal(plain)
    with gated(model, values):
        torch.testing.assert_close(logits(model), found)
    assert not any(module._forward_hooks for module in gates.folded().modules())
    assert set(gates.scores().scores) >= {HeadId(p.path, n) for p in OwnLayout(model).places for n in p.heads}


def test_drawn_gates_are_often_whole_and_open_as_often_as_is_said():
    torch.manual_seed(1)
    gates = LearnedGates(MultiHeadAttention(16, 4)).train()
    opened(gates, [-2.0, -1.0, 0.5, 3.0])
    drawn_NH = torch.stack([gates._drawn(gates.opened[0]) for _ in range(4000)])
    said = list(gates.scores().scores.values())
    assert (drawn_NH > 0).float().mean(0).tolist() == pytest.approx(said, abs=0.03)
    assert float(gates.penalty().detach()) == pytest.approx(sum(said) / 4)
    assert ((drawn_NH == 0) | (drawn_NH == 1)).float().mean() > 0.5
    with torch.no_grad():
        x = torch.randn(1, 5, 16)
        assert not torch.equal(gates(x), gates(x)), "each call draws anew"


def test_a_faster_gate_moves_faster_with_the_same_gradient():
    found = {}
    for rate in (1.0, 40.0):
        torch.manual_seed(0)
        gates = LearnedGates(MultiHeadAttention(16, 4), rate=rate)
        (gates(torch.ones(1, 5, 16)).sum() + gates.penalty()).backward()
        found[rate] = gates.opened[0].grad
    torch.testing.assert_close(found[40.0], found[1.0])


def test_heads_that_do_nothing_close_first():
    torch.manual_seed(0)
    block, teacher = AttentionBlock(16, 4), AttentionBlock(16, 4)
    teacher.load_state_dict(block.state_dict())
    for held in (block, teacher):
        held.attention.output.weight.data[:, 8:] *= 1e-3
    gates = LearnedGates(block, rate=20.0).train()
    optimizer = torch.optim.AdamW(gates.parameters(), lr=1e-3, weight_decay=0)
    for _ in range(150):
        x = torch.randn(8, 6, 16)
        loss = F.mse_loss(gates(x)[0], teacher(x)[0].detach()) + 0.1 * gates.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = list(gates.scores().scores.values())
    assert max(scores[2:]) < 0.5 < min(scores[:2])


def test_what_cannot_have_gates_is_refused():
    with pytest.raises(InputError, match="several heads"):
        LearnedGates(built(heads=1))
    with pytest.raises(InputError, match=r"must hold `headwise\.Attend`"):
        LearnedGates(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="`rate`"):
        LearnedGates(built(), rate=0)


def test_scores_are_plain_json():
    assert json.loads(LearnedGates(built()).scores().to_json())["by"] == "gates"
