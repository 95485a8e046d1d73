"""The ways to compute attention, ours and PyTorch's, that `benchmarks/attention.py` times beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common import DTYPES, Contestant
from headwise import Mask, MultiHeadAttention, attend

WINDOW = 256
CASES = ("no mask", "causal", "padded", "window", "dropout 0.1")
PASSES = {"fwd": "forward", "fb": "fwd + bwd"}


class Shape(NamedTuple):
    """Hold the sizes of a call."""

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    width: int

    @classmethod
    def read(cls, text: str) -> Shape:
        """Read `BxHxTxD`; heads that share keys are written `H/G`, fewer queries than keys `Q:K`."""
        batch, heads, tokens, width = text.split("x")
        heads, _, groups = heads.partition("/")
        queries, _, keys = tokens.partition(":")
        return cls(*map(int, (batch, heads, groups or heads, queries, keys or queries, width)))

    def __str__(self) -> str:
        heads = str(self.heads) if self.groups == self.heads else f"{self.heads}/{self.groups}"
        tokens = str(self.keys) if self.queries == self.keys else f"{self.queries}:{self.keys}"
        return f"{self.batch}x{heads}x{tokens}x{self.width}"


class Setting(NamedTuple):
    """Name one row of a table."""

    phase: str
    dtype: str
    case: str
    shape: Shape

    @property
    def backward(self) -> bool:
        return self.phase == PASSES["fb"]

    @property
    def rate(self) -> float:
        return 0.1 if self.case == "dropout 0.1" else 0.0

    @property
    def lengths(self) -> Tensor:
        """Half of the samples, every second one, are half padding."""
        keys = self.shape.keys
        return torch.tensor([keys // 2 if b % 2 == 0 else keys for b in range(self.shape.batch)])

    @property
    def window(self) -> int:
        """How many keys a query sees in a window, itself the last: half of the keys where they are few."""
        return min(WINDOW, self.shape.keys // 2)

    @property
    def mask(self) -> Mask | None:
        window = Mask.window(self.window - 1, 0)
        return {"causal": Mask.causal(), "padded": Mask.lengths(self.lengths), "window": window}.get(self.case)

    @property
    def padding(self) -> Tensor:
        """Tell which keys are padding: shape (B, T)."""
        return torch.arange(self.shape.keys) >= self.lengths[:, None]

    @property
    def seen(self) -> Tensor | None:
        """Write the mask out, True for what is seen: shape (B, 1, 1, T) or (T, T)."""
        if self.case == "padded":
            return ~self.padding[:, None, None]
        if self.case not in ("causal", "window"):
            return None
        seen = torch.ones(self.shape.keys, self.shape.keys, dtype=torch.bool).tril()
        return seen.triu(1 - self.window) if self.case == "window" else seen

    @property
    def cells(self) -> tuple[str, ...]:
        return (*self[:3], str(self.shape))


class Way(NamedTuple):
    """Hold one way to compute a row."""

    name: str
    run: Callable[[], Tensor]
    leaves: Sequence[Tensor]
    backend: SDPBackend | None = None

    def contestant(self, grad: Tensor | None) -> Contestant:
        """Make it a call to be timed; backward runs from `grad`, where there is one."""

        def call() -> Tensor:
            for leaf in self.leaves:
                leaf.grad = None
            output = self.run()
            if grad is not None:
                output.backward(grad)
            return output

        return Contestant(self.name, call, partial(self._context, grad is not None))

    @contextmanager
    def _context(self, backward: bool) -> Iterator[None]:
        with torch.inference_mode(not backward), nullcontext() if self.backend is None else sdpa_kernel(self.backend):
            yield


def attention_ways(setting: Setting) -> list[Way]:
    """List ours, PyTorch's default, its backends, attention written out, and what is hidden sliced away."""
    batch, heads, groups, queries, keys, width = setting.shape
    sizes = (batch, heads, queries, width), (batch, groups, keys, width), (batch, groups, keys, width)
    leaves = [torch.randn(size).to(DTYPES[setting.dtype]).requires_grad_(setting.backward) for size in sizes]
    causal, rate, seen = setting.case == "causal", setting.rate, setting.seen
    fused = partial(fused_attention, *leaves, attn_mask=None if causal else seen, dropout_p=rate, is_causal=causal)
    hidden = None if seen is None else ~seen
    ways = [
        Way("ours", partial(attend, *leaves, setting.mask, dropout=rate), leaves),
        Way("F.sdpa", fused, leaves),
        Way("FLASH", fused, leaves, SDPBackend.FLASH_ATTENTION),
        Way("MATH", fused, leaves, SDPBackend.MATH),
        Way("written", partial(written_out, *leaves, hidden, rate), leaves),
    ]
    if setting.case == "padded":
        ways.append(Way("sliced", partial(without_padding, *leaves, setting.lengths.tolist()), leaves))
    if setting.case == "window":
        ways.append(Way("sliced", partial(by_windows, *leaves, setting.window), leaves))
    return ways


def fused_attention(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, **settings, enable_gqa=grouped)


def written_out(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, rate: float) -> Tensor:
    """Compute softmax(QK)V in plain PyTorch."""
    share = query.shape[1] // key.shape[1]
    if share > 1:
        key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = scores.softmax(-1)
    if rate:
        weights = F.dropout(weights, rate)
    return weights @ value


def without_padding(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """Compute each sample with the keys that it has."""
    samples = zip(query.split(1), key.split(1), value.split(1), lengths, strict=True)
    return torch.cat([fused_attention(q, k[:, :, :n], v[:, :, :n]) for q, k, v, n in samples])


def by_windows(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Compute as many queries at once as a window holds keys, with the keys that one of them sees."""
    length, parts = query.shape[2], []
    for start in range(0, length, window):
        first, stop = max(start - window + 1, 0), min(start + window, length)
        seen = torch.ones(stop - start, stop - first, dtype=torch.bool)
        seen = seen.tril(start - first).triu(start - first - window + 1)
        keys, values = key[:, :, first:stop], value[:, :, first:stop]
        parts.append(fused_attention(query[:, :, start:stop], keys, values, attn_mask=seen))
    return torch.cat(parts, 2)


def layer_ways(setting: Setting) -> list[Way]:
    """List our layer and PyTorch's, with the same weights."""
    batch, heads, _, _, length, width = setting.shape
    model, dtype = heads * width, DTYPES[setting.dtype]
    peer = nn.MultiheadAttention(model, heads, dropout=setting.rate, batch_first=True).to(dtype)
    ours = MultiHeadAttention(model, heads, dropout=setting.rate).to(dtype)
    projections = zip(peer.in_proj_weight.chunk(3), peer.in_proj_bias.chunk(3), strict=True)
    with torch.no_grad():
        for mine, (weight, bias) in zip((ours.query, ours.key, ours.value), projections, strict=True):
            mine.weight.copy_(weight)
            mine.bias.copy_(bias)
    ours.output.load_state_dict(peer.out_proj.state_dict())
    x = torch.randn(batch, length, model).to(dtype).requires_grad_(setting.backward)
    told = {
        "need_weights": False,
        "key_padding_mask": setting.padding if setting.case == "padded" else None,
        "attn_mask": None if setting.seen is None or setting.case == "padded" else ~setting.seen,
        "is_causal": setting.case == "causal",
    }
    for layer in (ours, peer):
        layer.train(setting.backward)
    return [
        Way("ours", partial(ours, x, mask=setting.mask), [x, *ours.parameters()]),
        Way("nn.MHA", lambda: peer(x, x, x, **told)[0], [x, *peer.parameters()]),
    ]
