"""The encoder-decoder: its settings, its loss, its files, and that a cached step equals full recomputation."""

import pytest
import torch

from headwise import ConfigError, DecoderConfig, EncoderConfig, Seq2Seq, Seq2SeqConfig, load, save
from headwise.contracts import PairBatch
from headwise.models import seq2seq_preset

SOURCE = torch.tensor([[5, 7, 9, 11, 13], [6, 8, 10, 0, 0], [3, 4, 0, 0, 0]])
SOURCE_LENGTH = torch.tensor([5, 3, 2])
TARGET = torch.tensor([[1, 5, 6, 7, 8, 9, 2], [1, 12, 13, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0]])
TARGET_LENGTH = torch.tensor([7, 4, 2])
BATCH = PairBatch(SOURCE, SOURCE_LENGTH, TARGET, TARGET_LENGTH, torch.arange(3))


def build(*, decoder=None, settings=None, **encoder):
    torch.manual_seed(0)
    given = {"vocabulary": 19, "d_model": 16, "layers": 2, "heads": 4, "d_ff": 24} | encoder
    config = Seq2SeqConfig(EncoderConfig(**given), DecoderConfig(**(decoder or {})), **(settings or {}))
    model = Seq2Seq(config).double().eval()
    for parameter in model.parameters():  # no zeros: a bias or a table that is not read must show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


VARIANTS = {
    "rotary": {"positions": "rotary"},
    "waves": {"positions": "sinusoidal", "norm": "post", "scale_embedding": True, "activation": "relu"},
    "halves": {"positions": "halves", "embedding_norm": True, "activation": "silu"},
    "learned": {"positions": "learned", "max_positions": 8, "decoder": {"layers": 3, "cross_heads": 2, "d_ff": 7}},
    "alibi": {"positions": "alibi", "kv_heads": 2, "decoder": {"kv_heads": 1, "cross_kv_heads": 2}},
    "relative": {"positions": "relative", "buckets": 8, "max_distance": 16, "normalisation": "rms", "bias": False},
    "untied": {"activation": "geglu", "settings": {"tied": False, "shared": False, "target_vocabulary": 17}},
    "named": {
        "decoder": {"heads": ((0, 2), (1,)), "cross_heads": ((3,), (0, 1, 3))},
        "settings": {"output_bias": True},
    },
}


@pytest.fixture(params=VARIANTS)
def model(request):
    return build(**VARIANTS[request.param])


@pytest.mark.slow
def test_a_compiled_model_is_an_eager_one():
    torch.compiler.reset()
    model = build()
    compiled = torch.compile(model, backend="aot_eager")
    length_B = SOURCE_LENGTH  # one tensor may be the length of both sides
    given = SOURCE, length_B, TARGET[:, :5], length_B
    expected, found = model(*given), compiled(*given)
    torch.testing.assert_close(found, expected)
    weights = list(model.decoder.parameters())
    slopes = [torch.autograd.grad(x.square().sum(), weights, allow_unused=True) for x in (found, expected)]
    torch.testing.assert_close(slopes[0], slopes[1])


@torch.no_grad()
def test_a_cached_step_equals_full_recomputation(model):
    state = model.begin(SOURCE, SOURCE_LENGTH)
    written_BWT = torch.randint(3, 17, (3, 2, 6))
    sentences = torch.arange(3)
    for t in range(6):
        logits_BWV = model.step(written_BWT[:, :, t], state)
        source, length = (x[sentences].repeat_interleave(2, 0) for x in (SOURCE, SOURCE_LENGTH))
        target = written_BWT[:, :, : t + 1].flatten(0, 1)
        hidden_NTM = model(source, length, target, torch.full((len(target),), t + 1))
        expected_NV = model.logits(hidden_NTM)[:, -1]
        torch.testing.assert_close(logits_BWV.flatten(0, 1), expected_NV, rtol=0, atol=1e-12)
        if t == 2:
            parent_BW = torch.tensor([[1, 0], [1, 1], [0, 1]])
            written_BWT = written_BWT.gather(1, parent_BW[:, :, None].expand_as(written_BWT))
            state.reorder(parent_BW)
        if t == 3:
            sentences = torch.tensor([2, 0])
            written_BWT = written_BWT[sentences]
            state.keep(sentences)


