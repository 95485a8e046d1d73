"""Find which words of two sentences belong together, from the cross attention of a translation model.

Which heads align is found without gold, from the pairs that the model was trained on. IBM-1 (Brown et al. 1993) learns
from them which words go with which, and knows nothing of places. A head that aligns puts its weight where IBM-1
expects it: the mean probability that IBM-1 gives to the source token on which the head puts most is its agreement.

A state may look at the word that it has just read or at the one that it is about to write (Chen et al. 2020), so every
head is tried both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headwise.contracts.examples import PairBatch
from headwise.errors import InputError
from headwise.modules import Attend

__all__ = [
    "Aligner",
    "AligningHead",
    "Lexicon",
    "align",
    "alignment_error_rate",
    "by_words",
    "find_heads",
    "head_weights",
]

_Link = tuple[int, int]

_FLOOR = 1e-9
_NOWHERE = 0.25
"""Distance of no source token at all, in lengths of a text."""


class AligningHead(NamedTuple):
    """Name a head, and the word to which its weights belong."""

    place: str
    """Name of the attention layer in the model."""
    head: int
    """Name of the head in its layer."""
    reads: bool
    """Whether a state's weights belong to the word that it has read, or to the one that it is about to write."""


@dataclass(frozen=True)
class Aligner:
    """Hold the heads whose mean weights align best, and how sure that is."""

    heads: tuple[AligningHead, ...]
    """The heads, the best first."""
    agreement: float
    """Their agreement with IBM-1, 0 to 1."""
    sure: float
    """In which share of samples of the sentences the first head comes out first again, 0 to 1."""
    table: dict[AligningHead, float]
    """The agreement of every head by itself."""

    def __str__(self) -> str:
        """Tell which heads align, and how sure that is."""
        told = [
            f"{place} head {head}, by the word that it {'has read' if reads else 'is about to write'}"
            for place, head, reads in self.heads
        ]
        agreed = f"together they agree with IBM-1 on {self.agreement:.1%} of the words"
        first = f"the first is the best head in {self.sure:.0%} of samples of the sentences"
        return "\n".join([*told, f"{agreed}; {first}"])


class Lexicon:
    """Know how likely each target token stands for each source token: IBM-1, fitted by expectation maximisation.

    Args:
        batches: pairs; the target's begin and end tokens are left out.
        rounds: how often all pairs are counted.
        nearness: how fast a source token becomes less likely with its distance from the target word's place, both
            counted in lengths of their texts (Dyer et al. 2013); 0 is IBM-1, which knows nothing of places.

    Example:
        >>> source_BK, target_BT = torch.tensor([[2, 3], [2, 4]]), torch.tensor([[0, 7, 8, 1], [0, 9, 7, 1]])
        >>> pairs = PairBatch(source_BK, torch.tensor([2, 2]), target_BT, torch.tensor([4, 4]), torch.tensor([0, 1]))
        >>> Lexicon([pairs]).posterior(pairs)[0].argmax(-1)
        tensor([0, 1])
    """

    def __init__(self, batches: Iterable[PairBatch], rounds: int = 5, *, nearness: float = 0.0) -> None:
        self.nearness = nearness
        pairs, targets, priors, before = [], [], [], 0
        for batch in batches:
            pair_BTK, real_BTK = _pairs(batch)
            token_BTK = before + np.arange(real_BTK[..., 0].size).reshape(*real_BTK.shape[:2], 1)
            before += real_BTK[..., 0].size
            pairs.append(pair_BTK[real_BTK])
            targets.append(np.broadcast_to(token_BTK, real_BTK.shape)[real_BTK])
            priors.append(self._prior(batch)[real_BTK])
        if not pairs:
            raise InputError("a lexicon must see some pairs; got none. Pass the training data.")
        self.known_N, pair_N = np.unique(np.concatenate(pairs), return_inverse=True)
        _, target_N = np.unique(np.concatenate(targets), return_inverse=True)
        _, source_N = np.unique(self.known_N >> 32, return_inverse=True)
        self.probability_N, prior_N = np.ones(len(self.known_N)), np.concatenate(priors)
        for _ in range(rounds):
            share_N = self.probability_N[pair_N] * prior_N
            share_N /= np.bincount(target_N, share_N)[target_N]
            count_N = np.bincount(pair_N, share_N)
            self.probability_N = count_N / np.bincount(source_N, count_N)[source_N]

    def posterior(self, batch: PairBatch) -> Tensor:
        """Give the probability that each target word stands for each source token: shape (B, words, K).

        What is missing to 1 stands for no word at all; padding has 0.
        """
        pair_BTK, real_BTK = _pairs(batch)
        place_BTK = np.searchsorted(self.known_N, pair_BTK).clip(max=len(self.known_N) - 1)
        known_BTK = real_BTK & (self.known_N[place_BTK] == pair_BTK)
        share_BTK = np.where(known_BTK, self.probability_N[place_BTK], 0.0) * self._prior(batch)
        share_BTK /= share_BTK.sum(-1, keepdims=True).clip(min=_FLOOR)
        return torch.from_numpy(share_BTK[..., 1:]).float()

    def _prior(self, batch: PairBatch) -> np.ndarray:
        """Weigh every source token by its place beside each target word's."""
        places = [
            (np.arange(count) + 0.5) / length_B.cpu().numpy().clip(min=1)[:, None]
            for count, length_B in (
                (batch.source_BK.shape[1], batch.source_length_B),
                (batch.target_BT.shape[1] - 2, batch.target_length_B - 2),
            )
        ]
        far_BTK = np.pad(np.abs(places[0][:, None] - places[1][:, :, None]), [(0, 0), (0, 0), (1, 0)])
        far_BTK[..., 0] = _NOWHERE
        weight_BTK: np.ndarray = np.exp(-self.nearness * far_BTK)
        return weight_BTK.astype(np.float32)


