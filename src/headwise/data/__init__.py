"""Reviews, sentence pairs and reports, written for this project, on which a first run can train."""

from importlib import resources
from pathlib import Path

import headwise.errors

__all__ = ["pairs", "reports", "reviews"]

_REVIEWS = ("en", "zh")
_PAIRS = ("en-fr", "en-zh")


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
    _check("language", language, _REVIEWS)
    return _table(f"reviews.{language}")


def pairs(languages: str) -> Path:
    """Find the table of sentence pairs in two languages.

    The table is UTF-8 text: the header `split`, `en` and `fr` or `zh`, then one sentence and its translation a line,
    with a tab between columns. `split` is train, dev or test. No sentence holds a tab, so no field is quoted.

    Args:
        languages: `en-fr` or `en-zh`.

    Raises:
        InputError: there are no pairs in those languages.

    Example:
        >>> from headwise.data import pairs
        >>> pairs("en-fr").name
        'pairs.en-fr.tsv'
    """
    _check("languages", languages, _PAIRS)
    return _table(f"pairs.{languages}")


def reports() -> Path:
    """Find the table of short English reports with a headline each.

    The table is UTF-8 text: the header `split`, `text`, `headline`, then one report a line, with a tab between
    columns. `split` is train, dev or test. No field holds a tab, so none is quoted.

    Example:
        >>> from headwise.data import reports
        >>> reports().name
        'reports.tsv'
    """
    return _table("reports")


def _table(name: str) -> Path:
    return Path(str(resources.files(__name__))) / f"{name}.tsv"


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        names = " or ".join(f"`{one}`" for one in known)
        raise headwise.errors.InputError(f"`{name}` must be {names}; got {value!r}. Choose one of them.")
