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
