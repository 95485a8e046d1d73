"""The encoder and the classifier: settings, padding, every position and pooling, compiled, exported, under autocast."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from headwise import Classifier, ClassifierConfig, ConfigError, Encoder, EncoderConfig, InputError
from headwise.contracts import settings
from headwise.models import Pooling, preset

V, B, T = 41, 3, 11
LENGTH = torch.tensor([11, 1, 6])
POSITIONS = ["none", "sinusoidal", "learned", "rotary", "alibi", "relative"]
POOLINGS = ["mean", "first", "attention", "pooler"]
SMALL = EncoderConfig(vocabulary=V, d_model=20, layers=2, heads=5, d_ff=33, max_positions=T)
CUT = replace(SMALL, heads=((0, 1, 2, 3, 4), (1, 4)), kv_heads=(5, 2), d_head=6)


def texts() -> torch.Tensor:
    return torch.randint(V, (B, T))


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """Give every weight a part, also those that begin as zeros."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def classifier(encoder: EncoderConfig = SMALL, pooling: str = "mean") -> Classifier:
    return stirred(Classifier(ClassifierConfig(encoder, classes=("a", "b", "c"), pooling=pooling)))


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("config", [SMALL, CUT], ids=["whole", "cut"])
def test_padding_changes_nothing(config, positions, norm):
    encoder = stirred(Encoder(replace(config, positions=positions, norm=norm)))
    tokens = texts()
    padded = encoder(tokens, LENGTH)
    for i, n in enumerate(LENGTH):
        torch.testing.assert_close(padded[i : i + 1, :n], encoder(tokens[i : i + 1, :n], LENGTH[i : i + 1]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_changes_no_logit(pooling):
    model, tokens = classifier(pooling=pooling), texts()
    logits = model(tokens, LENGTH)
    assert logits.shape == (B, 3)
    for i, n in enumerate(LENGTH):
        torch.testing.assert_close(logits[i : i + 1], model(tokens[i : i + 1, :n], LENGTH[i : i + 1]))


@pytest.mark.parametrize("positions", POSITIONS)
def test_order_counts_where_positions_are_known(positions):
    encoder = stirred(Encoder(replace(SMALL, positions=positions)))
    tokens, length, order = torch.tensor([[3, 5, 7, 9]]), torch.tensor([4]), [1, 0, 2, 3]
    first, second = encoder(tokens, length)[:, order], encoder(tokens[:, order], length)
    assert torch.allclose(first, second, atol=1e-5) == (positions == "none")


def test_a_cut_encoder_is_the_whole_one_without_those_heads():
    for positions in ("alibi", "relative", "rotary"):
        config = replace(SMALL, positions=positions)
        whole = stirred(Encoder(config))
        kept = (0, 3)
        cut = Encoder(replace(config, heads=((0, 1, 2, 3, 4), kept), kv_heads=(5, 2)))
        rows = torch.cat([torch.arange(name * 4, name * 4 + 4) for name in kept])
        state = whole.state_dict()
        with torch.no_grad():
            gone = torch.ones(20, dtype=torch.bool).index_fill(0, rows, False)
            whole.layers[1].attention.output.weight[:, gone] = 0
        for part in ("query", "key", "value"):
            for leaf in ("weight", "bias"):
                state[f"layers.1.attention.{part}.{leaf}"] = state[f"layers.1.attention.{part}.{leaf}"][rows]
        state["layers.1.attention.output.weight"] = state["layers.1.attention.output.weight"][:, rows]
        cut.load_state_dict(state)
        tokens = texts()
        torch.testing.assert_close(cut.eval()(tokens, LENGTH), whole(tokens, LENGTH))


def test_poolings_are_their_definitions():
    x, length = torch.randn(2, 5, 4), torch.tensor([5, 2])
    torch.testing.assert_close(Pooling("mean", 4)(x, length), torch.stack([x[0].mean(0), x[1, :2].mean(0)]))
    assert torch.equal(Pooling("first", 4)(x, length), x[:, 0])
    pooler, attention = Pooling("pooler", 4), Pooling("attention", 4)
    torch.testing.assert_close(pooler(x, length), torch.tanh(x[:, 0] @ pooler.dense.weight.T + pooler.dense.bias))
    torch.testing.assert_close(attention(x, length), Pooling("mean", 4)(x, length), msg="it begins as the mean")
    torch.nn.init.normal_(attention.query_M)
    weights = (x[1, :2] @ attention.query_M / 2).softmax(0)
    torch.testing.assert_close(attention(x, length)[1], weights @ x[1, :2])


def test_word_vectors_of_another_width_are_frozen_or_tuned():
    model, vectors = classifier(replace(SMALL, embedding_width=50)), torch.randn(V, 50)
    model.encoder.tokens.load(vectors)
    model.encoder.tokens.table.weight.requires_grad_(False)
    model(texts(), LENGTH).sum().backward()
    assert model.encoder.tokens.table.weight.grad is None
    assert torch.equal(model.encoder.tokens.table.weight, vectors)
    model.encoder.tokens.table.weight.requires_grad_(True)
    model(texts(), LENGTH).sum().backward()
    assert model.encoder.tokens.table.weight.grad is not None


def test_token_types_are_told_apart():
    encoder, tokens = stirred(Encoder(replace(SMALL, token_types=2, embedding_norm=True))), texts()
    first = encoder(tokens, LENGTH)
    assert torch.equal(encoder(tokens, LENGTH, torch.zeros_like(tokens)), first)
    assert not torch.allclose(encoder(tokens, LENGTH, torch.ones_like(tokens)), first)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["alibi", "learned", "rotary", "relative"])
def test_a_classifier_compiles_without_a_break(positions):
    model, tokens = classifier(replace(SMALL, positions=positions), "attention"), texts()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(tokens, LENGTH), model(tokens, LENGTH))
    torch.testing.assert_close(compiled(tokens[:2, :7], LENGTH[1:]), model(tokens[:2, :7], LENGTH[1:]))


