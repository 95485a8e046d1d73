"""Marian, BART and T5 give the logits of transformers, and write what its `generate` writes."""

import json

import pytest
import safetensors.torch
import torch

from headwise import InputError, load, load_seq2seq, save
from tests.oracle.pretrained_pairs import INPUTS, MODELS, drawn, saved


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    theirs = saved(tmp_path, request.param)
    return load_seq2seq(tmp_path), theirs


@torch.no_grad()
def test_logits_equal_those_of_transformers(pair, tmp_path):
    ours, theirs = pair
    source_BK, length_B, valid_BK = drawn(ours.config.pad)
    target_BT = torch.randint(3, 95, (INPUTS, 13))
    target_BT[:, 0] = ours.config.begin
    hidden_BTM = ours(source_BK, length_B, target_BT, torch.full((INPUTS,), 13))
    expected = theirs(input_ids=source_BK, attention_mask=valid_BK, decoder_input_ids=target_BT).logits
    assert expected.std() > 0.3, "logits that are all alike would hide what is wrong"
    torch.testing.assert_close(ours.logits(hidden_BTM), expected, rtol=1e-4, atol=1e-4)
    save(ours, tmp_path / "ours")
    again = load(tmp_path / "ours")(source_BK, length_B, target_BT, torch.full((INPUTS,), 13))
    assert torch.equal(again, hidden_BTM)


@torch.no_grad()
def test_greedy_texts_equal_those_of_generate(pair):
    ours, theirs = pair
    source_BK, length_B, valid_BK = drawn(ours.config.pad)
    expected_BT = theirs.generate(
        source_BK,
        attention_mask=valid_BK,
        max_new_tokens=12,
        num_beams=1,
        do_sample=False,
        suppress_tokens=[ours.config.pad],
        forced_eos_token_id=None,
    )
    state = ours.begin(source_BK, length_B)
    token_B1 = torch.full((INPUTS, 1), ours.config.begin)
    ended_B1 = torch.zeros(INPUTS, 1, dtype=torch.bool)
    written = [token_B1]
    for _ in range(expected_BT.shape[1] - 1):
        logits_BV = ours.step(token_B1, state)[:, 0]
        logits_BV[:, ours.config.pad] = -torch.inf
        token_B1 = logits_BV.argmax(1, keepdim=True).masked_fill(ended_B1, ours.config.pad)
        ended_B1 = ended_B1 | (token_B1 == ours.config.end)
        written.append(token_B1)
    assert torch.equal(torch.cat(written, 1), expected_BT)


@torch.no_grad()
def test_an_untied_output_is_read(tmp_path):
    theirs = saved(tmp_path, "t5")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn_like(tensors["shared.weight"])
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()  # as older versions wrote it
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    table = json.loads((tmp_path / "config.json").read_text())
    table |= {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    (tmp_path / "config.json").write_text(json.dumps(table))
    ours = load_seq2seq(tmp_path, dropout=0.25)
    assert (ours.config.tied, ours.config.encoder.dropout) == (False, 0.25)
    theirs.config.scale_decoder_outputs = False
    theirs.lm_head.weight = torch.nn.Parameter(tensors["lm_head.weight"])
    source_BK, length_B, valid_BK = drawn(0)
    target_BT = torch.zeros(INPUTS, 1, dtype=torch.long)
    expected = theirs(input_ids=source_BK, attention_mask=valid_BK, decoder_input_ids=target_BT).logits
    found = ours.logits(ours(source_BK, length_B, target_BT, torch.ones(INPUTS, dtype=torch.long)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "led"}, "must be of an architecture in marian, bart, t5, mt5; got 'led'"),
        ({"feed_forward_proj": "gated-relu"}, "`encoder.activation` must be one of"),
        ({"d_kv": None}, "must tell d_kv"),
        ({"d_kv": 6}, "must fit the config.json beside it"),
    ],
)
def test_what_would_not_be_computed_as_trained_is_refused(tmp_path, change, told):
    saved(tmp_path, "t5")
    table = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in table.items() if value is not None})
    )
    with pytest.raises(InputError) as caught:
        load_seq2seq(tmp_path)
    assert told in str(caught.value)
