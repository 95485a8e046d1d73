"""Decoding: laws against search by brute force, on a model that is a table."""

import math
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch

from headwise.errors import ConfigError, InputError
from headwise.tasks.decoding import Decoding, decode

VOCABULARY, BEGIN, END = 5, 0, 1
GREEDY = Decoding(max_length=7, max_ratio=None)


@dataclass
class History:
    """Remember all that was written, so that a wrong beam would show."""

    source_B: torch.Tensor
    written_BWT: torch.Tensor

    def reorder(self, parent_BW):
        self.written_BWT = self.written_BWT.take_along_dim(parent_BW[..., None], 1)

    def keep(self, sentence_N):
        self.source_B, self.written_BWT = self.source_B[sentence_N], self.written_BWT[sentence_N]


class Table:
    """Give logits by the source's first token and a sum over everything written."""

    def __init__(self, seed=0, spread=2.0):
        maker = torch.Generator().manual_seed(seed)
        self.logits_NNV = spread * torch.randn(11, 13, VOCABULARY, generator=maker, dtype=torch.float64)

    def begin(self, source_BK, source_length_B):
        return History(source_BK[:, 0], torch.empty(len(source_BK), 1, 0, dtype=torch.long))

    def step(self, token_BW, state):
        past_BWT = state.written_BWT.expand(-1, token_BW.shape[1], -1)
        state.written_BWT = torch.cat([past_BWT, token_BW[..., None]], 2)
        weight_T = torch.arange(1, state.written_BWT.shape[2] + 1)
        return self.logits_NNV[state.source_B[:, None] % 11, (state.written_BWT * weight_T).sum(2) % 13]

    def logits(self, source, ids):
        written_T = torch.tensor([BEGIN, *ids])
        return self.logits_NNV[source % 11, (written_T * torch.arange(1, len(written_T) + 1)).sum() % 13]


def write(decoding, sources=(3,), models=None, **given):
    source_B1 = torch.tensor(sources)[:, None]
    length_B = torch.ones(len(sources), dtype=torch.long)
    models = [Table()] if models is None else models
    return decode(models, source_B1, length_B, decoding, begin=BEGIN, end=END, **given)


def every_text(source, longest, models):
    """List every text that may be written, with its log-probability: (ids, ended, sum)."""
    for ended, length in [(True, n) for n in range(longest)] + [(False, longest)]:
        for ids in product([t for t in range(VOCABULARY) if t != END], repeat=length):
            total = 0.0
            for i, token in enumerate([*ids, END][: length + ended]):
                shares = [model.logits(source, ids[:i]).softmax(-1) for model in models]
                total += math.log(sum(share[token] for share in shares) / len(shares))
            yield ids, total, length + ended


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("count", [1, 2])
def test_a_wide_beam_finds_what_brute_force_finds(power, count):
    models = [Table(seed) for seed in range(count)]
    best = sorted(every_text(3, 3, models), key=lambda text: -text[1] / text[2] ** power)[:7]
    wide = Decoding(beams=200, n_best=7, max_length=3, max_ratio=None, length_penalty=power)
    found = write(wide, models=models)[0]
    assert [text.ids for text in found] == [ids for ids, _, _ in best]
    torch.testing.assert_close([text.score for text in found], [total / n**power for _, total, n in best])


def test_one_beam_is_greedy():
    for source in range(11):
        ids = []
        while len(ids) < 7 and (token := int(Table().logits(source, ids).argmax())) != END:
            ids.append(token)
        for method in ("greedy", "beam"):
            assert write(replace(GREEDY, method=method), [source])[0][0].ids == tuple(ids)


@pytest.mark.parametrize(
    "decoding",
    [
        GREEDY,
        replace(GREEDY, beams=3, n_best=3),
        replace(GREEDY, beams=4, stop="early", length_penalty=0.0),
        replace(GREEDY, beams=3, n_best=2, no_repeat=2, min_length=3),
        replace(GREEDY, method="sample", beams=3, n_best=3, temperature=1.5),
    ],
)
def test_a_batch_equals_one_by_one(decoding):
    sources = list(range(11))
    alone = [write(decoding, [source], row_B=torch.tensor([source]))[0] for source in sources]
    assert write(decoding, sources) == alone
    order = torch.randperm(11).tolist()
    assert write(decoding, order, row_B=torch.tensor(order)) == [alone[i] for i in order]


def test_stopping_exactly_changes_nothing(monkeypatch):
    decoding = replace(GREEDY, beams=3, n_best=2, max_length=15)
    stopped = write(decoding, range(11))
    monkeypatch.setattr("headwise.tasks.decoding._Search._bound", lambda self, time: torch.zeros(len(self.sum_BW)))
    assert write(decoding, range(11)) == stopped


