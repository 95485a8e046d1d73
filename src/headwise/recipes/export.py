"""Hand a run over to an engine that serves it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, get_args

from headwise.errors import InputError
from headwise.integrations.ctranslate2 import export_ctranslate2
from headwise.models import Seq2Seq
from headwise.recipes.pair_config import PairConfig
from headwise.recipes.run import Run

__all__ = ["TYPES", "export"]

_log = logging.getLogger("headwise")

_Weights = Literal["float32", "int8", "int16", "bfloat16", "float16"]
TYPES: tuple[_Weights, ...] = get_args(_Weights)
"""Types in which the weights may be stored."""


def export(run: Run, folder: Path, *, weights: _Weights = "float32") -> Path:
    """Write a translator or summarizer as CTranslate2 reads it, with its tokenizer.

    Args:
        run: the run.
        folder: where to; a new folder, or that of an earlier export.
        weights: their type; int8 is the smallest, and on a CPU the fastest.

    Raises:
        InputError: for a classifier, a model that CTranslate2 cannot compute, or where it is not installed.
    """
    if not isinstance(run.model, Seq2Seq):
        told = f"translation or summarization; got {run.config.task}"
        raise InputError(f"what CTranslate2 is given must be of {told}. Name another run.")
    assert isinstance(run.config, PairConfig), "a run on pairs"
    for prefix, side in ((run.config.data.source_prefix, "source"), (run.config.decoding.prefix, "text")):
        if prefix:
            _log.warning("CTranslate2 does not know what this model wants before every %s: pass %r to it", side, prefix)
    return export_ctranslate2(run.model.eval(), run.tokenizer, folder, quantization=weights)
