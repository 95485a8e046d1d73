"""PyTorch's Transformer with our attention in it: really called, with the same results."""

import copy
import pickle

import pytest
import torch
from torch import nn

from headwise import InputError, compat

# Padding makes the encoder build nested tensors, of which PyTorch says at the first one that they are a prototype.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")

M, H, T = 8, 2, 5
X = torch.randn(3, T, M, generator=torch.Generator().manual_seed(1))
PADDING = torch.arange(T) >= torch.tensor([5, 3, 2])[:, None]
CAUSAL = nn.Transformer.generate_square_subsequent_mask(T)


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of our forward: a list of whether weights were asked for, and whether the input was nested."""
    found, forward = [], compat.MultiheadAttention.forward

    def counted(self, query, *args, **kwargs):
        found.append((kwargs["need_weights"], query.is_nested))
        return forward(self, query, *args, **kwargs)

    monkeypatch.setattr(compat.MultiheadAttention, "forward", counted)
    return found


def layer(**settings):
    return nn.TransformerEncoderLayer(M, H, 16, dropout=0.1, batch_first=True, **settings).eval()


def swapped(model, count):
    other = copy.deepcopy(model)
    assert compat.swap(other) == count
    assert compat.swap(other) == 0
    return other


MASKS = [{}, {"src_key_padding_mask": PADDING}, {"src_mask": CAUSAL}, {"src_mask": CAUSAL, "is_causal": True}]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("masks", MASKS)
def test_a_layer_calls_us_in_evaluation(masks, norm_first, calls):
    theirs = layer(norm_first=norm_first)
    ours = swapped(theirs, 1)
    with torch.inference_mode():
        torch.testing.assert_close(ours(X, **masks), theirs(X, **masks))
    assert calls == [(False, False)]
    with torch.no_grad():
        ours(X, **masks)
    assert len(calls) == 2


@pytest.mark.parametrize("masks", [{}, {"src_key_padding_mask": PADDING}, {"mask": CAUSAL}])
def test_an_encoder_calls_us_in_evaluation(masks, calls):
    """An encoder built before the swap makes nested tensors of padded ones: results are zeros at the padding."""
    theirs = nn.TransformerEncoder(layer(), 3).eval()
    ours = swapped(theirs, 3)
    with torch.inference_mode():
        torch.testing.assert_close(ours(X, **masks), theirs(X, **masks))
    assert calls == [(False, "src_key_padding_mask" in masks)] * 3


# The encoder says that it will not make nested tensors, since the layer cannot take its fast path.
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_an_encoder_of_our_layers_calls_us(calls):
    theirs = nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False).eval()
    ours = nn.TransformerEncoder(swapped(layer(), 1), 2).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(
            ours(X, src_key_padding_mask=PADDING)[~PADDING], theirs(X, src_key_padding_mask=PADDING)[~PADDING]
        )
    assert calls == [(False, False)] * 2


def test_a_decoder_layer_calls_us_in_evaluation(calls):
    theirs = nn.TransformerDecoderLayer(M, H, 16, batch_first=True).eval()
    ours = swapped(theirs, 2)
    masks = {"tgt_mask": CAUSAL, "memory_key_padding_mask": PADDING, "tgt_is_causal": True}
    with torch.inference_mode():
        torch.testing.assert_close(ours(X, X.flip(0), **masks), theirs(X, X.flip(0), **masks))
    assert calls == [(False, False)] * 2


# A decoder's layers come with an encoder that is not batch first, so it says that it makes no nested tensors.
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_a_whole_transformer_trains_alike(calls):
    theirs = nn.Transformer(M, H, 2, 2, 16, dropout=0.0)
    ours = swapped(theirs, 6)
    source, target = X.transpose(0, 1), X.flip(0).transpose(0, 1)
    masks = {"tgt_mask": CAUSAL, "src_key_padding_mask": PADDING, "memory_key_padding_mask": PADDING}
    for model in (ours, theirs):
        model(source, target, **masks).square().mean().backward()
    assert len(calls) == 6
    for mine, peer in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, peer.grad)


def test_a_swapped_model_is_saved_and_loaded(calls):
    ours = swapped(layer(), 1)
    loaded = pickle.loads(pickle.dumps(ours))
    with torch.inference_mode():
        assert torch.equal(loaded(X), ours(X))
    assert len(calls) == 2
    fresh = layer()
    fresh.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(fresh(X), ours(X))


class Other(nn.MultiheadAttention):
    """Stand for a subclass that does something else."""


def test_swap_leaves_subclasses_alone():
    model = nn.Sequential(nn.MultiheadAttention(M, H), Other(M, H), compat.MultiheadAttention(M, H), nn.Linear(M, M))
    assert compat.swap(model) == 1
    assert [type(x) for x in model] == [compat.MultiheadAttention, Other, compat.MultiheadAttention, nn.Linear]
    lone = nn.MultiheadAttention(M, H)
    assert compat.swap(lone) == 1
    assert type(lone) is compat.MultiheadAttention


@pytest.mark.parametrize("wanted", [{"need_weights": False}, {"need_weights": True}, {"average_attn_weights": False}])
def test_nested_tensors_attend_within_each_sample(wanted):
    theirs = nn.MultiheadAttention(M, H, batch_first=True).eval()
    ours = swapped(theirs, 1)
    nested = torch.nested.nested_tensor([X[0], X[1, :3]])
    with torch.inference_mode():
        mine, peer = (module(nested, nested, nested, **wanted) for module in (ours, theirs))
    assert mine[0].is_nested
    for row, other in zip(mine[0].unbind(), peer[0].unbind(), strict=True):
        torch.testing.assert_close(row, other)
    torch.testing.assert_close(mine[1], peer[1])


def test_other_nested_tensors_are_refused():
    module = compat.MultiheadAttention(M, H, batch_first=True)
    nested = torch.nested.nested_tensor([X[0], X[1, :3]])
    with pytest.raises(
        InputError, match="a nested input must come alone: itself three times, batch first, no masks; got"
    ):
        module(nested, nested, nested, attn_mask=CAUSAL)
    with pytest.raises(InputError, match="a nested input must come alone"):
        module(nested, torch.nested.nested_tensor([X[0], X[1, :3]]), nested)


# The first torch.compile of a process imports torch.jit parts that PyTorch itself has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_a_swapped_layer_compiles_whole():
    torch.compiler.reset()
    theirs = layer()
    compiled = torch.compile(swapped(theirs, 1), fullgraph=True, backend="eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(X, src_mask=CAUSAL), theirs(X, src_mask=CAUSAL))
