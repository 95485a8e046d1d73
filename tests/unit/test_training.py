"""One loop for every task: it learns, counts right, keeps the best, and stops where it must."""

import json
import logging
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.toy import TOY, loss, toy_job
from headwise import ConfigError, HeadwiseError, Scored
from headwise.training import train
from tests.unit.runs import CPU, at, check_near, check_same_end, lines, state, states

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_rule_is_learned(finished):
    out, outcome = finished
    assert outcome.best["accuracy"] > 0.95
    assert json.loads((out / "metrics.json").read_text()) == outcome.best
    assert states(out) == ["state-000050", "state-000060"]
    assert not list(out.rglob("*.part"))


def test_the_same_seed_gives_the_same_run(finished, tmp_path):
    train(toy_job(CPU), TOY, tmp_path, CPU, quiet=True)
    check_same_end(tmp_path, finished[0])


@pytest.mark.parametrize("accumulation", [2, 3, 50])
def test_micro_batches_equal_one_batch(accumulation, tmp_path):
    once = replace(TOY, steps=1, clip=0.0, batch_tokens=900)
    for name, config in (("one", once), ("many", replace(once, accumulation=accumulation))):
        job = toy_job(CPU, dropout=0.0)
        job.model.double()
        train(job, config, tmp_path / name, CPU, quiet=True)
    # After one step AdamW remembers a tenth of the gradient.
    one, many = (
        {k: v for k, v in state(tmp_path / name, 1).items() if k.endswith("exp_avg")} for name in ("one", "many")
    )
    assert len(one) == len(list(toy_job(CPU).model.parameters()))
    check_near(many, one, 1e-6)


def test_training_stops_early(tmp_path):
    figures = iter([0.5, 0.6, 0.6, 0.55, 0.9])
    job = replace(toy_job(CPU), validate=lambda model: {"accuracy": next(figures)})
    outcome = train(job, replace(TOY, validate_every=5, patience=2, average=0), tmp_path, CPU, quiet=True)
    assert (outcome.step, outcome.best_step, outcome.best) == (20, 10, {"accuracy": 0.6})


@pytest.mark.parametrize(("keep_best", "step"), [("", 10), ("accuracy", 10), ("loss", 15)])
def test_the_best_is_kept(keep_best, step, tmp_path):
    figures = iter([(0.5, 0.9), (0.7, 0.8), (0.6, 0.7), (0.65, 0.75)])
    held = {}

    def validate(model):
        held[len(held) * 5 + 5] = model.output.weight.detach().clone()
        return dict(zip(("accuracy", "loss"), next(figures), strict=True))

    config = replace(TOY, steps=20, validate_every=5, average=0, keep_best=keep_best)
    outcome = train(replace(toy_job(CPU), validate=validate), config, tmp_path, CPU, quiet=True)
    assert outcome.best_step == step
    assert torch.equal(load_file(tmp_path / "model.safetensors")["output.weight"], held[step])


def test_a_figure_is_better_than_none(tmp_path):
    figures = iter([float("nan"), 0.2])
    job = replace(toy_job(CPU), validate=lambda model: {"accuracy": next(figures)})
    outcome = train(job, replace(TOY, steps=10, validate_every=5, average=0), tmp_path, CPU, quiet=True)
    assert (outcome.best_step, outcome.best) == (10, {"accuracy": 0.2})


def test_an_unknown_figure_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="`keep_best` must be one of accuracy, loss; got bleu"):
        train(toy_job(CPU), replace(TOY, keep_best="bleu"), tmp_path, CPU, quiet=True)


def test_the_last_parameters_are_averaged(tmp_path):
    figures, held = iter([0.5, 0.6, 0.7, 0.8]), []

    def validate(model):
        held.append(model.output.weight.detach().clone())
        return {"accuracy": next(figures)}

    config = replace(TOY, steps=15, validate_every=5, average=2)
    outcome = train(replace(toy_job(CPU), validate=validate), config, tmp_path, CPU, quiet=True)
    assert outcome.averaged
    assert outcome.best == {"accuracy": 0.8}
    kept = load_file(tmp_path / "model.safetensors")["output.weight"]
    torch.testing.assert_close(kept, (held[1] + held[2]) / 2)
    assert torch.equal(held[3], kept)


def test_a_worse_average_is_left(tmp_path):
    figures = iter([0.5, 0.6, 0.55])
    job = replace(toy_job(CPU), validate=lambda model: {"accuracy": next(figures)})
    outcome = train(job, replace(TOY, steps=10, validate_every=5), tmp_path, CPU, quiet=True)
    assert (outcome.averaged, outcome.best) == (False, {"accuracy": 0.6})


def test_gradients_are_clipped(tmp_path):
    for name, clip in (("free", 0.0), ("clipped", 0.01)):
        train(toy_job(CPU), replace(TOY, steps=1, log_every=1, clip=clip), tmp_path / name, CPU, quiet=True)

    def norm(name):
        held = state(tmp_path / name, 1)
        return sum(tensor.square().sum() for key, tensor in held.items() if key.endswith("exp_avg")) ** 0.5 / 0.1

    assert norm("clipped") == pytest.approx(0.01, rel=1e-4)
    assert norm("free") == pytest.approx(lines(tmp_path / "free")[0]["gradient_norm"], rel=1e-4)
    assert lines(tmp_path / "clipped")[0]["gradient_norm"] == lines(tmp_path / "free")[0]["gradient_norm"]


