"""Read settings into frozen dataclasses: every problem at once, a line each, unknown names with the nearest known one.

A settings class is a frozen dataclass with a string under each field, which says what the field means and becomes its
help. Fields are numbers, strings, booleans, tuples of these, `Literal`s, other settings classes, or one of these or
`None`. A class may have a method `problems()` that yields a line for each value that cannot be.
"""

from __future__ import annotations

import ast
import inspect
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from headwise.errors import ConfigError

__all__ = ["help_of", "override", "read"]

_Settings = TypeVar("_Settings")


def read(kind: type[_Settings], given: Mapping[str, Any]) -> _Settings:
    """Build settings from nested tables, as TOML and JSON give them; what is left out has its default.

    Raises:
        ConfigError: with a line for every unknown name, wrong type and impossible value.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Sizes:
        ...     d_model: int = 64
        >>> read(Sizes, {"d_model": 32})
        Sizes(d_model=32)
        >>> read(Sizes, {"d_modle": 32})
        Traceback (most recent call last):
        headwise.errors.ConfigError: unknown setting `d_modle` in Sizes; did you mean `d_model`?
    """
    found: list[str] = []
    settings: _Settings = _built(kind, given, "", found)
    if found:
        raise ConfigError("\n".join(found))
    return settings


def help_of(kind: type[Any]) -> dict[str, str]:
    """Give the string that stands under each field of a settings class, by the field's name."""
    (body,) = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef), "settings are classes"
    texts: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def override(given: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """Change one setting of nested tables by `section.name=value`, the value as in TOML; a bare word is a string.

    Example:
        >>> override({"training": {"steps": 100}}, "training.steps=500")
        {'training': {'steps': 500}}
    """
    path, equals, text = assignment.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"a setting must be written section.name=value; got {assignment!r}. Try training.steps=500.")
    table = changed = dict(given)
    for name in names[:-1]:
        inner = table.get(name, {})
        if not isinstance(inner, Mapping):
            raise ConfigError(f"`{name}` must be a section to hold `{names[-1]}`; got {inner!r}. Check the path.")
        table[name] = table = dict(inner)
    table[names[-1]] = _value(text.strip())
    return changed


def _value(text: str) -> Any:
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # no TOML, or a number of more digits than Python reads
        return text


def _built(kind: Any, given: Mapping[str, Any], path: str, found: list[str]) -> Any:
    """Build one class, and note what is wrong.

    Where a value does not fit its field, the result has the default there, so that the checks of the class around it
    can still be made; where there is no default, it is a misfit as a whole.
    """
    types_of, known = typing.get_type_hints(kind), [field.name for field in fields(kind)]
    found += [_unknown(name, path, kind, known) for name in given if name not in known]
    tried = {name: _converted(types_of[name], given[name], f"{path}{name}", found) for name in known if name in given}
    values = {name: value for name, value in tried.items() if value is not _MISFIT}
    needed = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    if missing := [name for name in needed if name not in tried]:
        found.append(f"{kind.__name__} must have every setting without default; got none for {missing}. Add it.")
    if not values.keys() >= set(needed):
        return _MISFIT
    settings = kind(**values)
    if len(values) == len(tried):
        found += list(_problems(settings, path))
    return settings


def _unknown(name: str, path: str, kind: Any, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean `{path}{near[0]}`?" if near else f"known are {', '.join(known)}."
    return f"unknown setting `{path}{name}` in {kind.__name__}; {hint}"


def _problems(settings: Any, path: str) -> Iterator[str]:
    checks = getattr(settings, "problems", None)
    for line in () if checks is None else checks():
        yield line if not path else f"[{path.rstrip('.')}] {line}"


def _converted(wanted: Any, value: Any, path: str, found: list[str]) -> Any:
    """Bring a value to the type of its field, or note that it is another."""
    if is_dataclass(wanted) and isinstance(value, Mapping):
        return _built(wanted, value, f"{path}.", found)
    fitted = _fitted(wanted, value)
    if fitted is _MISFIT:
        found.append(f"`{path}` must be {_told(wanted)}; got {value!r}. Change it.")
    return fitted


_MISFIT = object()


def _fitted(wanted: Any, value: Any) -> Any:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return next((fit for each in inner if (fit := _fitted(each, value)) is not _MISFIT), _MISFIT)
    if origin is typing.Literal:
        value = "none" if value is None and "none" in inner else value  # `none` on the command line
        return value if value in inner and not isinstance(value, bool) else _MISFIT
    if origin is tuple:
        items = [_fitted(inner[0], each) for each in value] if isinstance(value, list | tuple) else [_MISFIT]
        return _MISFIT if any(item is _MISFIT for item in items) else tuple(items)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted in (int, float, str, bool, type(None)):
        return value if type(value) is wanted else _MISFIT
    return value if isinstance(value, wanted) else _MISFIT


def _told(wanted: Any) -> str:
    """Name a type in words."""
    inner = typing.get_args(wanted)
    match typing.get_origin(wanted):
        case typing.Union | types.UnionType:
            return " or ".join(_told(each) for each in inner)
        case typing.Literal:
            return "one of " + ", ".join(repr(each) for each in inner)
        case origin if origin is tuple:
            return f"a list, each {_told(inner[0])}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}
    return words.get(wanted, f"a table of {getattr(wanted, '__name__', wanted)}")