@pytest.mark.parametrize("positions", ["learned", "relative"])
def test_an_exported_classifier_is_free_in_its_sizes(positions):
    model = classifier(replace(SMALL, positions=positions, max_positions=400))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=400)
    shapes = {"tokens_BT": {0: batch, 1: length}, "length_B": {0: batch}}
    program = torch.export.export(model, (texts(), LENGTH), dynamic_shapes=shapes).module()
    tokens, lengths = torch.randint(V, (2, 301)), torch.tensor([301, 150])
    torch.testing.assert_close(program(tokens, lengths), model(tokens, lengths))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_parameter_learns_under_autocast(pooling):
    config = replace(CUT, positions="relative", dropout=0.1, attention_dropout=0.1, head_dropout=0.2)
    model = classifier(config, pooling).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(texts(), LENGTH)
    torch.nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 2])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        near = model.eval()(texts(), LENGTH)
    assert near.isfinite().all()


def test_a_model_runs_in_bfloat16():
    model, tokens = classifier(), texts()
    exact = model(tokens, LENGTH)
    torch.testing.assert_close(model.bfloat16()(tokens, LENGTH).float(), exact, rtol=0.05, atol=0.05)


def test_dropout_acts_in_training_only():
    model, tokens = classifier(replace(SMALL, head_dropout=0.5)), texts()
    assert torch.equal(model(tokens, LENGTH), model(tokens, LENGTH))
    model.train()
    assert not torch.equal(model(tokens, LENGTH), model(tokens, LENGTH))


def test_state_is_strict():
    state = classifier().state_dict()
    with pytest.raises(RuntimeError, match="Missing"):
        classifier().load_state_dict({name: x for name, x in state.items() if name != "output.bias"})
    with pytest.raises(RuntimeError, match="Unexpected"):
        classifier().load_state_dict(state | {"more": state["output.bias"]})


