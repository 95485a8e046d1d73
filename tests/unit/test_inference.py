"""A model that is ready to be used computes what the trained one computes."""

import pytest
import torch
from torch import nn

from headwise import Classifier, ClassifierConfig, EncoderConfig, Seq2Seq, Seq2SeqConfig
from headwise.heads import observe
from headwise.models import for_inference

ACTIVATIONS = ("relu", "silu", "gelu", "gelu_tanh", "swiglu")


def built(activation="relu", **settings):
    torch.manual_seed(0)
    encoder = EncoderConfig(vocabulary=53, d_model=24, layers=2, heads=4, d_ff=50, activation=activation)
    model = Seq2Seq(Seq2SeqConfig(encoder, **settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def written(model, steps=4):
    torch.manual_seed(1)
    source_BK, length_B = torch.randint(3, 53, (5, 7)), torch.tensor([7, 3, 5, 1, 2])
    with torch.no_grad():
        state = model.begin(source_BK, length_B)
        return torch.stack([model.step(torch.randint(3, 53, (5, 2)), state) for _ in range(steps)])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("settings", [{"output_bias": True}, {"tied": False, "output_bias": True}, {"copy": True}])
def test_steps_are_the_same(activation, settings):
    model = built(activation, **settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = written(for_inference(model))
    assert model.training, "the given model stays as it is"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(found, written(model.eval()), rtol=1e-4, atol=1e-4)


def test_another_type_of_numbers_is_close_and_shares_nothing():
    model = built()
    lower = for_inference(model, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in lower.state_dict().values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    expected = written(model.eval())
    torch.testing.assert_close(written(lower).float(), expected, rtol=0.1, atol=0.1 * float(expected.std()))


def test_what_cannot_be_packed_computes_the_same_bits():
    model = built().double()
    assert torch.equal(written(for_inference(model)), written(model.eval()))


def test_a_classifier_is_packed_too():
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(EncoderConfig(vocabulary=53, d_model=24, heads=4), classes=("a", "b")))
    given = torch.randint(0, 53, (3, 7)), torch.tensor([7, 2, 5])
    with torch.no_grad():
        torch.testing.assert_close(for_inference(model)(*given), model.eval()(*given))


def test_who_observes_the_model_sees_its_packed_twin():
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(EncoderConfig(vocabulary=53, layers=2, heads=4), classes=("a", "b")))
    with observe(model) as observer, torch.no_grad():
        for_inference(model)(torch.randint(3, 53, (2, 7)), torch.tensor([7, 4]))
    assert [row["queries"] for row in observer.table().rows()] == [11] * 8