def find_heads(
    model: nn.Module, batches: Sequence[PairBatch], lexicon: Lexicon, *, most: int = 3, seed: int = 0
) -> Aligner:
    """Find the cross-attention heads that align, without gold.

    Args:
        model: a translation model built on `headwise.Attend`, called as `Seq2Seq` is; in evaluation mode.
        batches: some hundred pairs of the training data.
        lexicon: what goes with what, learned from the training data.
        most: how many heads may share the work: the best, then those that improve it most, while any does.
        seed: for the samples that say how sure the choice is.

    Raises:
        InputError: when there are no pairs, or the model has no cross attention of ours.
    """
    seen = [(head_weights(model, batch), lexicon.posterior(batch), _words(batch)) for batch in batches]
    if not seen:
        raise InputError("some pairs must be shown to find the heads that align; got none. Pass training data.")
    heads = list(seen[0][0])
    agreed = {head: torch.cat([_agreement(weights[head], *rest) for weights, *rest in seen]) for head in heads}
    words = torch.cat([real_BT.sum(1) for _, _, real_BT in seen]).double()
    table = {head: float(agreed_N.sum() / words.sum()) for head, agreed_N in agreed.items()}
    chosen = [max(heads, key=table.__getitem__)]
    best = table[chosen[0]]
    while len(chosen) < most:
        tried = {head: _together(seen, [*chosen, head]) for head in heads if head not in chosen}
        head = max(tried, key=tried.__getitem__, default=chosen[0])
        if tried.get(head, 0.0) <= best:
            break
        chosen, best = [*chosen, head], tried[head]
    drawn = np.random.default_rng(seed).multinomial(len(words), np.full(len(words), 1 / len(words)), size=500)
    first_N = (drawn @ torch.stack(list(agreed.values()), 1).numpy()).argmax(1)
    return Aligner(tuple(chosen), best, float((first_N == heads.index(chosen[0])).mean()), table)


def align(model: nn.Module, batch: PairBatch, aligner: Aligner, *, special: Sequence[int] = ()) -> list[list[_Link]]:
    """Give the links of each pair: (source token, target word), both counted from 0, the begin token not counted.

    Args:
        model: the model for which the aligner was found.
        batch: pairs; targets as they were written, or as they should have been.
        aligner: which heads to ask.
        special: source tokens that are no words, such as the end token: a word that looks at one gets no link.
    """
    weights = head_weights(model, batch, aligner.heads)
    mean_BTK = torch.stack(list(weights.values())).mean(0)
    source_BT = mean_BTK.argmax(-1)
    linked_BT = _words(batch).to(source_BT.device)
    for token in special:
        linked_BT &= batch.source_BK.gather(1, source_BT) != token
    links: list[list[_Link]] = [[] for _ in range(len(source_BT))]
    for b, t in linked_BT.nonzero().tolist():
        links[b].append((int(source_BT[b, t]), t))
    return links


def by_words(links: Iterable[_Link], source_word_K: Sequence[int], target_word_T: Sequence[int]) -> list[_Link]:
    """Turn links of pieces into links of the words that they are parts of.

    Args:
        links: links of pieces.
        source_word_K: which word each source piece is part of; -1 for none.
        target_word_T: the same for the target's.

    Example:
        >>> by_words([(0, 0), (1, 1), (2, 1)], [0, 0, 1], [0, 1])
        [(0, 0), (0, 1), (1, 1)]
    """
    words = {(source_word_K[i], target_word_T[j]) for i, j in links}
    return sorted(link for link in words if min(link) >= 0)