@torch.no_grad()
def test_padding_changes_no_state(model):
    whole = model(SOURCE, SOURCE_LENGTH, TARGET, TARGET_LENGTH)
    for b in range(3):
        source, target = SOURCE[b : b + 1, : SOURCE_LENGTH[b]], TARGET[b : b + 1, : TARGET_LENGTH[b]]
        alone = model(source, SOURCE_LENGTH[b : b + 1], target, TARGET_LENGTH[b : b + 1])
        torch.testing.assert_close(whole[b, : TARGET_LENGTH[b]], alone[0], rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_word_dropout_takes_whole_words_of_both_sides_in_training(shared):
    settings = {"shared": shared, "tied": shared}
    model = build(positions="rotary", dropout=0.0, word_dropout=0.25, settings=settings)
    entered = {}
    for part in (model.encoder, model.decoder):
        part.dropout.register_forward_pre_hook(lambda _, given, part=part: entered.__setitem__(part, given[0]))
    words, length_B = torch.randint(3, 17, (40, 50)), torch.full((40,), 50)
    model(words, length_B, words, length_B)
    assert all((x_BTM != 0).all() for x_BTM in entered.values())
    model.train()(words, length_B, words, length_B)
    gone = [(x_BTM == 0) for x_BTM in entered.values()]
    assert len(gone) == 2
    for gone_BTM in gone:
        assert torch.equal(gone_BTM.any(-1), gone_BTM.all(-1))
        assert 0.2 < gone_BTM[..., 0].double().mean() < 0.3
    assert not torch.equal(*gone)


def test_rdrop_reads_a_batch_twice_and_draws_both_together():
    model = build(dropout=0.3).train()
    alone, doubled = (model.loss(BATCH, rdrop=rdrop) for rdrop in (0.0, 1e-9))
    assert (int(alone.count), int(doubled.count)) == (10, 20)
    weighted = []
    for rdrop in (1e-9, 1.0, 2.0):
        torch.manual_seed(1)
        weighted.append(model.loss(BATCH, rdrop=rdrop).sum.detach())
    assert weighted[1] > weighted[0]
    torch.testing.assert_close(weighted[2] - weighted[1], weighted[1] - weighted[0])
    model.loss(BATCH, rdrop=1.0).sum.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    still = model.eval().loss(BATCH, rdrop=5.0)
    torch.testing.assert_close(still.mean, model.loss(BATCH).mean)


def test_the_loss_is_that_of_each_next_token_and_adds_over_batches(model):
    scored = model.loss(BATCH, smoothing=0.1)
    logits_BTV = model.logits(model(SOURCE, SOURCE_LENGTH, TARGET, TARGET_LENGTH))
    expected = sum(
        torch.nn.functional.cross_entropy(
            logits_BTV[b, : TARGET_LENGTH[b] - 1],
            TARGET[b, 1 : TARGET_LENGTH[b]],
            reduction="sum",
            label_smoothing=0.1,
        )
        for b in range(3)
    )
    assert int(scored.count) == 10
    torch.testing.assert_close(scored.sum, expected)
    scored.sum.backward()
    whole = {name: x.grad.clone() for name, x in model.named_parameters()}
    model.zero_grad()
    for b in range(3):
        row = slice(b, b + 1)
        parts = SOURCE[row][:, : SOURCE_LENGTH[b]], SOURCE_LENGTH[row], TARGET[row][:, : TARGET_LENGTH[b]]
        model.loss(PairBatch(*parts, TARGET_LENGTH[row], torch.tensor([b])), smoothing=0.1).sum.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], msg=name)


@torch.no_grad()
def test_a_saved_model_comes_back(model, tmp_path):
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.config == model.config
    both = [each(SOURCE, SOURCE_LENGTH, TARGET, TARGET_LENGTH) for each in (model, again)]
    torch.testing.assert_close(*both, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"target_vocabulary": 5}, "`shared` vectors need one vocabulary; got 19 and 5"),
        ({"end": 19}, "`end` must be a token of the target's vocabulary of 19; got 19"),
        ({"decoder": DecoderConfig(layers=0)}, "decoder, own heads: `layers` must be at least 1; got 0"),
        ({"decoder": DecoderConfig(cross_kv_heads=3)}, "decoder, source heads: `kv_heads` must divide"),
        ({"encoder": EncoderConfig(vocabulary=19, embedding_width=7)}, "`tied` vectors must be as wide"),
        ({"copy": True, "shared": False, "target_vocabulary": 5}, "`copy` needs one vocabulary"),
    ],
)
def test_what_cannot_be_is_told(settings, told):
    with pytest.raises(ConfigError) as caught:
        Seq2Seq(Seq2SeqConfig(**({"encoder": EncoderConfig(vocabulary=19)} | settings)))
    assert told in str(caught.value)


def test_presets_have_the_sizes_that_they_say():
    counts = {}
    for size in ("tiny", "small", "base"):
        with torch.device("meta"):
            model = Seq2Seq(Seq2SeqConfig(EncoderConfig(vocabulary=10_000, **seq2seq_preset(size)["encoder"])))
        counts[size] = sum(x.numel() for x in model.parameters()) - model.encoder.tokens.table.weight.numel()
    assert [round(counts[size] / 1e6, 1) for size in counts] == [1.3, 7.4, 44.1]
    with pytest.raises(ConfigError, match="must be one of tiny, small, base; got 'huge'"):
        seq2seq_preset("huge")
