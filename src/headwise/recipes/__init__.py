"""Join the parts to what people do: train, evaluate, predict, observe."""

from headwise.recipes.config import RunConfig, resolve
from headwise.recipes.demo import demo
from headwise.recipes.describe import describe
from headwise.recipes.doctor import doctor
from headwise.recipes.evaluate import evaluate, look, predict, predict_texts
from headwise.recipes.run import Run, open_run, with_data
from headwise.recipes.train import Plan, plan, train

__all__ = [
    "Plan",
    "Run",
    "RunConfig",
    "demo",
    "describe",
    "doctor",
    "evaluate",
    "look",
    "open_run",
    "plan",
    "predict",
    "predict_texts",
    "resolve",
    "train",
    "with_data",
]
