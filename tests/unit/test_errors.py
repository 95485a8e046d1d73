"""Bad input: each refused by an error of the house, with both values and a remedy."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import headwise
from headwise import (
    Alibi,
    BackendError,
    ConfigError,
    Dropout,
    HeadwiseError,
    InputError,
    Mask,
    RelativeBias,
    Statistics,
    attend,
    attention_weights,
    explain,
)


def tensors(**changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Give query, key and value of 2 samples, 4 heads on 2 groups, 3 queries, 5 keys, width 6; some of them changed."""
    held = {
        "query": torch.zeros(2, 4, 3, 6),
        "key": torch.zeros(2, 2, 5, 6),
        "value": torch.zeros(2, 2, 5, 6),
    } | changes
    return held["query"], held["key"], held["value"]


def with_(mask: Mask | None = None, **settings: Any) -> Callable[..., Any]:
    return lambda backend: attend(*tensors(), mask, **settings, backend=backend)


def of(**changes: Any) -> Callable[..., Any]:
    return lambda backend: attend(*tensors(**changes), backend=backend)


ids = torch.zeros(2, 5, dtype=torch.int64)
TENSORS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "no tensor": (of(query=[1.0]), ("`query`", "list")),
    "rank": (of(key=torch.zeros(2, 5, 6)), ("`key`", "4 axes", "(2, 5, 6)")),
    "rank of values": (of(value=torch.zeros(6)), ("`value`", "4 axes", "(6,)")),
    "integers": (of(query=torch.zeros(2, 4, 3, 6, dtype=torch.int64)), ("`query`", "float", "torch.int64")),
    "complex": (of(query=torch.zeros(2, 4, 3, 6, dtype=torch.complex64)), ("`query`", "float", "torch.complex64")),
    "mixed types": (of(value=torch.zeros(2, 2, 5, 6).double()), ("`value`", "torch.float64", "torch.float32")),
    "mixed devices": (of(key=torch.zeros(2, 2, 5, 6, device="meta")), ("`key`", "meta", "cpu")),
    "samples": (of(key=torch.zeros(1, 2, 5, 6), value=torch.zeros(1, 2, 5, 6)), ("(2, 4, 3, 6)", "(1, 2, 5, 6)")),
    "samples of values": (of(value=torch.zeros(1, 2, 5, 6)), ("(2, 2, 5, 6)", "(1, 2, 5, 6)")),
    "width": (of(query=torch.zeros(2, 4, 3, 7)), ("(2, 4, 3, 7)", "(2, 2, 5, 6)")),
    "positions": (of(value=torch.zeros(2, 2, 4, 6)), ("(2, 2, 5, 6)", "(2, 2, 4, 6)")),
    "groups of values": (of(value=torch.zeros(2, 4, 5, 6)), ("(2, 2, 5, 6)", "(2, 4, 5, 6)")),
    "grouping": (of(query=torch.zeros(2, 3, 3, 6)), ("multiple", "3 and 2")),
    "more groups than heads": (of(query=torch.zeros(2, 1, 3, 6)), ("multiple", "1 and 2")),
    "no heads": (of(query=torch.zeros(2, 0, 3, 6)), ("multiple", "0 and 2")),
    "no groups": (of(key=torch.zeros(2, 0, 5, 6), value=torch.zeros(2, 0, 5, 6)), ("multiple", "4 and 0")),
}
MASKS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "no mask": (with_(torch.ones(3, 5).bool()), ("headwise.Mask", "Tensor")),
    "dense, too wide": (with_(Mask.dense(torch.ones(3, 6).bool())), ("5 keys", "(1, 1, 3, 6)", "(2, 4, 3, 5)")),
    "dense, other heads": (with_(Mask.dense(torch.ones(2, 3, 3, 5).bool())), ("4 heads", "(2, 3, 3, 5)")),
    "dense, groups": (with_(Mask.dense(torch.ones(2, 2, 3, 5).bool())), ("4 heads", "(2, 2, 3, 5)")),
    "lengths of others": (with_(Mask.lengths(torch.tensor([3]))), ("2 samples", "(1,)")),
    "query lengths of others": (with_(Mask.lengths(ids[:, 0], ids[0])), ("2 samples", "(5,)")),
    "starts of others": (with_(Mask.lengths(ids[:, 0], key_start=ids[0])), ("2 samples", "(5,)")),
    "segments": (with_(Mask.segments(ids[:, :4])), ("5 keys", "(2, 4")),
    "query segments": (with_(Mask.segments(ids, ids)), ("3 queries", "(2, 5")),
    "segments, few keys": (lambda backend: attend(*few_keys(), Mask.segments(ids[:, :2]), backend=backend), ("3", "2")),
    "another device": (with_(Mask.lengths(ids[:, 0].to("meta"))), ("cpu", "meta")),
    "too many keys": (with_(Mask.lengths(torch.tensor([3, 6]))), ("5", "6")),
    "negative keys": (with_(Mask.lengths(torch.tensor([3, -1]))), ("5", "-1")),
    "keys that end outside": (with_(Mask.lengths(torch.tensor([3, 2]), key_start=torch.tensor([0, 4]))), ("5", "4")),
    "a start before the first": (
        with_(Mask.lengths(torch.tensor([3, 2]), key_start=torch.tensor([-1, 0]))),
        ("5", "-1"),
    ),
    "too many queries": (with_(Mask.lengths(torch.tensor([3, 2]), torch.tensor([4, 0]))), ("3", "4")),
    "queries counted alone": (with_(Mask(query_length_B=ids[:, 0])), ("`query_length_B`", "`key_length_B`")),
    "negative queries": (with_(Mask.lengths(torch.tensor([3, 2]), torch.tensor([-2, 0]))), ("3", "-2")),
}
SETTINGS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "bias of rank 2": (with_(bias=torch.zeros(3, 5)), ("(2, 4, 3, 5)", "(3, 5)")),
    "bias, too wide": (with_(bias=torch.zeros(1, 4, 3, 6)), ("(2, 4, 3, 5)", "(1, 4, 3, 6)")),
    "boolean bias": (with_(bias=torch.ones(1, 1, 3, 5).bool()), ("float", "torch.bool")),
    "bias of another kind": (with_(bias=0.5), ("`bias`", "float")),
    "bias elsewhere": (with_(bias=torch.zeros(1, 1, 3, 5, device="meta")), ("cpu", "meta")),
    "slopes of other heads": (with_(bias=Alibi(torch.ones(2))), ("4", "(2,)")),
    "slopes of rank 2": (with_(bias=Alibi(torch.ones(1, 4))), ("4", "(1, 4)")),
    "table of other heads": (with_(bias=RelativeBias(torch.zeros(8, 2))), ("4", "(8, 2)")),
    "table too small": (with_(bias=RelativeBias(torch.zeros(2, 4))), ("2",)),
    "table too small, one way": (with_(bias=RelativeBias(torch.zeros(1, 4), bidirectional=False)), ("1",)),
    "distance too short": (with_(bias=RelativeBias(torch.zeros(32, 4), max_distance=8)), ("32", "8")),
    "integers in the table": (with_(bias=RelativeBias(torch.zeros(8, 4, dtype=torch.int64))), ("float", "torch.int64")),
    "integers as slopes": (with_(bias=Alibi(torch.ones(4, dtype=torch.int64))), ("float", "torch.int64")),
    "scale": (with_(scale=float("nan")), ("`scale`", "nan")),
    "infinite scale": (with_(scale=float("inf")), ("`scale`", "inf")),
    "scale as text": (with_(scale="1"), ("`scale`", "'1'")),
    "rate": (with_(dropout=1.5), ("`dropout`", "between 0 and 1", "1.5")),
    "negative rate": (with_(dropout=-0.1), ("`dropout`", "-0.1")),
    "no rate": (with_(dropout=float("nan")), ("`dropout`", "nan")),
    "rate as text": (with_(dropout="0.1"), ("`dropout`", "'0.1'")),
    "rate with a seed": (with_(dropout=Dropout(2.0, 1)), ("`dropout`", "2.0")),
    "seeds": (with_(dropout=Dropout(0.1, torch.tensor([1, 2]))), ("int64", "(2,)")),
    "rate as truth": (with_(dropout=True), ("`dropout`", "True")),
    "seed as a fraction": (with_(dropout=Dropout(0.1, 1.5)), ("int64", "1.5")),
    "no seed": (with_(dropout=Dropout(0.1, None)), ("int64", "None")),
    "seed of 65 bits": (with_(dropout=Dropout(0.1, 2**63)), ("int64", str(2**63))),
    "seed of another type": (with_(dropout=Dropout(0.1, torch.tensor(1.0))), ("int64", "torch.float32")),
}


