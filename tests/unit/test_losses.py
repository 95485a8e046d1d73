"""The loss over a vocabulary: it equals PyTorch's, with its gradients, and holds no tokens x vocabulary."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headwise import InputError
from headwise.functional import losses
from headwise.functional.losses import linear_cross_entropy

N, V, M = 23, 37, 7


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(losses, "_CHUNK", 5)


class Largest(TorchDispatchMode):
    """Remember the largest tensor that any operation gives."""

    size = 0

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        given = operation(*arguments, **(named or {}))
        sizes = [x.numel() for x in tree_leaves(given) if isinstance(x, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return given


def drawn(dtype=torch.float64):
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(size, dtype=dtype) for size in ((N, M), (V, M), (V,)))
    kept, other = F.logsigmoid(torch.randn(N, dtype=dtype)), F.logsigmoid(torch.randn(N, dtype=dtype))
    return [x.requires_grad_() for x in (hidden, weight, bias, kept, other)], torch.randint(V, (N,))


def written(tensors, target, smoothing, *, mixed):
    """Compute the same from all logits at once."""
    hidden, weight, bias, kept, other = tensors
    log_p = F.log_softmax(F.linear(hidden, weight, bias), -1)
    right = log_p.gather(1, target[:, None])[:, 0]
    if mixed:
        right = torch.logaddexp(kept + right, other)
    return -((1 - smoothing) * right + smoothing * log_p.mean(-1)).sum()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradients_equal_those_written_out(smoothing, mixed):
    tensors, target = drawn()
    expected = written(tensors, target, smoothing, mixed=mixed)
    used = tensors if mixed else tensors[:3]
    slopes = torch.autograd.grad(3 * expected, used)
    hidden, weight, bias, kept, other = tensors
    scored = linear_cross_entropy(
        hidden, weight, target, bias_V=bias, smoothing=smoothing, mixed=(kept, other) if mixed else None
    )
    assert int(scored.count) == N
    torch.testing.assert_close(scored.sum, expected, rtol=0, atol=1e-11)
    for found, right in zip(torch.autograd.grad(3 * scored.sum, used), slopes, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_two_readings_are_drawn_together_as_written_out(smoothing):
    (hidden, weight, bias, *_), half = drawn()
    hidden = torch.cat([hidden, hidden + torch.randn_like(hidden)]).detach().requires_grad_()
    target, tensors = half.repeat(2), (hidden, weight, bias)
    one, two = F.log_softmax(F.linear(*tensors), -1).chunk(2)
    apart = (one.exp() * (one - two)).sum() / 2 + (two.exp() * (two - one)).sum() / 2
    expected = written((*tensors, None, None), target, smoothing, mixed=False) + 5 * apart
    slopes = torch.autograd.grad(3 * expected, tensors)
    scored = linear_cross_entropy(hidden, weight, target, bias_V=bias, smoothing=smoothing, rdrop=5.0)
    assert int(scored.count) == 2 * N
    torch.testing.assert_close(scored.sum, expected, rtol=1e-13, atol=0)
    for found, right in zip(torch.autograd.grad(3 * scored.sum, tensors), slopes, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-11)


def test_equal_readings_have_nothing_that_parts_them():
    (hidden, weight, *_), target = drawn()
    alone = linear_cross_entropy(hidden, weight, target)
    both = linear_cross_entropy(torch.cat([hidden, hidden]), weight, target.repeat(2), rdrop=5.0)
    torch.testing.assert_close(both.mean, alone.mean)


def test_two_readings_never_hold_tokens_x_vocabulary():
    torch.manual_seed(0)
    hidden = torch.randn(2 * 4 * losses._CHUNK, M, requires_grad=True)
    weight, target = torch.randn(1009, M, requires_grad=True), torch.randint(1009, (len(hidden),))
    with Largest() as largest:
        linear_cross_entropy(hidden, weight, target, rdrop=1.0).sum.backward()
    assert largest.size < len(hidden) * 1009


def test_it_equals_pytorchs_cross_entropy():
    (hidden, weight, bias, *_), target = drawn(torch.float32)
    found = linear_cross_entropy(hidden, weight, target, bias_V=bias, smoothing=0.2).sum
    expected = F.cross_entropy(F.linear(hidden, weight, bias), target, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(found, expected)


def test_tokens_that_are_all_but_impossible_have_a_finite_loss():
    hidden, weight = torch.tensor([[200.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    found = linear_cross_entropy(hidden, weight, torch.tensor([1])).sum
    found.backward()
    assert (found.item(), hidden.grad.item()) == (400.0, 2.0)


def test_a_tied_table_gets_both_gradients():
    (_, weight, *_), target = drawn()
    ids = torch.randint(V, (N,))
    (expected,) = torch.autograd.grad(F.cross_entropy(weight[ids] @ weight.T, target, reduction="sum"), weight)
    (found,) = torch.autograd.grad(linear_cross_entropy(weight[ids], weight, target).sum, weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_autocast_takes_the_products_down_and_keeps_the_rest():
    (hidden, weight, *_), target = drawn(torch.float32)
    expected = linear_cross_entropy(hidden, weight, target).sum
    slopes = torch.autograd.grad(expected, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, target).sum
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
    for low, right in zip(torch.autograd.grad(found, (hidden, weight)), slopes, strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, right, rtol=0.1, atol=0.05)


def test_autocast_leaves_what_parts_two_readings_in_float32():
    (hidden, weight, *_), target = drawn(torch.float32)
    low = torch.cat([hidden, hidden + 0.1 * torch.randn_like(hidden)]).bfloat16()
    given = low, weight.detach().bfloat16(), target.repeat(2)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(*given, rdrop=50.0).sum
    torch.testing.assert_close(found, linear_cross_entropy(*given, rdrop=50.0).sum, rtol=0, atol=0)


def test_it_is_differentiated_as_a_function():
    (hidden, weight, *_), target = drawn()
    found = torch.func.grad(lambda x: linear_cross_entropy(x, weight, target).sum)(hidden)
    (expected,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, target).sum, hidden)
    assert torch.equal(found, expected)


def test_without_gradients_none_is_computed(monkeypatch):
    (hidden, weight, *_), target = drawn()
    monkeypatch.setattr(losses._Loss, "slopes", lambda *_: pytest.fail("computed"))
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, target)
    linear_cross_entropy(hidden.detach(), weight.detach(), target)


def test_it_compiles_whole_and_for_any_number_of_tokens():
    (hidden, weight, *_), target = drawn()

    def smoothed(hidden, weight, target):
        return linear_cross_entropy(hidden, weight, target, smoothing=0.1).sum

    compiled = torch.compile(smoothed, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (N, 11):
        part = hidden[:count].detach().requires_grad_()
        found, eager = (each(part, weight, target[:count]) for each in (compiled, smoothed))
        torch.testing.assert_close(found, eager)
        both = (torch.autograd.grad(x, (part, weight)) for x in (found, eager))
        for ours, theirs in zip(*both, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda h, w, t: (h[:, :3], w, t), r"shapes \(N, M\), \(V, M\), \(N,\); got states \(23, 3\)"),
        (lambda h, w, t: (h, w, t[:-1]), r"targets \(22,\)"),
        (lambda h, w, t: (h, w, t + 30), "targets must lie in the vocabulary, 0 to 36; got 3"),
        (lambda h, w, t: (h, w, t.double()), "targets must be whole numbers, int64 or int32; got torch.float64"),
    ],
)
def test_what_does_not_fit_is_told(change, told):
    (hidden, weight, *_), target = drawn()
    with pytest.raises(InputError, match=told):
        linear_cross_entropy(*change(hidden, weight, target))
    for bias in (torch.zeros(1), torch.zeros(N, V)):
        with pytest.raises(InputError, match=r"`bias_V` must be of shape \(37,\); got \("):
            linear_cross_entropy(hidden, weight, target, bias_V=bias)
    with pytest.raises(InputError, match=r"`mixed` must be of shape \(23,\); got \(23, 1\)"):
        linear_cross_entropy(hidden, weight, target, mixed=(torch.zeros(N), torch.zeros(N, 1)))
    with pytest.raises(InputError, match="two states of each token; got 23"):
        linear_cross_entropy(hidden, weight, target, rdrop=1.0)
    with pytest.raises(InputError, match="`rdrop` must be at least 0 and finite; got -1"):
        linear_cross_entropy(hidden, weight, target, rdrop=-1)
    with pytest.raises(InputError, match="`smoothing` must lie between 0 and 1; got 2"):
        linear_cross_entropy(hidden, weight, target, smoothing=2)


def test_no_tokens_cost_nothing():
    (_, weight, *_), target = drawn()
    for rdrop in (0.0, 1.0):
        none = torch.zeros(0, M, dtype=torch.float64, requires_grad=True)
        assert linear_cross_entropy(none, weight, target[:0], rdrop=rdrop).sum.item() == 0
