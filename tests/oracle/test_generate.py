"""Marian, BART and T5 write, greedily and with beams, what transformers writes by `generate`."""

import pytest
import torch

from headwise import load_seq2seq
from headwise.models import for_inference
from headwise.tasks.decoding import Decoding, decode
from tests.oracle.pretrained_pairs import drawn, saved

pytest.importorskip("transformers", reason="transformers is not installed")

LONGEST, NEAR = 12, 1e-4
INPUTS = [20, pytest.param(100, marks=pytest.mark.slow)]


def generated(theirs, source_BK, valid_BK, beams):
    """Write with transformers; what stands after the end is left out."""
    written_BT = theirs.generate(
        source_BK,
        attention_mask=valid_BK,
        num_beams=beams,
        do_sample=False,
        max_new_tokens=LONGEST,
        no_repeat_ngram_size=2,  # a small random model says one thing over and over
        suppress_tokens=[theirs.config.pad_token_id],
        forced_eos_token_id=None,
    )
    rows = written_BT[:, 1:].tolist()
    end = theirs.config.eos_token_id
    return [tuple(row[: row.index(end)] if end in row else row) for row in rows]


@torch.no_grad()
def log_probability(ours, source_K, ids):
    """Sum the log-probabilities of a text and of its end, where it has one, in float64; divided by their number."""
    ended = (*ids, ours.config.end) if len(ids) < LONGEST else ids
    target_1T = torch.tensor([[ours.config.begin, *ended]])
    lengths = torch.tensor([len(source_K)]), torch.tensor([target_1T.shape[1] - 1])
    logits_TV = ours.logits(ours(source_K[None], lengths[0], target_1T[:, :-1], lengths[1]))[0]
    return float(logits_TV.log_softmax(-1).gather(1, target_1T[0, 1:, None]).sum()) / len(ended)


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["marian", "bart", "t5"])
def test_texts_equal_those_of_generate(name, beams, inputs, tmp_path):
    theirs = saved(tmp_path, name)
    ours = load_seq2seq(tmp_path)
    source_BK, length_B, valid_BK = drawn(ours.config.pad, inputs)
    rules = {"stop": "early", "no_repeat": 2, "suppress": (ours.config.pad,)}
    decoding = Decoding(beams=beams, max_length=LONGEST, max_ratio=None, **rules)
    ends = {"begin": ours.config.begin, "end": ours.config.end}
    expected = generated(theirs, source_BK, valid_BK, beams)
    for model in (ours, for_inference(ours)):
        found = [texts[0].ids for texts in decode([model], source_BK, length_B, decoding, **ends)]
        assert len(set(found)) > inputs / 3, "texts that are all alike would hide what is wrong"
        near = [b for b in range(inputs) if found[b] != expected[b]]
        assert len(near) <= inputs / 50, "near-ties are rare"
        exact = load_seq2seq(tmp_path).double()
        for b in near:
            source_K = source_BK[b, : length_B[b]]
            scores = [log_probability(exact, source_K, texts[b]) for texts in (found, expected)]
            assert abs(scores[0] - scores[1]) < NEAR, f"input {b}: {found[b]} is not {expected[b]}"
