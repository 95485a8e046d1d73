"""Copying: the loss is that of the mixture, a cached step tells the same, and the gate decides."""

import torch

from headwise import EncoderConfig, Seq2Seq, Seq2SeqConfig, load, save
from headwise.contracts import PairBatch

SOURCE, SOURCE_LENGTH = torch.tensor([[5, 7, 9, 5], [6, 8, 0, 0]]), torch.tensor([4, 2])
TARGET, TARGET_LENGTH = torch.tensor([[1, 5, 12, 2], [1, 8, 2, 0]]), torch.tensor([4, 3])
BATCH = PairBatch(SOURCE, SOURCE_LENGTH, TARGET, TARGET_LENGTH, torch.arange(2))


def build(norm="pre", gate=0.5):
    torch.manual_seed(0)
    encoder = EncoderConfig(vocabulary=19, d_model=16, layers=2, heads=4, d_ff=24, norm=norm)
    model = Seq2Seq(Seq2SeqConfig(encoder, copy=True)).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.copying.gate.bias.data.fill_(gate)
    return model


def stepped(model):
    """Score every next token through the cache, shape (B, T, V)."""
    state = model.begin(SOURCE, SOURCE_LENGTH)
    return torch.cat([model.step(TARGET[:, t : t + 1], state) for t in range(3)], 1)


def test_the_loss_is_that_of_the_mixture_that_steps_give():
    for norm in ("pre", "post"):
        model = build(norm)
        log_p_BTV = stepped(model)
        torch.testing.assert_close(log_p_BTV.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
        right_BT = log_p_BTV.gather(2, TARGET[:, 1:, None])[..., 0]
        scored = model.loss(BATCH)
        torch.testing.assert_close(scored.sum, -right_BT[0].sum() - right_BT[1, :2].sum(), rtol=0, atol=1e-12)
        scored.sum.backward()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters())
        assert model.copying.share_H.grad.abs().min() > 0


def test_the_gradient_of_the_gate_is_that_of_differences():
    model, eps = build(), 1e-6
    model.loss(BATCH, smoothing=0.1).sum.backward()
    with torch.no_grad():
        found = []
        for shift in (eps, -2 * eps):
            model.copying.gate.bias += shift
            found.append(model.loss(BATCH, smoothing=0.1).sum)
    torch.testing.assert_close(model.copying.gate.bias.grad[0], (found[0] - found[1]) / (2 * eps), rtol=1e-6, atol=0)


@torch.no_grad()
def test_the_gate_decides_between_vocabulary_and_source():
    p_BTV = stepped(build(gate=1000.0)).exp()
    outside = torch.ones(19, dtype=torch.bool)
    outside[[5, 7, 9]] = False
    assert p_BTV[0, :, outside].max() < 1e-300
    plain = build(gate=-1000.0)
    hidden = plain(SOURCE, SOURCE_LENGTH, TARGET[:, :3], torch.tensor([3, 3]))
    torch.testing.assert_close(stepped(plain), plain.logits(hidden).log_softmax(-1), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_saved_model_copies_again(tmp_path):
    model = build()
    save(model, tmp_path)
    assert torch.equal(stepped(load(tmp_path)), stepped(model))
