"""Write texts with a model that gives one token after the other: greedily, by beam search, or by chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from headwise.contracts.settings import read
from headwise.errors import ConfigError, InputError
from headwise.functional.largest import largest

__all__ = ["Decodable", "Decoding", "Hypothesis", "Progress", "decode"]


class Progress(Protocol):
    """Be what a model remembers of the texts it is writing."""

    def reorder(self, parent_BW: Tensor) -> None:
        """Let beam w of sentence b go on from what beam parent[b, w] had."""

    def keep(self, sentence_N: Tensor) -> None:
        """Forget all sentences but these."""


class Decodable(Protocol):
    """Be a model that reads sources and writes texts."""

    def begin(self, source_BK: Tensor, source_length_B: Tensor) -> Any:
        """Read the sources; the result is a `Progress`."""

    def step(self, token_BW: Tensor, state: Any) -> Tensor:
        """Take the last token of every beam, and give the logits of the next, shape (B, W, V)."""


@dataclass(frozen=True)
class Decoding:
    """Say how texts are written.

    A text of n tokens, the end token among them, has the score log p / n^length_penalty; the best score wins.

    Example:
        >>> Decoding(beams=5, length_penalty=0.6).n_best
        1
    """

    method: Literal["greedy", "beam", "sample"] = "beam"
    """Take the likeliest token each time, keep the likeliest beams, or draw tokens; a single beam is greedy."""
    beams: int = 1
    """Beams of the search, or texts that are drawn for each source."""
    n_best: int = 1
    """How many texts are given for each source, the best first; no more than beams."""
    length_penalty: float = 1.0
    """Power of the length by which log-probabilities are divided: 0 favours short texts, more than 1 long ones."""
    min_length: int = 0
    """Fewest tokens before the end token."""
    max_length: int = 200
    """Most tokens, the end token among them; a text that gets there is cut."""
    max_ratio: float | None = 2.0
    """Most tokens per token of the source, beside 10 that are always allowed; max_length alone where none."""
    no_repeat: int = 0
    """Length of the runs of tokens that may stand only once in a text; 0 for no such rule."""
    suppress: tuple[int, ...] = ()
    """Ids of tokens that are never written."""
    prefix: tuple[int, ...] = ()
    """Ids of tokens that every text has to begin with."""
    stop: Literal["exact", "early"] = "exact"
    """When a beam search ends: exact, when no beam can win any more, however it goes on; early, when as many texts as
    beams have ended and the best beam, were it to end at once, would lose to them."""
    temperature: float = 1.0
    """Divides the logits before a token is drawn: below 1 for likelier texts, above 1 for wilder ones."""
    top_k: int = 0
    """Draw only among so many of the likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Draw only among the likeliest tokens that hold this much of the probability together."""
    seed: int = 0
    """Seed of what is drawn; every source has numbers of its own, whichever batch it is in."""

    def problems(self) -> Iterator[str]:
        """Tell what no search can do, a line each."""
        lowest = {"beams": 1, "n_best": 1, "max_length": 1, "min_length": 0, "no_repeat": 0, "top_k": 0}
        for name, least in {**lowest, "length_penalty": 0}.items():
            if not least <= (value := getattr(self, name)) < math.inf:
                yield f"`{name}` must be at least {least}; got {value}. {getattr(Decoding, name)} is usual."
        for name, most, usual in (("max_ratio", 1e6, 2), ("temperature", 1e6, 1), ("top_p", 1, 0.9)):
            if (value := getattr(self, name)) is not None and not 0 < value <= most:
                yield f"`{name}` must be above 0 and at most {most:g}; got {value}. {usual} is usual."
        if self.method == "greedy" and self.beams > 1:
            yield f'`beams` must be 1 where `method` is "greedy"; got {self.beams}. Set `method` to "beam".'
        if self.n_best > self.beams >= 1:
            yield f"`n_best` must be at most `beams`; got {self.n_best} of {self.beams}. Raise `beams`."
        if self.min_length > self.max_length >= 1:
            yield f"`min_length` must be at most `max_length` {self.max_length}; got {self.min_length}. Change one."


@dataclass(frozen=True)
class Hypothesis:
    """Hold a text that was written, and how good the model finds it."""

    ids: tuple[int, ...]
    """Its tokens, without begin and end."""
    score: float
    """Its log-probability, divided by its length as `Decoding.length_penalty` says; at most 0."""


@torch.inference_mode()
def decode(
    models: Sequence[Decodable],
    source_BK: Tensor,
    source_length_B: Tensor,
    decoding: Decoding,
    *,
    begin: int,
    end: int,
    prefix_BT: Tensor | None = None,
    row_B: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Write a text for every source.

    Args:
        models: one model, or several of one vocabulary whose probabilities are averaged; in evaluation mode.
        source_BK: the tokens of the sources, padded at the end.
        source_length_B: how many of them are valid.
        decoding: how to write.
        begin: token that stands before every text.
        end: token that ends one.
        prefix_BT: a prefix for each text in place of `decoding.prefix`, -1 beyond the end of a shorter one.
        row_B: number of each source, from which its random numbers come; its place in the batch where left out.

    Returns:
        For each source its `n_best` hypotheses, the best first; fewer where fewer are possible.

    Raises:
        ConfigError: with a line for every setting that cannot be.
        InputError: when a model gives numbers that are not finite, or no token is allowed any more.
    """
    if not models or source_BK.dim() != 2 or source_length_B.shape != source_BK.shape[:1]:
        told = f"{len(models)} models, sources {tuple(source_BK.shape)}, lengths {tuple(source_length_B.shape)}"
        raise InputError(f"`decode` must have a model, sources (B, K) and lengths (B,); got {told}. Pass them so.")
    search = _Search(models, source_BK, source_length_B, read(Decoding, asdict(decoding)), begin, end)
    if prefix_BT is not None:
        search.prefix_BT = prefix_BT
    if decoding.method == "sample":
        search.chance_BTW = _chances(decoding, search.sentence_B if row_B is None else row_B).to(source_BK.device)
    while len(search.sentence_B):
        search.step()
    return [found[: decoding.n_best] for found in search.found]