def test_lengths_are_kept():
    texts = write(replace(GREEDY, beams=3, n_best=3, min_length=4, max_length=6), range(11))
    assert {len(text.ids) for found in texts for text in found} <= {4, 5, 6}
    fixed = write(replace(GREEDY, beams=3, n_best=3, min_length=5, max_length=5), range(11))
    assert {len(text.ids) for found in fixed for text in found} == {5}
    by_source = write(replace(GREEDY, max_length=100, max_ratio=2.0, suppress=(END,)))
    assert len(by_source[0][0].ids) == 12


def test_no_run_stands_twice():
    for found in write(replace(GREEDY, beams=2, n_best=2, no_repeat=2, min_length=7, max_length=9), range(11)):
        for text in found:
            pairs = list(zip(text.ids, text.ids[1:], strict=False))
            assert len(set(pairs)) == len(pairs)


def test_a_prefix_stands_first_and_counts():
    prefix_BT = torch.tensor([[3, 4, 2], [2, -1, -1], [-1, -1, -1]])
    decoding = replace(GREEDY, beams=40, n_best=1, max_length=3, suppress=(2,))
    texts = write(decoding, [3, 3, 3], prefix_BT=prefix_BT)
    assert texts[0][0].ids == (3, 4, 2)
    assert texts[1][0].ids[0] == 2
    assert 2 not in texts[1][0].ids[1:]
    assert texts[2] == write(decoding)[0]
    total = sum(float(Table().logits(3, (3, 4, 2)[:i]).log_softmax(-1)[token]) for i, token in enumerate((3, 4, 2)))
    assert texts[0][0].score == pytest.approx(total / 3)


def test_samples_follow_the_model():
    draws = 4000
    drawn = write(replace(GREEDY, method="sample", beams=draws, n_best=draws, max_length=1))[0]
    share_V = Table().logits(3, ()).softmax(-1)
    firsts = torch.tensor([text.ids[0] if text.ids else END for text in drawn])
    torch.testing.assert_close(firsts.bincount(minlength=VOCABULARY) / draws, share_V.float(), atol=0.03, rtol=0)


def test_samples_keep_to_the_likeliest():
    logits_V = Table().logits(3, ())
    decoding = replace(GREEDY, method="sample", beams=500, n_best=500, max_length=1)
    two = {text.ids[0] if text.ids else END for text in write(replace(decoding, top_k=2))[0]}
    assert two == set(logits_V.topk(2).indices.tolist())
    share_N, token_N = logits_V.softmax(-1).sort(descending=True)
    half = {text.ids[0] if text.ids else END for text in write(replace(decoding, top_p=float(share_N[0]) + 0.01))[0]}
    assert half == set(token_N[:2].tolist())
    cold = write(replace(decoding, beams=1, n_best=1, temperature=1e-4, max_length=7), range(11))
    assert [found[0].ids for found in cold] == [found[0].ids for found in write(GREEDY, range(11))]


def test_seeds_differ():
    decoding = replace(GREEDY, method="sample", max_length=20)
    assert write(decoding, range(11)) != write(replace(decoding, seed=1), range(11))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"beams": 0}, "`beams` must be at least 1; got 0"),
        ({"beams": 2.0}, "`beams` must be a whole number"),
        ({"n_best": 2}, "`n_best` must be at most `beams`; got 2 of 1"),
        ({"method": "greedy", "beams": 4}, '`beams` must be 1 where `method` is "greedy"'),
        ({"method": "best"}, "`method` must be one of"),
        ({"max_length": 0}, "`max_length` must be at least 1"),
        ({"min_length": 9}, "`min_length` must be at most `max_length`"),
        ({"min_length": -1}, "`min_length` must be at least 0"),
        ({"length_penalty": math.nan}, "`length_penalty` must be at least 0"),
        ({"no_repeat": -1}, "`no_repeat` must be at least 0"),
        ({"max_ratio": 0.0}, "`max_ratio` must be above 0"),
        ({"temperature": 0.0}, "`temperature` must be above 0"),
        ({"top_p": 0.0}, "`top_p` must be above 0"),
        ({"top_k": -1}, "`top_k` must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        write(replace(GREEDY, **change))


def test_a_model_that_diverged_is_named():
    model = Table()
    model.logits_NNV[:] = math.nan
    with pytest.raises(InputError, match="finite logits"):
        write(GREEDY, models=[model])


def test_forbidding_every_token_is_named():
    with pytest.raises(InputError, match="some token must be allowed"):
        write(replace(GREEDY, suppress=tuple(range(VOCABULARY))))


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_tokens_beyond_the_vocabulary_cannot_be_suppressed(token):
    with pytest.raises(ConfigError, match=r"`suppress` must name tokens of the vocabulary, 0 to 4"):
        write(replace(GREEDY, suppress=(token,)))


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="`decode` must have a model"):
        decode([], torch.zeros(1, 1), torch.ones(1), GREEDY, begin=BEGIN, end=END)