def test_products_are_bf16_where_asked(tmp_path):
    seen = set()

    def watched(model, batch):
        seen.add((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return loss(model, batch)

    runtime = replace(CPU, dtype=torch.bfloat16)
    outcome = train(replace(toy_job(runtime), loss=watched), TOY, tmp_path, runtime, quiet=True)
    assert seen == {(True, torch.bfloat16)}
    assert outcome.best["accuracy"] > 0.95
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(bad, tmp_path):
    steps = []

    def poisoned(model, batch):
        scored = loss(model, batch)
        return Scored(scored.sum * bad, scored.count) if len(steps) == 34 else scored

    job = replace(toy_job(CPU), loss=poisoned, on_step=steps.append)
    with pytest.raises(HeadwiseError, match=r"at step 34\. Lower `learning_rate`.*the state of step 30 is whole"):
        train(job, TOY, tmp_path, CPU, quiet=True)
    assert states(tmp_path) == ["state-000020", "state-000030"]
    assert all(tensor.isfinite().all() for tensor in state(tmp_path, 30).values())


def test_no_pickle_is_written(finished):
    kinds = {path.suffix for path in finished[0].rglob("*") if path.is_file()}
    assert kinds == {".json", ".jsonl", ".safetensors"}


@pytest.mark.parametrize("given", [None, "7"])
def test_few_compiled_products_are_kept_unless_told_otherwise(given, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": given} if given else {})
    train(toy_job(CPU), replace(TOY, steps=1), tmp_path, CPU, quiet=True)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == (given or "64")


def test_hooks_are_called(tmp_path):
    steps = []
    job = replace(
        toy_job(CPU),
        on_step=steps.append,
        look=lambda model, batch: {"entropy.0": 0.0 if model.training or torch.is_grad_enabled() else 1.5},
    )
    train(job, replace(TOY, steps=20), tmp_path, CPU, quiet=True)
    assert steps == list(range(21))
    assert [line["entropy.0"] for line in lines(tmp_path) if "loss" in line] == [1.5, 1.5]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_extra_loss_is_added_to_the_mean(accumulation, tmp_path):
    config = replace(TOY, steps=1, clip=0.0, accumulation=accumulation)
    bias = toy_job(CPU).model.output.bias.detach().clone()
    extra = replace(toy_job(CPU), extra_loss=lambda model: 50 * model.output.bias.square().sum())
    gradients = []
    for name, job in (("plain", toy_job(CPU)), ("extra", extra)):
        train(job, config, tmp_path / name, CPU, quiet=True)
        gradients.append(state(tmp_path / name, 1)["optimizer/output.bias/exp_avg"] / 0.1)
    torch.testing.assert_close(gradients[1] - gradients[0], 100 * bias)


def test_a_parameter_that_is_frozen_or_unused_stays(tmp_path):
    job = toy_job(CPU)
    job.model.unused = nn.Linear(3, 3)
    job.model.embedding.weight.requires_grad_(False)
    job = replace(job, on_step=at(15, lambda: job.model.embedding.weight.requires_grad_(True)))
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    train(job, replace(TOY, steps=20, save_every=5), tmp_path, CPU, quiet=True)
    after = state(tmp_path, 15), state(tmp_path, 20)
    assert torch.equal(before["unused.weight"], after[1]["model/unused.weight"])
    assert torch.equal(before["embedding.weight"], after[0]["model/embedding.weight"])
    assert not torch.equal(before["embedding.weight"], after[1]["model/embedding.weight"])


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:tensorboard")  # its generated code is older than protobuf
def test_tensorboard_is_written(tmp_path):
    train(toy_job(CPU), replace(TOY, steps=20, tensorboard=True), tmp_path, CPU, quiet=True)
    assert next((tmp_path / "training" / "tensorboard").glob("events*")).stat().st_size > 500


def test_progress_is_shown(tmp_path, capsys):
    train(toy_job(CPU), replace(TOY, steps=20, average=0), tmp_path, CPU)
    captured = capsys.readouterr()
    assert "20/20" in captured.err
    assert "step 20: accuracy" in captured.out + captured.err


@pytest.mark.slow
def test_a_compiled_model_learns(tmp_path):
    outcome = train(toy_job(CPU, dropout=0.0), replace(TOY, steps=3, compile=True), tmp_path, CPU, quiet=True)
    assert outcome.step == 3


def test_nothing_is_shown_where_quiet(tmp_path, capsys):
    train(toy_job(CPU), replace(TOY, steps=20), tmp_path, CPU, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_the_precision_is_told(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "headwise"):
        train(toy_job(CPU), replace(TOY, steps=2), tmp_path, replace(CPU, reason="as asked"), quiet=True)
    assert "torch.float32 on cpu, 1 processes: as asked" in caplog.text
