"""`tune` measures, writes a rule, and `attend` follows it."""

import json
import sys

import pytest
import torch

import headwise
from headwise import ConfigError, Mask, Statistics, recipes
from headwise.kernels import measured, rule_file


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path))
    measured.cache_clear()
    yield
    measured.cache_clear()


def write(rule: object) -> None:
    rule_file().parent.mkdir(parents=True)
    rule_file().write_text(json.dumps(rule), encoding="utf-8")
    measured.cache_clear()


def taken(query: torch.Tensor, **settings: object) -> tuple[str, str]:
    found = headwise.explain(query, query, query, **settings)
    other = "native" if found.backend == "fused" else "fused"
    return found.backend, dict(found.refused)[other]


def test_the_rule_decides_by_type_keys_and_gradient_and_explain_says_so():
    write({"float32, forward": {"8": "fused", "64": "native"}, "float32, training": {"8": "native"}})
    measured_here = "was measured faster here by `headwise tune`"
    assert taken(torch.randn(1, 2, 9, 4)) == ("fused", f"it could, but fused {measured_here}")
    assert taken(torch.randn(1, 2, 64, 4)) == ("native", f"it could, but native {measured_here}")
    assert taken(torch.randn(1, 2, 9, 4).requires_grad_())[0] == "native"
    first = "native", "it could, but native comes first"
    assert taken(torch.randn(1, 2, 7, 4)) == first
    assert taken(torch.randn(1, 2, 9, 4, dtype=torch.bfloat16)) == first
    assert taken(torch.randn(1, 2, 9, 4), mask=Mask.causal()) == first
    assert taken(torch.randn(1, 2, 9, 4), dropout=0.5) == first
    assert taken(torch.randn(1, 2, 9, 4), statistics=Statistics(entropy=True)) == first


@pytest.mark.parametrize("training", ["native", "fused"])
@pytest.mark.parametrize("forward", ["native", "fused"])
def test_whatever_the_rule_the_results_are_the_same(forward, training):
    query = torch.randn(2, 3, 9, 5, requires_grad=True)
    wanted = headwise.attend(query, query, query, backend="reference")
    (slope,) = torch.autograd.grad(wanted.square().sum(), query)
    write({"float32, forward": {"1": forward}, "float32, training": {"1": training}})
    for call in (headwise.attend, torch.compile(headwise.attend, backend="aot_eager")):
        found = call(query, query, query)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), query)[0], slope)


@pytest.mark.parametrize(
    "rule", [["native"], {"float32, forward": {"8": "quick"}}, {"float32, forward": {"x": "fused"}}]
)
def test_a_broken_rule_is_told_with_its_file(rule):
    write(rule)
    with pytest.raises(ConfigError, match=r"must be what `headwise tune` wrote; got .*\. Delete it"):
        headwise.explain(*torch.randn(3, 1, 2, 3, 4))


def test_tune_writes_a_rule_that_is_followed(monkeypatch):
    monkeypatch.setattr(sys.modules["headwise.recipes.tune"], "_KEYS", {5: 1})
    kinds = [f"{dtype}, {way}" for dtype in ("float32", "bfloat16") for way in ("forward", "training")]
    *lines, last = recipes.tune()
    assert [line.partition(":")[0] for line in lines] == [f"{kind}, 5 keys" for kind in kinds]
    assert last == f"written: {rule_file()}"
    assert set(measured()) == {
        f"{dtype}, {way}" for dtype in ("float32", "bfloat16") for way in ("forward", "training")
    }
    assert taken(torch.randn(1, 2, 5, 4))[0] == measured()["float32, forward"][5]
