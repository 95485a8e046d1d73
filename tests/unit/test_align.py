"""Alignment: the head that aligns is found without gold, where the truth is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from headwise.contracts import Mask, PairBatch
from headwise.errors import InputError
from headwise.modules import Attend
from headwise.recipes.batches import cut_rows, lexicon_batches
from headwise.tasks.align import AligningHead, Lexicon, align, alignment_error_rate, by_words, find_heads

WORDS, BEGIN, END, STOP = 23, 0, 1, 2
SHIFT = 30
"""A target word is its source word's number and this much more."""


def reversed_pairs(count, seed=0):
    """Write pairs whose target is the source from its end, in other words; sources end in STOP."""
    draw = torch.Generator().manual_seed(seed)
    length_B = torch.randint(2, 8, (count,), generator=draw)
    source_BK, target_BT = torch.zeros(count, 8, dtype=torch.long), torch.zeros(count, 9, dtype=torch.long)
    for i, n in enumerate(length_B.tolist()):
        word_N = 3 + torch.randint(WORDS, (n,), generator=draw)
        source_BK[i, : n + 1] = torch.tensor([*word_N, STOP])
        target_BT[i, : n + 2] = torch.tensor([BEGIN, *(word_N.flip(0) + SHIFT), END])
    return PairBatch(source_BK, length_B + 1, target_BT, length_B + 2, torch.arange(count))


class Looker(nn.Module):
    """Attend with four heads: three look at random places or at one fixed place, one where the reversal is."""

    def __init__(self, *, reads, layers=2, names=range(4)):
        super().__init__()
        self.reads = reads
        self.seams = nn.ModuleList(Attend(names) for _ in range(layers))

    def forward(self, source_BK, source_length_B, target_BT, target_length_B):
        keys = source_BK.shape[1]
        place_BT = source_length_B[:, None] - 2 - torch.arange(target_BT.shape[1]) + self.reads
        right_BTK = nn.functional.one_hot(place_BT.clamp(0, keys - 1), keys).float()
        draw = torch.Generator().manual_seed(0)
        for i, seam in enumerate(self.seams):
            query_BHTK = torch.randn(len(source_BK), 4, target_BT.shape[1], keys, generator=draw)
            if i == 1:
                query_BHTK[:, 2] = right_BTK * 9
            key_BHKK = torch.eye(keys).expand(len(source_BK), 4, -1, -1) * 9
            seam(query_BHTK, key_BHKK, key_BHKK, Mask.lengths(source_length_B), cross=True)


def gold(pairs):
    return [[(n - 1 - j, j) for j in range(n)] for n in (pairs.source_length_B - 1).tolist()]


@pytest.mark.parametrize("reads", [False, True])
def test_the_head_that_aligns_is_found_without_gold(reads):
    pairs, model = reversed_pairs(60), Looker(reads=reads)
    aligner = find_heads(model, [pairs, reversed_pairs(50, seed=1)], Lexicon([reversed_pairs(400, seed=2)]))
    assert aligner.heads == (AligningHead("seams.1", 2, reads),)
    assert aligner.agreement == aligner.table[aligner.heads[0]] > 0.8
    assert aligner.sure == 1
    assert len(aligner.table) == 16
    assert [sorted(links) for links in align(model, pairs, aligner, special=[STOP])] == [sorted(x) for x in gold(pairs)]


def test_heads_that_align_go_by_their_names():
    pairs, model = reversed_pairs(60), Looker(reads=False, names=(5, 0, 7, 2))
    aligner = find_heads(model, [pairs], Lexicon([reversed_pairs(400, seed=2)]))
    assert aligner.heads == (AligningHead("seams.1", 7, False),)
    assert "seams.1 head 7" in str(aligner)


def test_a_word_that_looks_at_a_special_token_gets_no_link():
    pairs, model = reversed_pairs(5), Looker(reads=False)
    aligner = find_heads(model, [pairs], Lexicon([pairs]))
    assert align(model, pairs, aligner, special=[STOP, *range(3, 3 + WORDS)]) == [[]] * 5


def test_no_hook_stays():
    model, pairs = Looker(reads=True), reversed_pairs(5)
    find_heads(model, [pairs], Lexicon([pairs]))
    assert not any(seam._forward_pre_hooks for seam in model.seams)