def alignment_error_rate(
    found: Sequence[Iterable[_Link]], sure: Sequence[Iterable[_Link]], possible: Sequence[Iterable[_Link]]
) -> float:
    """Give the share of links that are wrong or missing, 0 to 1 (Och and Ney 2003); sure links are possible ones too.

    Example:
        >>> alignment_error_rate([{(0, 0), (1, 1)}], [{(0, 0)}], [{(1, 1)}])
        0.0
    """
    hits = total = 0
    for ours, certain, maybe in zip(map(set, found), map(set, sure), map(set, possible), strict=True):
        hits += len(ours & certain) + len(ours & (maybe | certain))
        total += len(ours) + len(certain)
    return 1 - hits / total if total else 0.0


@torch.no_grad()
def head_weights(
    model: nn.Module, batch: PairBatch, heads: Iterable[AligningHead] | None = None
) -> dict[AligningHead, Tensor]:
    """Give the weights that heads of the cross attention, all where none are named, have for each target word.

    Returns:
        Weights of shape (B, words, K), begin and end left out.

    Raises:
        InputError: when the model has no cross attention of ours.
    """
    with _hearing(model) as heard:
        model(batch.source_BK, batch.source_length_B, batch.target_BT, batch.target_length_B)
    if not heard:
        raise InputError(
            f"a model must have cross attention of `headwise.Attend` to align; got {type(model).__name__} without. "
            "Pass an encoder-decoder model."
        )
    if heads is None:
        held = ((place, name) for place, (names, _) in heard.items() for name in names)
        heads = [AligningHead(place, name, reads) for place, name in held for reads in (False, True)]
    last, found = batch.target_BT.shape[1] - 1, {}
    for head in heads:
        names, weights_BHTK = heard[head.place]
        found[head] = weights_BHTK[:, names.index(head.head), head.reads : last - 1 + head.reads]
    return found


_Heard = tuple[tuple[int, ...], Tensor]
"""The names of a seam's heads, and their weights."""


@contextmanager
def _hearing(model: nn.Module) -> Iterator[dict[str, _Heard]]:
    """Collect the weights of every call of cross attention, by the place of its seam."""
    heard: dict[str, _Heard] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for place, seam in model.named_modules():
            if isinstance(seam, Attend):
                stack.callback(seam.register_forward_pre_hook(partial(_hear, heard, place), with_kwargs=True).remove)
        yield heard


def _hear(heard: dict[str, _Heard], place: str, seam: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert isinstance(seam, Attend), "hooked as one"
    if kwargs.get("cross"):
        weights_BHTK = seam.weights(args[0], args[1], seam.mask_of(args, kwargs), bias=kwargs.get("bias"))
        heard[place] = seam.heads, weights_BHTK


def _words(batch: PairBatch) -> Tensor:
    """Tell which places of a batch's targets hold words, begin and end left out: shape (B, words)."""
    return torch.arange(batch.target_BT.shape[1] - 2) < (batch.target_length_B.cpu() - 2)[:, None]


def _pairs(batch: PairBatch) -> tuple[np.ndarray, np.ndarray]:
    """Give a number for each target word with every source token, and with none, which comes first."""
    source_BK = nn.functional.pad(batch.source_BK.cpu() + 1, (1, 0)).numpy()
    target_BT = batch.target_BT[:, 1:-1].cpu().numpy()
    real_BK = np.arange(source_BK.shape[1]) <= batch.source_length_B.cpu().numpy()[:, None]
    real_BTK = _words(batch).numpy()[:, :, None] & real_BK[:, None]
    return (source_BK[:, None].astype(np.int64) << 32) + target_BT[:, :, None], real_BTK


def _agreement(weights_BTK: Tensor, posterior_BTK: Tensor, real_BT: Tensor) -> Tensor:
    """Sum, in each sentence, IBM-1's probability of the source tokens that get the most weight."""
    agreed_BT = posterior_BTK.gather(2, weights_BTK.argmax(-1, keepdim=True).cpu())[..., 0]
    return (agreed_BT * real_BT).sum(1).double()


def _together(
    seen: Sequence[tuple[dict[AligningHead, Tensor], Tensor, Tensor]], heads: Sequence[AligningHead]
) -> float:
    """Give the agreement of the mean weights of several heads."""
    agreed = [_agreement(sum(weights[head] for head in heads), *rest).sum() for weights, *rest in seen]  # type: ignore[arg-type]
    return float(sum(agreed) / sum(real_BT.sum() for _, _, real_BT in seen))