def _chances(decoding: Decoding, row_B: Tensor) -> Tensor:
    """Draw a number from 0 to 1 for every token of every text, from a generator of each source's own."""
    makers = [torch.Generator().manual_seed((decoding.seed * 1_000_003 + row) % 2**63) for row in row_B.tolist()]
    shape = decoding.max_length, decoding.beams
    return torch.stack([torch.rand(shape, generator=maker, dtype=torch.float64) for maker in makers])


class _Search:
    """Hold the beams of the B sentences that are still being written: W texts of T tokens, the begin token first."""

    def __init__(
        self, models: Sequence[Decodable], source_BK: Tensor, length_B: Tensor, decoding: Decoding, begin: int, end: int
    ) -> None:
        batch, device = len(source_BK), source_BK.device
        # Beams begin alike: a search starts from one. Texts that are drawn go apart by themselves.
        beams = decoding.beams if decoding.method == "sample" else 1
        self.decoding, self.end, self.time = decoding, end, 0
        self.writers = [(model, model.begin(source_BK, length_B)) for model in models]
        self.found: list[list[Hypothesis]] = [[] for _ in range(batch)]
        self.sentence_B = torch.arange(batch, device=device)
        self.longest_B = torch.full_like(length_B, decoding.max_length)
        if decoding.max_ratio is not None:
            by_source_B = (decoding.max_ratio * length_B + 10).ceil().long().clamp(min=decoding.min_length)
            self.longest_B = self.longest_B.minimum(by_source_B)
        self.prefix_BT = torch.tensor(decoding.prefix, dtype=torch.long, device=device).expand(batch, -1)
        self.chance_BTW = torch.empty(batch, 0, beams, device=device)
        self.text_BWT = torch.full((batch, beams, 1), begin, device=device)
        self.sum_BW = torch.zeros(batch, beams, device=device, dtype=torch.float64)

    def step(self) -> None:
        """Write one more token of every beam, and part with the sentences that are done."""
        logp_BWV = self._restricted(self._log_probabilities())
        ways = self._drawn(logp_BWV) if self.decoding.method == "sample" else self._best(logp_BWV)
        if not bool((ways[2] > -math.inf).any(1).all()):
            raise InputError(
                f"some token must be allowed after each; got none after {self.time} tokens. "
                "Loosen `no_repeat`, `min_length`, `suppress` or the prefix."
            )
        self._go_on(*ways)
        self._part()

    def _log_probabilities(self) -> Tensor:
        """Ask the models, and average their probabilities; in float32 at least."""
        logits = [model.step(self.text_BWT[..., -1], state) for model, state in self.writers]
        logp = [each.log_softmax(-1, dtype=torch.promote_types(each.dtype, torch.float32)) for each in logits]
        logp_BWV = logp[0] if len(logp) == 1 else torch.stack(logp).logsumexp(0) - math.log(len(logp))
        if not bool(logp_BWV.amax(-1).isfinite().all()):
            raise InputError("a model must give finite logits; got NaN or infinity. Its weights may have diverged.")
        return logp_BWV

    def _restricted(self, open_BWV: Tensor) -> Tensor:
        """Hide, in place, the tokens that may not come next; a prefix overrules all else."""
        decoding, time, text_BWT = self.decoding, self.time, self.text_BWT[..., 1:]
        forced = time < self.prefix_BT.shape[1]
        logp_BWV = open_BWV.clone() if forced else open_BWV
        if decoding.suppress:
            most = open_BWV.shape[2] - 1
            if time == 0 and not 0 <= min(decoding.suppress) <= max(decoding.suppress) <= most:
                told = f"the vocabulary, 0 to {most}; got {list(decoding.suppress)}"
                raise ConfigError(f"`suppress` must name tokens of {told}. Check the ids.")
            open_BWV[..., list(decoding.suppress)] = -math.inf
        if time < decoding.min_length:
            open_BWV[..., self.end] = -math.inf
        if 0 < decoding.no_repeat <= time:
            run_BWNT = text_BWT.unfold(2, decoding.no_repeat, 1)
            last_BW1T = text_BWT[:, :, None, time - decoding.no_repeat + 1 :]
            b, w, n = (run_BWNT[..., :-1] == last_BW1T).all(-1).nonzero(as_tuple=True)
            open_BWV[b, w, run_BWNT[b, w, n, -1]] = -math.inf
        if forced:
            next_B11 = self.prefix_BT[:, time, None, None]
            other_BWV = torch.arange(logp_BWV.shape[2], device=logp_BWV.device) != next_B11
            open_BWV = torch.where(next_B11 < 0, open_BWV, logp_BWV.masked_fill(other_BWV, -math.inf))
        return open_BWV

    def _best(self, logp_BWV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the best 2W ways to go on, W of which do not end: their beams, tokens and log-probabilities.

        A single beam has but one, the likeliest: it ends where that is the end token, as greedy writing does.
        """
        ways = 2 * self.decoding.beams if self.decoding.beams > 1 else 1
        count = min(ways, logp_BWV.shape[2])
        value_BWN, token_BWN = largest(logp_BWV, count)
        sum_BWN = self.sum_BW[..., None] + value_BWN
        sum_BN, place_BN = sum_BWN.flatten(1).topk(min(ways, sum_BWN[0].numel()))
        return place_BN // count, token_BWN.flatten(1).gather(1, place_BN), sum_BN

    def _drawn(self, logp_BWV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a token for every text: where its chance falls among the summed probabilities of the likeliest."""
        count = min(self.decoding.top_k, logp_BWV.shape[2]) or logp_BWV.shape[2]
        value_BWN, token_BWN = logp_BWV.topk(count)
        share_BWN = (value_BWN.double() / self.decoding.temperature).softmax(-1)
        before_BWN = share_BWN.cumsum(-1) - share_BWN
        mass_BWN = share_BWN.masked_fill(before_BWN >= self.decoding.top_p, 0).cumsum(-1)
        chance_BW1 = self.chance_BTW[:, self.time, :, None] * mass_BWN[..., -1:]
        pick_BW1 = torch.searchsorted(mass_BWN, chance_BW1, right=True).clamp(max=count - 1)
        token_BW, value_BW = token_BWN.gather(2, pick_BW1)[..., 0], value_BWN.gather(2, pick_BW1)[..., 0]
        beam_BW = torch.arange(self.decoding.beams, device=token_BW.device).expand_as(token_BW)
        return beam_BW, token_BW, self.sum_BW + value_BW

    def _go_on(self, parent_BN: Tensor, token_BN: Tensor, sum_BN: Tensor) -> None:
        """Keep the texts that end among the best W, and let the best W that do not end be the beams."""
        text_BNT = torch.cat([self.text_BWT.take_along_dim(parent_BN[..., None], 1), token_BN[..., None]], 2)
        ended_BN = token_BN == self.end
        self.time += 1
        self._keep(ended_BN[:, : self.decoding.beams], text_BNT, sum_BN)
        place_BW = ended_BN.to(torch.uint8).sort(dim=1, stable=True).indices[:, : self.decoding.beams]
        self.text_BWT = text_BNT.take_along_dim(place_BW[..., None], 1)
        self.sum_BW = sum_BN.masked_fill(ended_BN, -math.inf).gather(1, place_BW)
        if self.decoding.beams > 1:
            for _, state in self.writers:
                state.reorder(parent_BN.gather(1, place_BW))

    def _part(self) -> None:
        """Part with the sentences that are done: cut at their longest, or sure of their best."""
        cut_B = self.longest_B <= self.time
        self._keep(cut_B[:, None].expand_as(self.sum_BW), self.text_BWT, self.sum_BW)
        done_B = cut_B | ~(self.sum_BW > -math.inf).any(1)
        if self.decoding.method != "sample":
            done_B |= self._bound(self.time) <= self._rival()
        if bool(done_B.any()):
            keep_N = (~done_B).nonzero()[:, 0]
            for _, state in self.writers:
                state.keep(keep_N)
            for name in ("sentence_B", "longest_B", "prefix_BT", "chance_BTW", "text_BWT", "sum_BW"):
                setattr(self, name, getattr(self, name)[keep_N])

    def _keep(self, done_BN: Tensor, text_BNT: Tensor, sum_BN: Tensor) -> None:
        """Keep some texts, ended or cut, the best W of each sentence."""
        b, n = (done_BN & (sum_BN[:, : done_BN.shape[1]] > -math.inf)).nonzero(as_tuple=True)
        score_N = sum_BN[b, n] / self.time**self.decoding.length_penalty
        texts = zip(self.sentence_B[b].tolist(), text_BNT[b, n, 1:].tolist(), score_N.tolist(), strict=True)
        for sentence, ids, score in texts:
            text = Hypothesis(tuple(ids[:-1] if ids[-1] == self.end else ids), score)
            kept = sorted([*self.found[sentence], text], key=lambda each: -each.score)
            self.found[sentence] = kept[: self.decoding.beams]

    def _bound(self, time: int) -> Tensor:
        """Give the best score that a beam can still reach: log-probabilities only fall, and length divides them."""
        length_B = self.longest_B if self.decoding.stop == "exact" else torch.full_like(self.longest_B, time)
        bound_B: Tensor = self.sum_BW.amax(1) / length_B**self.decoding.length_penalty
        return bound_B

    def _rival(self) -> Tensor:
        """Give the score that a beam has to beat to be wanted."""
        wanted = self.decoding.n_best if self.decoding.stop == "exact" else self.decoding.beams
        found = [self.found[sentence] for sentence in self.sentence_B.tolist()]
        scores = [texts[wanted - 1].score if len(texts) >= wanted else -math.inf for texts in found]
        return torch.tensor(scores, dtype=torch.float64, device=self.sum_BW.device)
