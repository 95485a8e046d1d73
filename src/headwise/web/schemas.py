"""Name what clients send and what they get, as plain dataclasses, which FastAPI reads and describes in OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from headwise.web.config import Limits
from headwise.web.work import TILE, Served

__all__ = [
    "Classified",
    "ExplainRequest",
    "Explained",
    "HeadName",
    "KeyWeight",
    "Link",
    "Models",
    "PredictRequest",
    "Predicted",
    "Problem",
    "Share",
    "State",
    "ViewRequest",
    "Viewed",
    "Word",
    "Written",
    "WrittenText",
    "limited",
]


class _Told:
    """Have pydantic describe fields by their docstrings."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"use_attribute_docstrings": True}


class _Asked:
    """Have pydantic refuse what is not known besides."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}


class _Exact:
    """Have pydantic take a number or a truth value only as itself, not as text that spells one."""

    @classmethod
    def __get_pydantic_core_schema__(cls, kind: Any, handler: Any) -> Any:
        return {**handler(kind), "strict": True}


_Int = Annotated[int, _Exact]
_Bool = Annotated[bool, _Exact]


@dataclass(frozen=True)
class HeadName(_Asked):
    """Name one head of a model."""

    place: str
    """Path of its layer, as in /v1/models."""
    head: _Int
    """Its name in that layer."""


@dataclass(frozen=True)
class PredictRequest(_Asked):
    """Ask a model about texts."""

    texts: list[str]
    """The texts."""
    model: str | None = None
    """Name of the model; the first one where left out."""
    off: list[HeadName] = field(default_factory=list)
    """Heads that are switched off."""
    beams: _Int | None = None
    """Beams of the search, for models that write; as the run was set where left out."""
    n_best: _Int = 1
    """How many texts are given, for models that write; at most as many as beams."""
    align: _Bool = False
    """Whether to tell which words of the source each written word comes from."""
    cut: _Bool = False
    """Whether a text with more tokens than the model reads loses its end, or is refused."""


@dataclass(frozen=True)
class ExplainRequest(_Asked):
    """Ask how a model comes to its answer on a text."""

    text: str
    """The text; what is beyond the tokens that the model reads is left out."""
    model: str | None = None
    """Name of the model; the first one where left out."""
    off: list[HeadName] = field(default_factory=list)
    """Heads that are switched off."""


@dataclass(frozen=True)
class ViewRequest(_Asked):
    """Ask what one head does on a text."""

    text: str
    """The text; what is beyond the tokens that the model reads is left out."""
    head: HeadName
    """The head."""
    model: str | None = None
    """Name of the model; the first one where left out."""
    off: list[HeadName] = field(default_factory=list)
    """Heads that are switched off."""
    zoom: _Int = 0
    """The whole map has 16 x 2^zoom cells a side."""
    row: _Int = 0
    """Which tile of 16 x 16 cells, counted from the top."""
    column: _Int = 0
    """The same from the left."""


@dataclass(frozen=True)
class Classified(_Told):
    """Say what a classifier makes of a text."""

    label: str
    """The likeliest class; where there may be several, those of at least one half."""
    probabilities: dict[str, float]
    """Probability of each class."""


@dataclass(frozen=True)
class Link(_Told):
    """Join a run of characters of what was read to one of what was written."""

    source: tuple[int, int]
    """Begin and end in the source."""
    target: tuple[int, int]
    """Begin and end in what was written."""
    drop: float
    """How much less likely, in nats, the written word is without the source's."""


@dataclass(frozen=True)
class WrittenText(_Told):
    """Hold a text that was written."""

    text: str
    """The text."""
    score: float
    """Its log-probability, divided by its length as the run says; at most 0."""


@dataclass(frozen=True)
class Written(_Told):
    """Hold the texts that were written for one source, the best first."""

    texts: list[WrittenText]
    """The texts."""
    links: list[Link] | None = None
    """Which words the best text was written from, where asked for."""


@dataclass(frozen=True)
class Predicted(_Told):
    """Answer a `PredictRequest`."""

    model: str
    """Name of the model."""
    answers: list[Classified] | list[Written]
    """One answer a text, in their order."""
    cut: int
    """How many texts lost their end."""


