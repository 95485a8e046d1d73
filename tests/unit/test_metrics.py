"""Figures of a classifier: right by hand, and the same however the examples are cut."""

import pytest
import torch

from headwise.tasks.metrics import Confusion, Matches, score

TRUE, SAID = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 2])


def logits(said_B, classes=4):
    return torch.nn.functional.one_hot(said_B, classes).float()


def test_figures_of_one_class_each():
    held = score(logits(SAID), TRUE)
    assert isinstance(held, Confusion)
    assert held.counts_CC.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert held.accuracy == pytest.approx(4 / 6)
    assert held.by_class.precision_C.tolist() == pytest.approx([1 / 2, 2 / 3, 1, 0])
    assert held.by_class.recall_C.tolist() == pytest.approx([1 / 2, 2 / 3, 1, 0])
    assert held.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 1) / 3), "a class that never occurs does not count"
    report = held.report(["a", "b", "c", "d"])
    assert report["classes"]["b"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "count": 3})
    assert report["count"] == 6


def test_figures_of_several_classes():
    true_BC = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]])
    logits_BC = torch.tensor([[2.0, -1, -1], [-1, 3, 1], [-1, -1, -1]])
    held = score(logits_BC, true_BC)
    assert isinstance(held, Matches)
    assert held.micro_f1 == pytest.approx(2 * 2 / (3 + 3))
    assert held.macro_f1 == pytest.approx((1 + 1 + 0) / 3)
    assert held.accuracy == pytest.approx(1 / 3)
    assert held.report(["a", "b", "c"])["classes"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 1}


@pytest.mark.parametrize("cut", range(1, 6))
def test_parts_add_up(cut):
    whole, parts = (
        score(logits(SAID), TRUE),
        [score(logits(SAID[part]), TRUE[part]) for part in (slice(cut), slice(cut, 6))],
    )
    assert torch.equal((parts[0] + parts[1]).counts_CC, whole.counts_CC)
    target_BC = logits(TRUE)
    several = [Matches.of(logits(SAID[part]) - 0.5, target_BC[part]) for part in (slice(cut), slice(cut, 6))]
    names = ["a", "b", "c", "d"]
    assert (several[0] + several[1]).report(names) == Matches.of(logits(SAID) - 0.5, target_BC).report(names)


def test_nothing_counted_is_zero():
    assert Confusion(torch.zeros(2, 2, dtype=torch.int64)).report(["a", "b"])["accuracy"] == 0
    assert Confusion(torch.zeros(2, 2, dtype=torch.int64)).macro_f1 == 0
