"""Train models: one loop for every task."""

from headwise.training.config import TrainingConfig
from headwise.training.loop import Job, Outcome, train
from headwise.training.runtime import Runtime, check_device, start

__all__ = ["Job", "Outcome", "Runtime", "TrainingConfig", "check_device", "start", "train"]