def test_settings_are_written_out_and_read_back():
    assert SMALL.heads == ((0, 1, 2, 3, 4),) * 2
    assert (SMALL.d_head, SMALL.kv_heads) == (4, (5, 5))
    for config in (ClassifierConfig(SMALL, ("a", "b")), ClassifierConfig(CUT, ("a",), multi_label=True)):
        assert settings.read(ClassifierConfig, json.loads(json.dumps(asdict(config)))) == config
    assert settings.read(EncoderConfig, preset("tiny") | {"kv_heads": 2}).kv_heads == (2, 2)
    assert set(settings.help_of(EncoderConfig)) == set(asdict(SMALL))
    assert set(settings.help_of(ClassifierConfig)) == {"encoder", "classes", "multi_label", "pooling", "dropout"}


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_presets_have_the_sizes_they_are_said_to_have(size):
    encoder = Encoder(EncoderConfig(vocabulary=1, **preset(size)))
    count = sum(parameter.numel() for parameter in encoder.layers.parameters()) / 1e6
    assert count == pytest.approx({"tiny": 0.265, "small": 3.16, "base": 18.9}[size], rel=0.01)


IMPOSSIBLE = {
    "d_model": (0, "`d_model` must be at least 1; got 0"),
    "layers": (3, "`heads` must name the heads of 3 layers; got 2 lists"),
    "heads": (((0, 0), ()), "got [0, 0]. Keep at least one head."),
    "d_head": (None, "`d_head` must be set where heads do not divide d_model"),
    "kv_heads": ((3, 5), "`kv_heads` must divide the heads of each layer; got [3, 5] for [5, 5] heads"),
    "d_ff": (-1, "`d_ff` must be at least 1; got -1"),
    "positions": ("rope", "`positions` must be one of 'none', 'sinusoidal'"),
    "dropout": (1.0, "`dropout` must be at least 0 and below 1; got 1.0"),
    "norm_eps": (0.0, "`norm_eps` must be above 0"),
    "vocabulary": (0, "`vocabulary` must be known"),
    "embedding_width": (0, "`embedding_width` must be at least 1"),
    "token_types": (-1, "`token_types` must be at least 0"),
    "activation": ("tanh", "`activation` must be one of"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_settings_are_refused(name):
    value, told = IMPOSSIBLE[name]
    with pytest.raises(ConfigError) as raised:
        Encoder(replace(SMALL, **{name: value}))
    assert told in str(raised.value)


def test_all_problems_are_told_at_once():
    wrong = {"d_model": 21, "heads": 4, "positions": "sinusoidal", "d_ff": 0}
    with pytest.raises(ConfigError) as raised:
        settings.read(ClassifierConfig, {"encoder": wrong})
    assert [line.split(" must")[0] for line in str(raised.value).splitlines()] == [
        "[encoder] `d_ff`",
        "[encoder] `d_model`",
        "[encoder] `d_head`",
    ]


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: Classifier(ClassifierConfig(SMALL)), ConfigError, "`classes` must be known"),
        (lambda: Classifier(ClassifierConfig(SMALL, ("a", "b", "a"))), ConfigError, r"got \['a'\] again"),
        (lambda: Classifier(ClassifierConfig(SMALL, ("a",))), ConfigError, r"two or more; got \['a'\]"),
        (lambda: Classifier(ClassifierConfig(SMALL, ("a", "b"), dropout=2.0)), ConfigError, "below 1; got 2.0"),
        (lambda: preset("huge"), ConfigError, "tiny, small, base; got 'huge'"),
        (lambda: Encoder(replace(SMALL, d_head=5)), ConfigError, "`d_head` must be even for rotary"),
        (lambda: Encoder(SMALL)(texts(), LENGTH, texts()), InputError, "without token types"),
        (lambda: Encoder(SMALL)(texts() + V, LENGTH), InputError, "must lie in the vocabulary"),
        (lambda: Encoder(SMALL)(texts(), LENGTH + 1), InputError, "valid keys must lie in the 11 keys"),
        (
            lambda: Encoder(replace(SMALL, positions="learned", max_positions=9))(texts(), LENGTH),
            InputError,
            "at most 9 positions; got 11",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, error, told):
    with pytest.raises(error, match=told):
        call()
