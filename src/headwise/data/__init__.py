"""Short reviews in English and Chinese, written for this project, on which a first run can train."""

from importlib import resources
from pathlib import Path

import headwise.errors

__all__ = ["reviews"]

_LANGUAGES = ("en", "zh")


def reviews(language: str) -> Path:
    """Find the table of reviews in a language.

    The table is UTF-8 text: the header `split`, `label`, `text`, then one review a line, with a tab between columns.
    `split` is train, dev or test; `label` is positive or negative. No text holds a tab, so no field is quoted.

    Args:
        language: `en` or `zh`.

    Raises:
        InputError: there are no reviews in that language.

    Example:
        >>> from headwise.data import reviews
        >>> reviews("zh").name
        'reviews.zh.tsv'
    """
    if language not in _LANGUAGES:
        known = " or ".join(f"`{name}`" for name in _LANGUAGES)
        raise headwise.errors.InputError(f"`language` must be {known}; got {language!r}. Choose one of them.")
    return Path(str(resources.files(__name__))) / f"reviews.{language}.tsv"
