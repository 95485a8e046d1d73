"""The settings of training, the learning rate of every step, and which parameters decay."""

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from headwise import ConfigError
from headwise.contracts import settings
from headwise.training import TrainingConfig
from headwise.training.optimizer import adamw, learning_rate, scale_gradients

STEPS = 101


def rates(**changes):
    config = replace(TrainingConfig(learning_rate=2.0), **changes)
    return [learning_rate(config, step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "inverse_sqrt", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.1, 10])
def test_the_rate_rises_and_then_never_rises_again(schedule, warmup):
    steps = 10 if warmup else 0
    found = rates(schedule=schedule, warmup=float(warmup))
    assert found[:steps] == pytest.approx([2.0 * (step + 1) / 10 for step in range(steps)])
    assert found[steps] == 2.0
    assert found[steps:] == sorted(found[steps:], reverse=True)
    assert min(found) > 0


@pytest.mark.parametrize(
    ("schedule", "last"), [("cosine", 0.001), ("linear", 0.02), ("inverse_sqrt", 0.2), ("constant", 2.0)]
)
def test_the_rate_falls_as_its_schedule_says(schedule, last):
    assert rates(schedule=schedule, warmup=1.0)[-1] == pytest.approx(last, abs=5e-3)


def test_steps_beyond_the_last_keep_the_rate_at_the_end():
    assert learning_rate(TrainingConfig(schedule="cosine"), 500, STEPS) == pytest.approx(0, abs=1e-12)


def test_biases_norms_and_embeddings_do_not_decay():
    model = nn.Sequential(nn.Embedding(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    decaying, rest = adamw(model, TrainingConfig(weight_decay=0.3)).param_groups
    assert [id(parameter) for parameter in decaying["params"]] == [id(model[2].weight)]
    assert (decaying["weight_decay"], rest["weight_decay"], len(rest["params"])) == (0.3, 0.0, 4)
    assert decaying["fused"]


def test_a_tied_table_does_not_decay():
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7, bias=False))
    model[1].weight = model[0].weight
    (rest,) = adamw(model, TrainingConfig()).param_groups
    assert (rest["weight_decay"], len(rest["params"])) == (0.0, 1)


@pytest.mark.parametrize(("count", "divisor"), [(7, 7.0), (0, 1.0)])
def test_gradients_are_divided_by_the_count(count, divisor):
    parameter, frozen = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 0.0, 4.0])
    norm = scale_gradients([parameter, frozen], torch.tensor(count), 0.0)
    torch.testing.assert_close(norm, torch.tensor(5.0 / divisor))
    torch.testing.assert_close(parameter.grad, torch.tensor([3.0, 0.0, 4.0]) / divisor)
    assert scale_gradients([frozen], torch.tensor(count), 1.0) == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"passes": 0}, "`passes` must be at least 1; got 0"),
        ({"steps": 0}, "`steps` must be at least 1; got 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0"),
        ({"label_smoothing": 1.0}, "`label_smoothing` must lie in"),
        ({"betas": [0.9]}, "`betas` must be two numbers"),
        ({"betas": [0.9, 1.0]}, "`betas` must be two numbers"),
        ({"clip": float("nan")}, "`clip` must be at least 0; got nan"),
        ({"precision": "fp16"}, "`precision` must be one of"),
        ({"patiense": 3}, "did you mean `patience`"),
    ],
)
def test_impossible_settings_are_refused(given, told):
    with pytest.raises(ConfigError, match=told):
        settings.read(TrainingConfig, given)


def test_every_setting_has_its_help():
    assert settings.help_of(TrainingConfig).keys() == {field.name for field in fields(TrainingConfig)}
    assert settings.read(TrainingConfig, {}) == TrainingConfig()
