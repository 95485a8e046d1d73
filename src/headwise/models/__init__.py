"""Hold the models, their settings, and what keeps them in files."""

from headwise.models.checkpoint import load, save
from headwise.models.classifier import Classifier, Encoder, Pooling
from headwise.models.config import ClassifierConfig, EncoderConfig, preset
from headwise.models.cutting import OwnLayout
from headwise.models.inference import PackedLinear, for_inference
from headwise.models.pretrained import load_classifier, load_encoder, locate
from headwise.models.pretrained_seq2seq import load_seq2seq
from headwise.models.seq2seq import Decoder, Seq2Seq, State
from headwise.models.seq2seq_config import DecoderConfig, Seq2SeqConfig, seq2seq_preset

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "OwnLayout",
    "PackedLinear",
    "Pooling",
    "Seq2Seq",
    "Seq2SeqConfig",
    "State",
    "for_inference",
    "load",
    "load_classifier",
    "load_encoder",
    "load_seq2seq",
    "locate",
    "preset",
    "save",
    "seq2seq_preset",
]