def test_a_lexicon_is_ibm_1():
    pairs, translations = reversed_pairs(30), {}
    source = [[None, *row[:n].tolist()] for row, n in zip(pairs.source_BK, pairs.source_length_B, strict=True)]
    target = [row[1 : n - 1].tolist() for row, n in zip(pairs.target_BT, pairs.target_length_B, strict=True)]
    for _ in range(3):
        counts, totals = {}, {}
        for ours, theirs in zip(source, target, strict=True):
            for word in theirs:
                total = sum(translations.get((s, word), 1.0) for s in ours)
                for s in ours:
                    share = translations.get((s, word), 1.0) / total
                    counts[s, word] = counts.get((s, word), 0) + share
                    totals[s] = totals.get(s, 0) + share
        translations = {pair: count / totals[pair[0]] for pair, count in counts.items()}
    found = Lexicon([pairs], rounds=3).posterior(pairs)
    for b, (ours, theirs) in enumerate(zip(source, target, strict=True)):
        for t, word in enumerate(theirs):
            total = sum(translations[s, word] for s in ours)
            expected = torch.tensor([translations[s, word] / total for s in ours[1:]])
            torch.testing.assert_close(found[b, t, : len(expected)], expected)
            assert not found[b, t, len(expected) :].any()


def test_nearness_tells_equal_words_apart_by_their_places():
    source_BK, target_BT = torch.tensor([[3, 4, 3, STOP]]), torch.tensor([[BEGIN, 33, 34, 33, END]])
    pairs = PairBatch(source_BK, torch.tensor([4]), target_BT, torch.tensor([5]), torch.arange(1))
    known = [reversed_pairs(200), pairs]
    far, near = (Lexicon(known, nearness=nearness).posterior(pairs)[0] for nearness in (0.0, 8.0))
    assert far[0, 0] == far[0, 2]
    torch.testing.assert_close(near[0, 0] / near[0, 2], torch.tensor(10 / 3).exp())
    assert near.argmax(-1).tolist() == [0, 1, 2]


def test_unknown_words_have_no_posterior():
    pairs = reversed_pairs(9)
    other = PairBatch(
        pairs.source_BK + 500,
        *(getattr(pairs, n) for n in ("source_length_B", "target_BT", "target_length_B", "row_B")),
    )
    assert not Lexicon([pairs]).posterior(other).any()


def test_links_of_pieces_become_links_of_words():
    assert by_words([(0, 0), (2, 1), (3, 2)], [-1, 0, 0, 1], [0, 0, 1]) == [(0, 0), (1, 1)]


def test_the_error_rate_is_that_of_och_and_ney():
    found, sure, possible = [{(0, 0), (1, 1), (2, 2)}], [{(0, 0), (3, 3)}], [{(1, 1)}]
    assert alignment_error_rate(found, sure, possible) == pytest.approx(1 - (1 + 2) / (3 + 2))
    assert alignment_error_rate([[]], [[]], [[]]) == 0


def test_a_model_without_cross_attention_is_named():
    class Blind(nn.Module):
        def forward(self, *given): ...

    with pytest.raises(InputError, match="cross attention"):
        find_heads(Blind(), [reversed_pairs(3)], Lexicon([reversed_pairs(3)]))


def test_a_lexicon_of_many_pairs_learns_from_a_sample_of_all_lengths():
    length_N2 = np.random.default_rng(0).integers(1, 60, (20_000, 2), dtype=np.int32)
    links = int(length_N2.prod(1, dtype=np.int64).sum())
    many = SimpleNamespace(length_N=length_N2, batch=lambda rows: rows)
    found = list(lexicon_batches(many, links=links // 4, quiet=True))
    assert 0.2 * links < sum(int(length_N2[rows].prod(1, dtype=np.int64).sum()) for rows in found) <= links // 4
    longest = [int(length_N2[rows].sum(1).max()) for rows in found]
    assert min(longest) < 30
    assert max(longest) > 90
    assert found == list(lexicon_batches(many, links=links // 4, quiet=True))
    assert sorted(lexicon_batches(many, links=links, quiet=True)) == sorted(x.tolist() for x in cut_rows(length_N2))


def test_no_pairs_are_named():
    with pytest.raises(InputError, match="some pairs"):
        Lexicon([])
    with pytest.raises(InputError, match="some pairs"):
        find_heads(Looker(reads=True), [], Lexicon([reversed_pairs(3)]))
