"""See, score and cut every head of multi-head attention, at full speed."""

import logging

from headwise.contracts import Alibi, Dropout, Mask, RelativeBias, Scored, Seen, Statistics
from headwise.errors import BackendError, ConfigError, HeadwiseError, InputError
from headwise.functional import Explanation, Rotary, attend, attention_weights, explain, sinusoidal
from headwise.models import (
    Classifier,
    ClassifierConfig,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    Seq2Seq,
    Seq2SeqConfig,
    load,
    load_classifier,
    load_encoder,
    load_seq2seq,
    save,
)
from headwise.modules import (
    AlibiPositions,
    Attend,
    AttentionBlock,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    HiddenDropout,
    KeyValueCache,
    LearnedPositions,
    MultiHeadAttention,
    RelativePositions,
    SinusoidalPositions,
    TokenEmbedding,
)

__version__ = "0.1.0"
logging.getLogger("headwise").addHandler(logging.NullHandler())

__all__ = [
    "Alibi",
    "AlibiPositions",
    "Attend",
    "AttentionBlock",
    "BackendError",
    "Classifier",
    "ClassifierConfig",
    "ConfigError",
    "DecoderConfig",
    "DecoderLayer",
    "Dropout",
    "Encoder",
    "EncoderConfig",
    "EncoderLayer",
    "Explanation",
    "FeedForward",
    "HeadwiseError",
    "HiddenDropout",
    "InputError",
    "KeyValueCache",
    "LearnedPositions",
    "Mask",
    "MultiHeadAttention",
    "RelativeBias",
    "RelativePositions",
    "Rotary",
    "Scored",
    "Seen",
    "Seq2Seq",
    "Seq2SeqConfig",
    "SinusoidalPositions",
    "Statistics",
    "TokenEmbedding",
    "attend",
    "attention_weights",
    "explain",
    "load",
    "load_classifier",
    "load_encoder",
    "load_seq2seq",
    "save",
    "sinusoidal",
]
