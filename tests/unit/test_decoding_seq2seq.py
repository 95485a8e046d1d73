"""Decoding with our own model: cached steps, shared slots and leaving sentences change nothing (law 12)."""

import pytest
import torch

from headwise.models import DecoderConfig, EncoderConfig, Seq2Seq, Seq2SeqConfig
from headwise.tasks.decoding import Decoding, decode

VOCABULARY, BEGIN, END = 29, 1, 2


class Again:
    """Write with a model that remembers nothing: every step reads all that is written from the start."""

    def __init__(self, model):
        self.model = model

    def begin(self, source_BK, source_length_B):
        return Past(source_BK, source_length_B, torch.empty(len(source_BK), 1, 0, dtype=torch.long))

    def step(self, token_BW, past):
        past_BWT = past.written_BWT.expand(-1, token_BW.shape[1], -1)
        past.written_BWT = torch.cat([past_BWT, token_BW[..., None]], 2)
        beams = token_BW.shape[1]
        target_NT = past.written_BWT.flatten(0, 1)
        hidden_NTM = self.model(
            past.source_BK.repeat_interleave(beams, 0),
            past.length_B.repeat_interleave(beams),
            target_NT,
            torch.full((len(target_NT),), target_NT.shape[1]),
        )
        return self.model.logits(hidden_NTM[:, -1:]).view(*token_BW.shape, -1)


class Past:
    def __init__(self, source_BK, length_B, written_BWT):
        self.source_BK, self.length_B, self.written_BWT = source_BK, length_B, written_BWT

    def reorder(self, parent_BW):
        self.written_BWT = self.written_BWT.take_along_dim(parent_BW[..., None], 1)

    def keep(self, sentence_N):
        for name in ("source_BK", "length_B", "written_BWT"):
            setattr(self, name, getattr(self, name)[sentence_N])


def built(positions="sinusoidal", seed=0, **changes):
    torch.manual_seed(seed)
    encoder = EncoderConfig(vocabulary=VOCABULARY, d_model=24, layers=2, heads=3, positions=positions, **changes)
    model = Seq2Seq(Seq2SeqConfig(encoder, DecoderConfig(kv_heads=1), tied=False, begin=BEGIN, end=END)).double().eval()
    torch.nn.init.normal_(model.output.weight, std=0.6)
    return model


def sources():
    draw = torch.Generator().manual_seed(3)
    length_B = torch.tensor([7, 3, 5, 1, 6])
    return torch.randint(3, VOCABULARY, (5, 7), generator=draw), length_B


def write(models, decoding):
    return decode(models, *sources(), decoding, begin=BEGIN, end=END)


@pytest.mark.parametrize("positions", ["none", "sinusoidal", "learned", "rotary", "alibi", "relative"])
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_length=13),
        Decoding(beams=4, n_best=4, max_length=13, length_penalty=0.7),
        Decoding(method="sample", beams=3, n_best=3, max_length=13),
    ],
)
def test_a_cache_equals_full_recomputation(positions, decoding):
    model = built(positions)
    for found, expected in zip(write([model], decoding), write([Again(model)], decoding), strict=True):
        assert [text.ids for text in found] == [text.ids for text in expected]
        torch.testing.assert_close(
            [text.score for text in found], [text.score for text in expected], atol=1e-12, rtol=1e-12
        )


def test_sentences_end_at_different_times():
    lengths = {len(found[0].ids) for found in write([built()], Decoding(beams=3, max_length=30, max_ratio=None))}
    assert len(lengths) > 1, "or the tests above let no sentence leave its batch early"


def test_a_batch_of_texts_equals_one_by_one():
    model, (source_BK, length_B) = built(), sources()
    decoding = Decoding(beams=4, n_best=4, max_length=13)
    for b, found in enumerate(write([model], decoding)):
        alone = decode(
            [model], source_BK[b : b + 1, : length_B[b]], length_B[b : b + 1], decoding, begin=BEGIN, end=END
        )
        assert [text.ids for text in alone[0]] == [text.ids for text in found]


@torch.no_grad()
def test_an_ensemble_averages_probabilities():
    models, decoding = [built(seed=1), built(seed=2)], Decoding(max_length=1, suppress=(END,))
    source_BK, length_B = sources()
    first_B1 = torch.full((5, 1), BEGIN)
    with torch.no_grad():
        given = [model.step(first_B1, model.begin(source_BK, length_B)).softmax(-1)[:, 0] for model in models]
    share_BV = sum(given) / 2
    share_BV[:, END] = 0
    for found, share_V in zip(write(models, decoding), share_BV, strict=True):
        assert found[0].ids == (int(share_V.argmax()),)
        assert found[0].score == pytest.approx(float(share_V.max().log()))
    assert write([models[0], models[0]], Decoding(beams=3)) != write(models, Decoding(beams=3))
