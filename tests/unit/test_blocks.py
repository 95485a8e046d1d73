"""Layers of a Transformer: what they compute, how they drop, and every kind of position."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from headwise import (
    AlibiPositions,
    ConfigError,
    EncoderLayer,
    FeedForward,
    HiddenDropout,
    InputError,
    Mask,
    MultiHeadAttention,
    RelativePositions,
    Rotary,
    TokenEmbedding,
)
from headwise.modules import drop_heads

B, T, M, H, FF = 3, 7, 20, 5, 33


def layer(norm="pre", dropout=0.0, **attention) -> EncoderLayer:
    attend = MultiHeadAttention(M, H, dropout=dropout, **attention)
    return EncoderLayer(attend, FeedForward(M, FF), norm=norm, dropout=dropout)


@pytest.mark.parametrize(
    ("activation", "bend"),
    [("gelu", F.gelu), ("relu", F.relu), ("swiglu", None)],
)
def test_feed_forward_is_its_definition(activation, bend):
    part, x = FeedForward(M, FF, activation=activation), torch.randn(B, T, M)
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    wide = x @ part.up.weight.T + part.up.bias
    bent = bend(wide) if bend else F.silu(x @ part.gate.weight.T + part.gate.bias) * wide
    torch.testing.assert_close(part(x), bent @ part.down.weight.T + part.down.bias)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_encoder_layer_equals_pytorch(norm):
    ours, x, length = layer(norm), torch.randn(B, T, M), torch.tensor([7, 4, 1])
    peer = nn.TransformerEncoderLayer(
        M, H, FF, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm == "pre"
    )
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    parts = [ours.attention.query, ours.attention.key, ours.attention.value]
    named = {
        "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
        "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
    }
    pairs = (
        ("self_attn.out_proj", ours.attention.output),
        ("linear1", ours.feed_forward.up),
        ("linear2", ours.feed_forward.down),
        ("norm1", ours.attention_norm),
        ("norm2", ours.feed_forward_norm),
    )
    peer.load_state_dict(named | {f"{name}.{key}": x for name, part in pairs for key, x in part.state_dict().items()})
    padding = torch.arange(T) >= length[:, None]
    expected = peer(x, src_key_padding_mask=padding)
    torch.testing.assert_close(ours(x, Mask.lengths(length, length))[~padding], expected[~padding])


def bias_of(kind):
    return {"alibi": AlibiPositions(H)(), "relative": RelativePositions(H)()}.get(kind)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi", "relative"])
def test_padding_changes_nothing(norm, positions):
    ours = layer(norm, kv_heads=1, rotary=Rotary() if positions == "rotary" else None)
    bias, x, length = bias_of(positions), torch.randn(B, T, M), torch.tensor([7, 4, 1])
    x[1, 4:] = torch.nan
    padded = ours(x, Mask.lengths(length, length), bias=bias)
    for i, n in enumerate(length):
        torch.testing.assert_close(padded[i : i + 1, :n], ours(x[i : i + 1, :n], bias=bias))


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["alibi", "none", "rotary", "relative"])
def test_layers_compile_without_a_break(positions):
    ours, bias, x = layer(rotary=Rotary() if positions == "rotary" else None), bias_of(positions), torch.randn(B, T, M)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x, bias=bias), ours(x, bias=bias))


def test_layers_run_under_autocast():
    ours, x = layer(dropout=0.1), torch.randn(B, T, M)
    with torch.autocast("cpu", torch.bfloat16):
        ours(x).float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())


def test_cut_heads_keep_their_positions():
    slopes, relative = AlibiPositions(5), RelativePositions(5)
    nn.init.normal_(relative.table)
    assert slopes((0, 3)).slopes_H.tolist() == [slopes().slopes_H[0], slopes().slopes_H[3]]
    assert torch.equal(relative((0, 3)).table_NH, relative().table_NH[:, [0, 3]])
    assert set(slopes.state_dict()) == {"slopes_H"}, "slopes of a cut model are kept with it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(dtype, rate):
    drop, x = HiddenDropout(rate), torch.ones(101, 1009, dtype=dtype, requires_grad=True)
    dropped = drop(x)
    kept = dropped != 0
    assert abs(1 - kept.double().mean() - rate) < 5 * (rate * (1 - rate) / x.numel()) ** 0.5 + 1e-5
    if rate < 1:
        torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 1 / (1 - rate)), rtol=4e-3, atol=0)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(gradient, dropped.detach()), "what is dropped has no gradient, and no other value is drawn"
    assert torch.equal(drop.eval()(x), x)


def test_dropout_repeats_from_its_seed_and_neighbours_are_independent():
    drop, x = HiddenDropout(0.5), torch.ones(100_003)
    first = drop(x)
    torch.manual_seed(0)
    assert torch.equal(drop(x), first)
    assert not torch.equal(drop(x), first)
    for gap in (1, 2, 3, 4):
        both = ((first[gap:] > 0) & (first[:-gap] > 0)).float().mean()
        assert abs(both - 0.25) < 0.01


def test_compiled_dropout_drops():
    dropped = torch.compile(HiddenDropout(0.5), fullgraph=True, backend="aot_eager")(torch.ones(10_000))
    assert 0.45 < (dropped == 0).float().mean() < 0.55


def test_whole_heads_are_dropped_and_the_others_grow():
    mixed = torch.ones(1000, H, T, 4)
    dropped = drop_heads(mixed, 0.3)
    by_head = dropped.flatten(2)
    assert torch.equal(by_head.amin(-1), by_head.amax(-1)), "a head goes as a whole"
    torch.testing.assert_close(by_head[..., 0].sum(1), torch.full((1000,), float(H)))
    assert 0.25 < (by_head[..., 0] == 0).float().mean() < 0.35
    assert torch.equal(drop_heads(mixed, 1.0), mixed), "a sample that would lose all keeps all"


def test_head_dropout_is_for_training_only():
    attention, x = MultiHeadAttention(M, H), torch.randn(B, T, M)
    whole = attention(x)
    attention.head_dropout = 0.5
    assert not torch.equal(attention(x), whole)
    assert torch.equal(attention.eval()(x), whole)


def test_token_vectors_are_looked_up_projected_and_loaded():
    tokens, vectors = TokenEmbedding(11, M, width=6), torch.randn(11, 6) * 3
    tokens.load(vectors)
    ids = torch.tensor([[0, 10, 4]])
    torch.testing.assert_close(tokens(ids), vectors[ids] @ tokens.project.weight.T)
    tokens.load(vectors + 1, torch.arange(11) < 8)
    assert torch.equal(tokens.table.weight[:8], vectors[:8] + 1)
    assert not torch.equal(tokens.table.weight[8:], vectors[8:] + 1)
    assert tokens.table.weight.requires_grad


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: FeedForward(M, FF, activation="tanh"), ConfigError, "got 'tanh'"),
        (lambda: FeedForward(M, 0), ConfigError, "got 20 and 0"),
        (lambda: HiddenDropout(1.1), ConfigError, "got 1.1"),
        (lambda: layer("mid"), ConfigError, "got 'mid'"),
        (lambda: TokenEmbedding(5, M)(torch.tensor([[1, 5]])), InputError, "0 to 4; got 1 to 5"),
        (lambda: TokenEmbedding(5, M)(torch.tensor([[-1, 2]])), InputError, "got -1 to 2"),
        (lambda: TokenEmbedding(5, M).load(torch.zeros(5, 19)), InputError, r"shape \(5, 20\); got \(5, 19\)"),
        (lambda: TokenEmbedding(5, M).load(torch.zeros(5, M), torch.ones(4)), InputError, r"\(4,\)"),
    ],
)
def test_what_cannot_be_is_refused(call, error, told):
    with pytest.raises(error, match=told):
        call()
