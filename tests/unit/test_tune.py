"""`tune` measures, writes a rule, and `attend` follows it."""

import json

import pytest
import torch

import headwise
from headwise import ConfigError, Mask, Statistics, recipes
from headwise.cli import main
from headwise.kernels import machine, measured, rule_file


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path))
    measured.cache_clear()
    yield
    measured.cache_clear()


def write(rule: object, **other: object) -> None:
    rule_file().parent.mkdir(parents=True, exist_ok=True)
    held = {"format": 1, "machine": machine(), "rule": rule} | other
    rule_file().write_text(json.dumps(held), encoding="utf-8")
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


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"machine": {"torch": "1.0", "instructions": "none", "processor": "a slide rule"}}, "torch 1.0 in place of"),
        ({"machine": {}}, "processor None in place of"),
        ({"format": 9}, "format 9 in place of 1"),
    ],
)
def test_a_rule_of_another_machine_is_told_and_measured_again(capsys, other, told):
    write({"float32, forward": {"8": "fused"}}, **other)
    with pytest.raises(ConfigError, match=rf"must be measured on this machine; got .*{told}.* Delete it"):
        headwise.attend(*torch.randn(3, 1, 2, 3, 4))
    assert main(["doctor"]) == 0, "doctor tells what is wrong, and goes on"
    printed = capsys.readouterr().out
    assert f"choice of backends: `{rule_file()}` must be measured on this machine" in printed
    assert "cache:" in printed
    assert main(["tune", "--keys", "3"]) == 0
    headwise.attend(*torch.randn(3, 1, 2, 3, 4))


def test_tune_writes_a_rule_that_is_followed(capsys):
    assert main(["doctor"]) == 0
    assert "choice of backends: not measured here; `headwise tune` does" in capsys.readouterr().out
    assert main(["tune", "--keys", "7,5", "--threads", "1"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    kinds = [f"{dtype}, {way}" for dtype in ("float32", "bfloat16") for way in ("forward", "training")]
    assert [line.partition(":")[0] for line in lines] == [f"{kind}, {n} keys" for kind in kinds for n in (5, 7)]
    assert last == f"written: {rule_file()}"
    assert set(measured()) == set(kinds)
    assert main(["doctor"]) == 0
    assert f"choice of backends: measured by `headwise tune`: {rule_file()}" in capsys.readouterr().out
    assert taken(torch.randn(1, 2, 5, 4))[0] == measured()["float32, forward"][5]


def test_a_rule_may_lie_in_a_file_of_ones_own(tmp_path, monkeypatch, capsys):
    own = tmp_path / "rule.json"
    assert main(["tune", "--keys", "5", "--out", str(own)]) == 0
    assert capsys.readouterr().out.endswith(f"attention follows it where HEADWISE_CHOICE={own} is set\n")
    assert not measured()
    monkeypatch.setenv("HEADWISE_CHOICE", str(own))
    measured.cache_clear()
    assert rule_file() == own
    assert set(measured()["float32, forward"]) == {5}
    own.unlink()
    measured.cache_clear()
    with pytest.raises(ConfigError, match="`HEADWISE_CHOICE` must name a file of `headwise tune`"):
        headwise.attend(*torch.randn(3, 1, 2, 3, 4))


def test_what_cannot_be_measured_is_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="`keys` must be numbers from 1"):
        list(recipes.tune([0]))
    with pytest.raises(SystemExit):
        main(["tune", "--keys", "5,x"])
    assert "must be numbers from 1 with commas" in capsys.readouterr().err
    assert main(["tune", "--out", str(tmp_path / "no" / "rule.json")]) == 2
    assert "`--out` must be a file to write" in capsys.readouterr().err
