"""Cut Chinese into words with jieba."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from headwise.contracts.files import cache_folder
from headwise.tasks.extras import need

__all__ = ["cut_words", "has_chinese", "places_before"]

_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]+")


def has_chinese(text: str) -> bool:
    """Tell whether a text holds Chinese characters."""
    return not text.isascii() and _CHINESE.search(text) is not None


def cut_words(text: str) -> str:
    """Put spaces around the words of every run of Chinese characters; the rest stays as it is.

    Raises:
        InputError: when jieba is not installed.
    """
    cutter = _cutter()
    return _CHINESE.sub(lambda run: f" {' '.join(cutter.cut(run[0]))} ", text)


def places_before(cut: str, text: str) -> Sequence[int]:
    """Give the place in `text` of each place in what `cut_words` made of it, the end included."""
    places, at = [], 0
    for character in cut:
        places.append(at)
        if at < len(text) and character == text[at]:
            at += 1
    return [*places, at]


@cache
def _cutter() -> Any:
    jieba = need("jieba", "chinese")
    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()
    cutter.tmp_dir = str(cache_folder())
    cache_folder().mkdir(parents=True, exist_ok=True)
    return cutter