def few_keys() -> tuple[Tensor, Tensor, Tensor]:
    return tensors(key=torch.zeros(2, 2, 2, 6), value=torch.zeros(2, 2, 2, 6))


def assert_form(message: str, *values: str) -> None:
    """Assert `<expectation>; got <fact>. <remedy>.` and that the values are named."""
    found = re.match(r"^[^;]+; got .+?\. (?P<remedy>\S.*)\.$", message, re.DOTALL)
    assert found, f"not of the house form: {message}"
    for value in values:
        assert value in message, f"{value} is missing in: {message}"


@pytest.mark.parametrize("backend", ["auto", "fused", "reference"])
@pytest.mark.parametrize("name", [*TENSORS, *MASKS, *SETTINGS])
def test_bad_input_is_refused_with_both_values(name, backend):
    way, values = (TENSORS | MASKS | SETTINGS)[name]
    with pytest.raises(InputError) as caught:
        way(backend)
    assert_form(str(caught.value), *values)


def test_an_unknown_backend_is_refused():
    for function in (attend, explain):
        with pytest.raises(BackendError) as caught:
            function(*tensors(), backend="cuda")
        assert_form(str(caught.value), '"auto"', '"fused"', '"reference"', "'cuda'")


@pytest.mark.parametrize("value", [-2, 2.5, True])
def test_a_statistic_out_of_range_is_refused(value):
    with pytest.raises(ConfigError) as caught:
        attend(*tensors(), statistics=Statistics(links=value))
    assert_form(str(caught.value), "`links`", repr(value))


