"""What the layers compute, beside PyTorch's own layers and beside themselves."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from headwise import (
    Alibi,
    Attend,
    AttentionBlock,
    ConfigError,
    InputError,
    KeyValueCache,
    LearnedPositions,
    Mask,
    MultiHeadAttention,
    RelativePositions,
    Rotary,
    SinusoidalPositions,
    Statistics,
    attend,
    attention_weights,
)
from headwise.modules import drop_heads

B, T, K, M, H = 3, 7, 11, 20, 5


def peer_of(layer: MultiHeadAttention) -> nn.MultiheadAttention:
    """Copy a layer's weights into PyTorch's own."""
    peer = nn.MultiheadAttention(layer.d_model, len(layer.heads), batch_first=True).to(layer.query.weight.dtype)
    linears = (layer.query, layer.key, layer.value)
    state = {
        "in_proj_weight": torch.cat([linear.weight for linear in linears]),
        "in_proj_bias": torch.cat([linear.bias for linear in linears]),
        "out_proj.weight": layer.output.weight,
        "out_proj.bias": layer.output.bias,
    }
    peer.load_state_dict({name: value.detach() for name, value in state.items()})
    return peer


def randomised(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.double()


@pytest.mark.parametrize("cross", [False, True])
def test_layer_equals_pytorchs(cross):
    layer = randomised(MultiHeadAttention(M, H))
    x = torch.randn(B, T, M, dtype=torch.float64)
    context = torch.randn(B, K, M, dtype=torch.float64) if cross else None
    source = x if context is None else context
    expected, _ = peer_of(layer)(x, source, source)
    torch.testing.assert_close(layer(x, context), expected)


def test_grouped_heads_equal_repeated_ones():
    grouped, full = (
        randomised(MultiHeadAttention(M, 4, kv_heads=2, d_head=3)),
        MultiHeadAttention(M, 4, d_head=3).double(),
    )
    state = grouped.state_dict()
    for name in ("key.weight", "key.bias", "value.weight", "value.bias"):
        state[name] = state[name].unflatten(0, (2, 3)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(state)
    x = torch.randn(B, T, M, dtype=torch.float64)
    torch.testing.assert_close(grouped(x, mask=Mask.causal()), full(x, mask=Mask.causal()))


def test_named_heads_are_what_is_left_of_a_whole_layer():
    whole, rest = randomised(MultiHeadAttention(M, H)), MultiHeadAttention(M, (0, 2, 3), d_head=M // H).double()
    rows = torch.arange(M).unflatten(0, (H, -1))[[0, 2, 3]].flatten()
    state = whole.state_dict()
    cut = {name: value[:, rows] if name == "output.weight" else value[rows] for name, value in state.items()}
    rest.load_state_dict(cut | {"output.bias": state["output.bias"]})
    with torch.no_grad():
        whole.output.weight[:, [i for i in range(M) if i not in rows]] = 0
    x = torch.randn(B, T, M, dtype=torch.float64)
    assert rest.heads == (0, 2, 3)
    torch.testing.assert_close(rest(x), whole(x))


@pytest.mark.parametrize("chunks", [[1] * T, [3, 4], [2, 1, 4]], ids=str)
@pytest.mark.parametrize("records", [False, True], ids=["no_grad", "grad"])
def test_cached_steps_equal_full_computation(chunks, records):
    layer = randomised(MultiHeadAttention(24, 4, kv_heads=2, rotary=Rotary(), qk_norm=True)).eval()
    x = torch.randn(B, T, 24, dtype=torch.float64)
    cache = KeyValueCache()
    with torch.set_grad_enabled(records):
        whole = layer(x, mask=Mask.causal())
        steps = [layer(part, mask=Mask.causal(), cache=cache) for part in x.split(chunks, 1)]
    assert cache.length == T
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-12, atol=1e-12)


def test_cache_is_read_and_not_filled_again_by_cross_attention():
    layer = randomised(MultiHeadAttention(M, H))
    x, context = torch.randn(B, 1, M, dtype=torch.float64), torch.randn(B, K, M, dtype=torch.float64)
    cache = KeyValueCache()
    first = layer(x, context, cache=cache)
    second = layer(x, torch.full_like(context, torch.nan), cache=cache)
    assert cache.length == K
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_cache_select_and_crop():
    layer = randomised(MultiHeadAttention(M, H)).eval()
    x = torch.randn(B, T, M, dtype=torch.float64)
    order, cache = torch.tensor([2, 0]), KeyValueCache()
    with torch.no_grad():
        layer(x, mask=Mask.causal(), cache=cache)
        cache.crop(T - 1)
        cache.select(order)
        step = layer(x[order, T - 1 :], mask=Mask.causal(), cache=cache)
        whole = layer(x, mask=Mask.causal())[order, T - 1 :]
    torch.testing.assert_close(step, whole, rtol=1e-12, atol=1e-12)


def test_cached_steps_train_queries_beside_frozen_keys():
    layer, cache = MultiHeadAttention(M, H), KeyValueCache()
    for frozen in (layer.key, layer.value):
        frozen.requires_grad_(False)
    x = torch.randn(B, T, M)
    whole = layer(x, mask=Mask.causal())
    steps = torch.cat([layer(part, mask=Mask.causal(), cache=cache) for part in x.split(1, 1)], 1)
    wanted, found = (torch.autograd.grad(y.square().sum(), layer.query.weight)[0] for y in (whole, steps))
    torch.testing.assert_close(found, wanted)


def test_cached_cross_attention_turns_no_query():
    layer, cache = randomised(MultiHeadAttention(24, 4, rotary=Rotary())).eval(), KeyValueCache()
    x, context = torch.randn(B, T, 24, dtype=torch.float64), torch.randn(B, K, 24, dtype=torch.float64)
    steps = [layer(part, context, cache=cache) for part in x.split(1, 1)]
    torch.testing.assert_close(torch.cat(steps, 1), layer(x, context), rtol=1e-12, atol=1e-12)


def test_cache_room_grows_by_doubling():
    cache, rooms = KeyValueCache(), set()
    for _ in range(100):
        with torch.no_grad():
            key, value = cache.append(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 6))
        rooms.add(key.untyped_storage().data_ptr())
    assert key.shape == (1, 2, 100, 4)
    assert value.shape == (1, 2, 100, 6)
    assert len(rooms) <= 4


def test_layer_without_bias_has_none():
    assert all("bias" not in name for name, _ in MultiHeadAttention(M, H, bias=False).named_parameters())


def test_layer_takes_a_bias_of_the_scores():
    layer = MultiHeadAttention(M, H).eval()
    x = torch.randn(B, T, M)
    alibi = Alibi.geometric(H)
    distance = (torch.arange(T)[:, None] - torch.arange(T)).abs()
    dense = (-alibi.slopes_H[:, None, None] * distance)[None]
    torch.testing.assert_close(layer(x, bias=alibi), layer(x, bias=dense))
    assert not torch.allclose(layer(x, bias=alibi), layer(x))


def test_layer_drops_in_training_only():
    layer = MultiHeadAttention(M, H, dropout=0.5)
    x = torch.randn(B, T, M)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_block_is_the_articles():
    block = AttentionBlock(embed_dim=M, num_heads=H).eval()
    x = torch.randn(B, T, M)
    mask = Mask.causal()
    output, weights = block(x, mask)
    query, key, value = block.attention.split(x)
    expected = torch.softmax((query @ key.mT * (M // H) ** -0.5).masked_fill(~mask.visible(T, T), -torch.inf), -1)
    joined = (expected @ value).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(output, block.norm(x + block.attention.output(joined)))
    torch.testing.assert_close(block(x, mask, average_weights=True)[1], expected.mean(1))


def test_seam_gives_statistics_and_refuses_own_positions_of_cross_attention():
    seam = Attend(heads=(0, 1))
    q, k = torch.randn(B, 2, T, 4), torch.randn(B, 2, K, 4)
    output, seen = seam(q, k, k, statistics=Statistics(entropy=True), cross=True)
    torch.testing.assert_close(output, attend(q, k, k))
    assert seen.entropy_BHQ.shape == (B, 2, T)
    assert not list(seam.parameters())
    with pytest.raises(InputError, match="Leave out diagonal"):
        seam(q, k, k, statistics=Statistics(next=True), cross=True)


def test_weights_are_those_of_the_seams_scale():
    block, x = AttentionBlock(M, H, dropout=0.0), torch.randn(B, T, M)
    block.attention.attend.scale = 3.0
    output, weights = block(x)
    value = block.attention.split(x)[2]
    joined = block.attention.join(weights @ value)
    torch.testing.assert_close(output, block.norm(x + joined))


def test_copies_pickles_and_saved_weights_compute_the_same(tmp_path):
    layer = MultiHeadAttention(M, H, rotary=None, qk_norm=True).eval()
    x = torch.randn(B, T, M)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    fresh = MultiHeadAttention(M, H, qk_norm=True).eval()
    fresh.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert torch.equal(other(x), layer(x))


def test_autocast_computes_in_the_lower_precision():
    layer = MultiHeadAttention(M, H, qk_norm=True).eval()
    x = torch.randn(B, T, M)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "module",
    [pytest.param(AttentionBlock(M, H), marks=pytest.mark.slow), MultiHeadAttention(M, H, rotary=None)],
    ids=["block", "layer"],
)
def test_layers_compile_without_a_break(module):
    module = module.eval()
    x = torch.randn(B, T, M)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x), module(x))
    torch.testing.assert_close(compiled(x[:2, :5]), module(x[:2, :5]))


def test_exported_layer_is_free_in_its_sizes():
    layer = MultiHeadAttention(M, H, kv_heads=1).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = {"x_BTM": {0: batch, 1: length}, "mask": [{0: batch}], "context": None, "cache": None}
    program = torch.export.export(
        layer,
        (torch.randn(B, T, M),),
        {"mask": Mask.lengths(torch.tensor([T, 2, 3])) & Mask.causal(), "context": None, "cache": None},
        dynamic_shapes=shapes,
    )
    x, mask = torch.randn(2, 301, M), Mask.lengths(torch.tensor([301, 150])) & Mask.causal()
    torch.testing.assert_close(program.module()(x, mask=mask, context=None, cache=None), layer(x, mask=mask))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: MultiHeadAttention(M, ()), "at least one head"),
        (lambda: MultiHeadAttention(M, (1, 1)), "each once"),
        (lambda: MultiHeadAttention(M, 3), "Use 2 heads"),
        (lambda: MultiHeadAttention(M, 5, kv_heads=2), "got 2 for 5 heads"),
        (lambda: MultiHeadAttention(M, 5, d_head=0), "got 0"),
        (lambda: MultiHeadAttention(M, 5, dropout=1.5), "got 1.5"),
        (lambda: AttentionBlock(M, 3), "got 20 and 3"),
        (lambda: RelativePositions(4, 2), "T5 has 32 and 128"),
        (lambda: drop_heads(torch.ones(2, 3, 4, 5), 1.5), "`rate` must lie between 0 and 1; got 1.5"),
    ],
)
def test_impossible_settings_are_refused(build, told):
    with pytest.raises(ConfigError, match=told):
        build()


def test_a_cache_is_not_cropped_below_nothing():
    with pytest.raises(InputError, match="got -1"):
        KeyValueCache().crop(-1)


def test_inputs_of_another_width_are_refused():
    layer = MultiHeadAttention(M, H)
    with pytest.raises(InputError, match=r"`x_BTM` must have shape \(B, T, 20\); got \(7, 20\)"):
        layer(torch.randn(T, M))
    with pytest.raises(InputError, match=r"`context` must have shape \(B, T, 20\); got \(3, 7, 19\)"):
        layer(torch.randn(B, T, M), torch.randn(B, T, M - 1))


def test_positions_are_added():
    x = torch.randn(B, T, M)
    waves, learned = SinusoidalPositions(), LearnedPositions(9, M)
    torch.testing.assert_close(waves(x)[:, 2:], waves(x[:, 2:], offset=2))
    torch.testing.assert_close(learned(x)[:, 2:], learned(x[:, 2:], offset=2))
    torch.testing.assert_close(learned(x) - x, learned.table.weight[:T].expand_as(x))
    with pytest.raises(InputError, match="at most 9 positions; got 10"):
        learned(x, offset=3)


def test_relative_positions_learn():
    positions = RelativePositions(H, 8, max_distance=16)
    nn.init.normal_(positions.table)
    q, k = torch.randn(2, B, H, T, 4).unbind()
    attention_weights(q, k, bias=positions())[..., 0].sum().backward()
    assert positions.table.grad is not None
    assert positions.table.grad.abs().sum() > 0