@dataclass(frozen=True)
class Share(_Told):
    """Name a head, and how much of its weight fell on a word."""

    place: str
    """Path of its layer."""
    head: int
    """Its name in that layer."""
    share: float
    """Mean weight over its queries, 0 to 1."""


@dataclass(frozen=True)
class Word(_Told):
    """Say what a word, or a run of words, did for the answer."""

    begin: int
    """Place of its first character, in Unicode code points."""
    end: int
    """Place after its last."""
    drop: float
    """How far the answer falls without it: probability of the class, or nats of what was written."""
    head: Share | None
    """The head that looked at it most."""


@dataclass(frozen=True)
class Explained(_Told):
    """Answer an `ExplainRequest`."""

    model: str
    """Name of the model."""
    answer: Classified | Written
    """The answer."""
    words: list[Word]
    """The words in their order; only those that the model read."""
    heads: list[dict[str, Any]]
    """One row a head: its place, name and figures, means over the text."""
    cut: int
    """1 where the text lost its end."""


@dataclass(frozen=True)
class KeyWeight(_Told):
    """Name a key, and the weight that it got."""

    key: int
    """Place of the key."""
    weight: float
    """Weight, 0 to 1."""


@dataclass(frozen=True)
class Viewed(_Told):
    """Answer a `ViewRequest`."""

    model: str
    """Name of the model."""
    queries: list[tuple[int, int]]
    """Begin and end of each query's token in the text; both 0 for one that stands for no text."""
    keys: list[tuple[int, int]]
    """The same of the keys, in the text that is looked at."""
    links: list[list[KeyWeight]]
    """The strongest keys of each query."""
    map: list[list[float]]
    """A tile of the head's map: mean mass from a row of cells to a column."""
    written: str | None = None
    """What the model wrote, for models that write."""
    queries_written: bool = False
    """Whether the queries are tokens of what was written, the first of them its begin."""
    keys_written: bool = False
    """Whether the keys are."""


@dataclass(frozen=True)
class Models(_Told):
    """List the models that are served."""

    models: list[dict[str, Any]]
    """Name, task, layers with their heads, and most tokens of each; labels of classifiers."""
    limits: dict[str, float]
    """How much may be asked of them."""


@dataclass(frozen=True)
class Problem(_Told):
    """Say what was wrong, and what to do about it."""

    detail: str
    """The problem."""


@dataclass(frozen=True)
class State(_Told):
    """Tell how the service is."""

    status: Literal["ok", "ready"]
    """ok where the process answers, ready where it takes requests."""


def limited(document: dict[str, Any], limits: Limits, models: Mapping[str, Served]) -> dict[str, Any]:
    """Write the limits of a service, its models and heads into its OpenAPI document, where clients look for them."""
    schemas = document["components"]["schemas"]
    text, zooms = {"maxLength": limits.characters}, (limits.cells // TILE).bit_length() - 1
    beams, tiles = {"minimum": 1, "maximum": limits.beams}, {"minimum": 0, "maximum": 2**zooms - 1}
    layers = [layer for model in models.values() for layer in model.about()["layers"]]
    heads = {"minimum": 0, "maximum": max(head for layer in layers for head in layer["heads"])}
    known = {
        "HeadName": {"place": {"enum": sorted({layer["place"] for layer in layers})}, "head": heads},
        "PredictRequest": {"texts": {"minItems": 1, "maxItems": limits.texts}, "beams": beams, "n_best": beams},
        "ExplainRequest": {"text": text},
        "ViewRequest": {"text": text, "zoom": {"minimum": 0, "maximum": zooms}, "row": tiles, "column": tiles},
    }
    for name, fields_ in known.items():
        asked = schemas[name]["properties"]
        for field_, rule in fields_.items():
            _add(asked[field_], rule)
        if "model" in asked:
            _add(asked["model"], {"enum": list(models)})
    _add(schemas["PredictRequest"]["properties"]["texts"]["items"], text)
    return document


def _add(schema: dict[str, Any], rule: Mapping[str, Any]) -> None:
    """Add a rule to a schema; where that may be null, to what it may be else."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    kinds[0].update(rule)