@pytest.mark.parametrize("statistics", ["entropy", {"entropy": True}, True])
def test_statistics_of_another_kind_are_refused(statistics):
    with pytest.raises(InputError) as caught:
        attend(*tensors(), statistics=statistics)
    assert_form(str(caught.value), "Statistics", type(statistics).__name__)


def test_too_many_weights_are_refused():
    query, key = torch.zeros(1, 1, 2**15, 1), torch.zeros(1, 1, 2**14, 1)
    with pytest.raises(InputError) as caught:
        attention_weights(query, key)
    assert_form(str(caught.value), str(2**28), str(2**29))
    assert attention_weights(query, key, queries=slice(5, 7)).shape == (1, 1, 2, 2**14)


@pytest.mark.parametrize("queries", [slice(0, 3, 2), 3])
def test_a_window_that_is_no_run_of_queries_is_refused(queries):
    with pytest.raises(InputError) as caught:
        attention_weights(*tensors()[:2], queries=queries)
    assert_form(str(caught.value), f"got {queries}")


def test_weights_and_explanations_are_checked_alike():
    query, key, value = tensors()
    with pytest.raises(InputError, match="same width"):
        attention_weights(query[..., :5], key)
    with pytest.raises(InputError, match="same width"):
        explain(query[..., :5], key, value)
    with pytest.raises(InputError, match=r"`heads` must be at least 1; got 0\. \w"):
        Alibi.geometric(0)


def test_errors_stand_under_one_roof_and_beside_the_built_in_ones():
    assert issubclass(InputError, HeadwiseError | ValueError)
    assert issubclass(InputError, ValueError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(BackendError, RuntimeError)
    assert all(issubclass(kind, HeadwiseError) for kind in (InputError, ConfigError, BackendError))


def test_what_is_refused_leaves_the_process_alive():
    for keys in (0, 1):
        query, key = torch.zeros(1, 1, 300, 4), torch.zeros(1, 1, keys, 4)
        for backend in ("fused", "reference"):
            assert torch.equal(attend(query, key, key, backend=backend), torch.zeros(1, 1, 300, 4))
    assert headwise.attend(torch.zeros(0, 2, 3, 4), *[torch.zeros(0, 1, 5, 4)] * 2).shape == (0, 2, 3, 4)


def test_explain_names_a_backend_and_every_other():
    found = explain(*(tensor.double() for tensor in tensors()), Mask.causal())
    assert found.backend == "fused"
    assert "softmax(QK)V written out in tiles in float64" in found.how
    native = "it computes float32 and bfloat16, not float64"
    triton = "it computes float32, bfloat16 and float16, not float64"
    reference = "it holds every weight at once; ask for it by name"
    assert dict(found.refused) == {"native": native, "triton": triton, "reference": reference}
    lines = str(found).splitlines()
    assert lines[:2] == [f"fused: {found.how}", f"  not native: {native}"]
    assert lines[2:] == [f"  not triton: {triton}", f"  not reference: {reference}"]
    named = explain(*tensors(), backend="reference")
    assert named.backend == "reference"
    assert [name for name, _ in named.refused] == ["native", "fused", "triton"]
    chosen = explain(*tensors())
    assert chosen.backend == "native"
    assert dict(chosen.refused)["fused"] == "it could, but native comes first"
    learned = [torch.zeros(1, 1, 1, keys, requires_grad=True) for keys in (tensors()[1].shape[2], 1)]
    told = ["the backward pass of fused" in explain(*tensors(), bias=bias).how for bias in learned]
    assert told == [True, False], "the gradient of a bias that all keys share is that of the log-sum-exp"
    long = torch.zeros(1, 1, 300, 8, dtype=torch.float64)
    assert "fused operation" in explain(long, long, long).how
    assert "dropout" in explain(long, long, long, dropout=0.1).how
    state = torch.get_rng_state()
    explain(long, long, long, dropout=0.1)
    assert torch.equal(torch.get_rng_state(), state), "explaining draws nothing"
