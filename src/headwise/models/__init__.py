"""Hold the models, their settings, and what keeps them in files."""

from headwise.models.checkpoint import load, save
from headwise.models.classifier import Classifier, Encoder, Pooling
from headwise.models.config import ClassifierConfig, EncoderConfig, preset
from headwise.models.cutting import OwnLayout
from headwise.models.pretrained import load_classifier, load_encoder, locate

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "Encoder",
    "EncoderConfig",
    "OwnLayout",
    "Pooling",
    "load",
    "load_classifier",
    "load_encoder",
    "locate",
    "preset",
    "save",
]
