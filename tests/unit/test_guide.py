"""Guided alignment: one head is taught to look where IBM-1 expects it to, and nothing else changes."""

from dataclasses import replace

import pytest
import torch

from headwise.contracts import PairBatch, Scored
from headwise.errors import InputError
from headwise.models import DecoderConfig, EncoderConfig, Seq2Seq, Seq2SeqConfig
from headwise.tasks.align import AligningHead, Lexicon, find_heads, head_weights
from headwise.tasks.guide import guided, taught_head, teacher
from tests.unit.test_align import reversed_pairs

PAIRS = reversed_pairs(60)
FAR = reversed_pairs(400, seed=2)
LEXICON = Lexicon([replace(FAR, source_length_B=FAR.source_length_B - 1)])
"""As a teacher learns, but without its preference for near words: these stand in reverse."""


def build(*, dropout=0.0, **decoder):
    torch.manual_seed(0)
    encoder = EncoderConfig(
        vocabulary=67, d_model=32, layers=2, heads=4, d_ff=48, positions="sinusoidal", dropout=dropout
    )
    return Seq2Seq(Seq2SeqConfig(encoder, DecoderConfig(**decoder)))


def plain(model, batch, **given):
    return model.loss(batch, **given)


def apart(model, batch, **given):
    """Give what teaching adds to the loss, with weight 1."""
    whole = guided(lambda *pair: plain(*pair, **given), LEXICON, weight=1.0)
    return whole(model, batch).sum - plain(model, batch, **given).sum


def part(batch, first, last):
    """Cut pairs out of a batch, with no more padding than they need."""
    keys, words = int(batch.source_length_B[first:last].max()), int(batch.target_length_B[first:last].max())
    cut = {name: getattr(batch, name)[first:last] for name in ("source_length_B", "target_length_B", "row_B")}
    return PairBatch(source_BK=batch.source_BK[first:last, :keys], target_BT=batch.target_BT[first:last, :words], **cut)


@pytest.mark.parametrize(("layers", "place"), [(1, 0), (2, 0), (3, 1), (6, 4)])
def test_the_last_layer_but_one_is_taught(layers, place):
    head = taught_head(build(layers=layers))
    assert head == AligningHead(f"decoder.layers.{place}.cross_attention.attend", 0, reads=True)


@pytest.mark.parametrize("decoder", [{}, {"cross_kv_heads": 2}, {"cross_heads": ((3, 5), (1, 2, 5))}])
def test_what_teaching_adds_is_a_cross_entropy(decoder):
    model = build(**decoder).double()
    weights_BTK = head_weights(model, PAIRS)[taught_head(model)]
    words = replace(PAIRS, source_length_B=PAIRS.source_length_B - 1)
    expected = 0.0
    for b, share_TK in enumerate(LEXICON.posterior(words)):
        for t in range(PAIRS.target_length_B[b] - 2):
            keys = int(PAIRS.source_length_B[b])
            wanted = torch.cat([share_TK[t, : keys - 1], 1 - share_TK[t].sum(-1, keepdim=True)])
            expected -= (wanted * weights_BTK[b, t, :keys].log()).sum()
    torch.testing.assert_close(apart(model, PAIRS), expected)


def test_a_teacher_leaves_out_the_end_and_prefers_near_words():
    taught, batch = teacher([FAR, PAIRS]), replace(PAIRS, source_length_B=PAIRS.source_length_B - 1)
    expected = Lexicon([replace(each, source_length_B=each.source_length_B - 1) for each in (FAR, PAIRS)], nearness=8.0)
    assert torch.equal(taught.posterior(batch), expected.posterior(batch))
    assert not taught.posterior(batch).gather(2, batch.source_length_B[:, None, None].expand(-1, 7, 1)).any()


def test_parts_add_up_to_the_whole():
    model = build()
    loss = guided(plain, LEXICON, weight=0.5)
    whole = loss(model, PAIRS)
    pieces = loss(model, part(PAIRS, 0, 7)) + loss(model, part(PAIRS, 7, 60))
    torch.testing.assert_close(pieces.sum, whole.sum, rtol=1e-5, atol=1e-3)
    assert pieces.count == whole.count


def test_rdrop_teaches_both_readings():
    model = build()
    torch.testing.assert_close(apart(model, PAIRS, rdrop=1.0), 2 * apart(model, PAIRS), rtol=1e-4, atol=1e-2)


def test_under_autocast_the_weights_keep_their_digits():
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = apart(model, PAIRS)
    torch.testing.assert_close(lowered, apart(model, PAIRS), rtol=1e-2, atol=0.0)


def test_a_weight_that_is_almost_0_is_still_taught():
    model = build(layers=1)
    attention = model.decoder.layers[0].cross_attention
    attention.query.weight.data *= 30
    scored = guided(lambda *_: _nothing(model, PAIRS), LEXICON, weight=1.0)(model, PAIRS)
    scored.sum.backward()
    assert scored.sum.isfinite()
    gradient = attention.query.weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 1e-3


def _nothing(model, batch):
    """Have the model read a batch without a loss."""
    return Scored(0.0 * model.loss(batch).sum, torch.ones(()))


def test_only_what_comes_before_the_head_is_taught():
    model = build(layers=3)
    scored = guided(_nothing, LEXICON, weight=1.0)(model, PAIRS)
    scored.sum.backward()
    own = model.decoder.layers[1].cross_attention
    width = own.d_head
    assert own.query.weight.grad[:width].abs().max() > 0
    assert not own.query.weight.grad[width:].any()
    assert not own.value.weight.grad.any()
    assert not model.decoder.layers[2].cross_attention.query.weight.grad.any()
    assert model.encoder.tokens.table.weight.grad.any()


def test_no_hook_stays_when_the_loss_fails():
    model = build()

    def failing(model, batch):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        guided(failing, LEXICON, weight=1.0)(model, PAIRS)
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_a_taught_head_is_found_and_aligns():
    model = build(dropout=0.1).train()
    loss = guided(plain, LEXICON, weight=5.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(70):
        scored = loss(model, reversed_pairs(48, seed=9 + step))
        (scored.sum / scored.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    aligner = find_heads(model.eval(), [PAIRS], Lexicon([FAR]))
    assert aligner.heads[0] == taught_head(model)
    assert aligner.agreement > 0.8


def test_a_model_without_cross_attention_is_told():
    with pytest.raises(InputError, match=r"must have cross attention of `headwise\.DecoderLayer`; got Linear without"):
        guided(plain, LEXICON, weight=1.0)(torch.nn.Linear(2, 2), replace(PAIRS))
