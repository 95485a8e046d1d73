"""Settings: read with every problem at once, overridden by path, and documented by the string under each field."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from headwise import ConfigError
from headwise.contracts import settings


@dataclass(frozen=True)
class Model:
    d_model: int = 64
    """Width of the
    model."""
    rate: float = 0.1
    """Dropout."""
    norm: Literal["pre", "post", "none"] = "pre"
    """Where."""
    heads: tuple[int, ...] = (0, 1)
    """Names."""
    cap: int | None = None
    """Longest."""

    def problems(self):
        if self.d_model < 1:
            yield f"`d_model` must be at least 1; got {self.d_model}. 64 is usual."


@dataclass(frozen=True)
class Run:
    model: Model = field(default_factory=Model)
    """The model."""
    seed: int = 0
    """The seed."""

    def problems(self):
        if self.seed < 0:
            yield f"`seed` must be at least 0; got {self.seed}. 0 will do."


def test_tables_become_settings():
    run = settings.read(Run, {"model": {"rate": 1, "heads": [2, 3], "cap": 5, "norm": "post"}, "seed": 7})
    assert run == Run(Model(64, 1.0, "post", (2, 3), 5), 7)
    assert type(run.model.rate) is float
    assert settings.read(Run, {"model": {"cap": None}}) == Run()
    assert settings.read(Run, {"model": {"norm": None}}).model.norm == "none"


def test_every_problem_is_told_at_once():
    wrong = {"model": {"d_modle": 3, "norm": "mid", "heads": ["a"], "rate": "x"}, "sead": 1, "seed": True}
    with pytest.raises(ConfigError) as raised:
        settings.read(Run, wrong)
    assert sorted(str(raised.value).splitlines()) == [
        "`model.heads` must be a list, each a whole number; got ['a']. Change it.",
        "`model.norm` must be one of 'pre', 'post', 'none'; got 'mid'. Change it.",
        "`model.rate` must be a number; got 'x'. Change it.",
        "`seed` must be a whole number; got True. Change it.",
        "unknown setting `model.d_modle` in Model; did you mean `model.d_model`?",
        "unknown setting `sead` in Run; did you mean `seed`?",
    ]


def test_a_class_names_its_impossible_values():
    with pytest.raises(ConfigError, match=r"^\[model\] `d_model` must be at least 1; got 0\. 64 is usual\.$"):
        settings.read(Run, {"model": {"d_model": 0}})


@pytest.mark.parametrize(
    ("nested", "told"),
    [
        ({"d_model": 0}, "[model] `d_model` must be at least 1; got 0. 64 is usual."),
        ({"d_model": "x"}, "`model.d_model` must be a whole number; got 'x'. Change it."),
        ({"width": 5}, "unknown setting `model.width` in Model; known are d_model, rate, norm, heads, cap."),
    ],
)
def test_what_is_wrong_outside_and_inside_is_told_at_once(nested, told):
    with pytest.raises(ConfigError) as raised:
        settings.read(Run, {"model": nested, "seed": -1})
    assert str(raised.value).splitlines() == [told, "`seed` must be at least 0; got -1. 0 will do."]


@dataclass(frozen=True)
class Needed:
    size: int
    """Must be given."""
    rate: float = 0.1
    """May be."""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "Needed must have every setting without default; got none for ['size']. Add it."),
        ({"size": "x"}, "`size` must be a whole number; got 'x'. Change it."),
    ],
)
def test_what_has_no_default_must_be_given(given, told):
    with pytest.raises(ConfigError) as raised:
        settings.read(Needed, given)
    assert str(raised.value) == told


@pytest.mark.parametrize(
    ("assignment", "value"),
    [("a.b=5", 5), ("a.b = 0.5", 0.5), ("a.b=word", "word"), ("a.b=[1, 2]", [1, 2]), ("a.b=none", None)],
)
def test_one_setting_is_overridden(assignment, value):
    given = {"a": {"b": 1, "c": 2}}
    assert settings.override(given, assignment) == {"a": {"b": value, "c": 2}}
    assert given == {"a": {"b": 1, "c": 2}}
    assert settings.override({}, assignment) == {"a": {"b": value}}


@pytest.mark.parametrize("wrong", ["a.b", "=5", "a..b=5", "seed.b=5"])
def test_a_wrong_override_is_refused(wrong):
    with pytest.raises(ConfigError):
        settings.override({"seed": 1}, wrong)


def test_the_string_under_a_field_is_its_help():
    assert settings.help_of(Model)["d_model"] == "Width of the model."
