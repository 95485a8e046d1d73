"""Walk through multi-head attention step by step, with the numbers of a real model on the user's sentence."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from headwise.contracts.files import write_whole
from headwise.errors import InputError
from headwise.functional import attention_weights
from headwise.heads import Packed, page_of
from headwise.models import Encoder, EncoderConfig, Seq2Seq, load_encoder
from headwise.models.parts import vectors
from headwise.models.pretrained import has_minilm, locate
from headwise.modules import EncoderLayer
from headwise.recipes.pair_config import PairConfig
from headwise.recipes.report import shown
from headwise.recipes.run import Run, open_run
from headwise.tasks.tokenizer import Tokenizer

__all__ = ["Tour", "tour", "walk"]

_SCRIPTS = ("page_data.js", "page_tour.js")
_MOST = 64
"""Tokens of a sentence that a page can show."""
_TOLD = ("model", "tokens", "heads", "before", "biased")


@dataclass(frozen=True)
class Tour:
    """Hold what every step of a model's first attention layer makes of a sentence; in a notebook, it is the page."""

    model: str
    """Which model it is, in words."""
    tokens: tuple[str, ...]
    """The sentence, as the model reads it."""
    heads: tuple[int, ...]
    """Names of the heads."""
    before: bool
    """Whether the model normalises before attention; after adding, as in the article, where not."""
    biased: bool
    """Whether distances add to the scores, beside what is in `score_HTT`."""
    word_TM: Tensor
    """Step 1: the vector of each word."""
    place_TM: Tensor
    """The vector of each position; zeros where positions are not added."""
    x_TM: Tensor
    """What goes into the layer."""
    query_HTD: Tensor
    """Step 2: queries of each head."""
    key_HTD: Tensor
    """Keys of each head."""
    value_HTD: Tensor
    """Values of each head."""
    score_HTT: Tensor
    """Step 3: query times key, divided by the root of the head's width."""
    weights_HTT: Tensor
    """Their softmax: how much each word looks at each."""
    mixed_HTD: Tensor
    """The values, mixed by the weights."""
    projected_TM: Tensor
    """Step 4: all heads side by side, mixed by one matrix."""
    summed_TM: Tensor
    """Step 5: that, added to what was there."""
    output_TM: Tensor
    """The sum, normalised."""

    def lines(self) -> Iterator[str]:
        """Tell the five steps in lines for a terminal."""
        heads, words, width = self.mixed_HTD.shape
        at = max(range(words), key=lambda t: len(re.sub(r"\W", "", self.tokens[t])))
        head = int(self.weights_HTT[:, at].amax(-1).argmax())
        best = self.weights_HTT[head, at].topk(min(3, words))
        looks = ", ".join(f"{self.tokens[k]} {w:.0%}" for w, k in zip(best.values.tolist(), best.indices, strict=True))
        added = self.projected_TM[at].norm() / self.x_TM[at].norm()
        name, query_D = self.heads[head], self.query_HTD[head, at]
        told = "normalised before" if self.before else "normalised"
        yield f"{self.model}; {words} tokens: {' '.join(self.tokens)}"
        yield f"1  words to vectors   {self.tokens[at]} = {_some(self.x_TM[at])}"
        yield f"2  split into heads   {heads} heads of {width}; its query in head {name} = {_some(query_D)}"
        yield f"3  weights per head   in head {name}, {self.tokens[at]} looks at {looks}"
        yield f"4  concatenate        {heads} x {width} numbers; projected = {_some(self.projected_TM[at])}"
        yield f"5  add, normalise     adds {added:.2f} times what was there; {told} = {_some(self.output_TM[at])}"

    def to_html(self) -> str:
        """Write the page: one document with all it needs, that loads nothing."""
        packed = Packed()
        told = {name: value for name, value in vars(self).items() if name in _TOLD}
        numbers = {name: packed.floats(value) for name, value in vars(self).items() if name not in _TOLD}
        return page_of("Multi-head attention, step by step", _SCRIPTS, {**told, "numbers": numbers}, packed)

    def write(self, path: Path | str) -> None:
        """Write the page to a file, whole or not at all.

        Raises:
            OSError: when it cannot be written there.
        """
        write_whole(Path(path), self.to_html().encode())

    def _repr_html_(self) -> str:
        page = html.escape(self.to_html(), quote=True)
        style = "width: 100%; height: 44rem; border: 0"
        return f'<iframe title="Tour" sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'


def tour(sentence: str, model: str = "auto") -> Tour:
    """Walk a sentence through the first attention layer of a model.

    Args:
        sentence: a sentence, of at most 64 tokens.
        model: "minilm"; "random", a small model that has learned nothing; "auto", MiniLM where it is installed; the
            folder of a run; a folder of a pretrained encoder; or a name on the Hugging Face hub.

    Raises:
        InputError: for an empty or long sentence, or a model that cannot be read.
    """
    if not sentence.strip():
        raise InputError("a sentence must have words; got an empty one. Take another.")
    told, encoder, tokens, ids = _opened(sentence, model)
    if len(ids) > _MOST:
        raise InputError(f"a sentence must have 1 to {_MOST} tokens; got {len(ids)}. Take another.")
    return walk(told, encoder, tokens, ids)


@torch.no_grad()
def walk(told: str, encoder: Encoder, tokens: Sequence[str], ids: Sequence[int]) -> Tour:
    """Take the first layer of an encoder apart into the article's steps.

    Args:
        told: which model it is, in words.
        encoder: the model.
        tokens: what it reads, as it is to be shown.
        ids: the same, as token ids.
    """
    layer, ids_BT = encoder.eval().layers[0], torch.tensor([ids])
    assert isinstance(layer, EncoderLayer), "so it was built"
    attention, before = layer.attention, layer.norm == "pre"
    word_BTM = vectors(encoder.tokens, ids_BT, encoder.config)
    place_BTM = torch.zeros_like(word_BTM)
    x_BTM = encoder.embed(ids_BT)
    query_BHTD, key_BGTD, value_BGTD = attention.split(layer.attention_norm(x_BTM) if before else x_BTM)
    key_BHTD, value_BHTD = (x.repeat_interleave(query_BHTD.shape[1] // x.shape[1], 1) for x in (key_BGTD, value_BGTD))
    bias = None if encoder.bias is None else encoder.bias(attention.heads)
    weights_BHTT = attention_weights(query_BHTD, key_BHTD, bias=bias)
    mixed_BHTD = weights_BHTT @ value_BHTD
    projected_BTM = attention.join(mixed_BHTD)
    summed_BTM = x_BTM + projected_BTM
    return Tour(
        told,
        tuple(tokens),
        attention.heads,
        before,
        bias is not None,
        word_BTM[0],
        place_BTM[0] if encoder.positions is None else encoder.positions(place_BTM)[0],
        x_BTM[0],
        query_BHTD[0],
        key_BHTD[0],
        value_BHTD[0],
        (query_BHTD @ key_BHTD.transpose(-1, -2))[0] / attention.d_head**0.5,
        weights_BHTT[0],
        mixed_BHTD[0],
        projected_BTM[0],
        summed_BTM[0],
        summed_BTM[0] if before else layer.attention_norm(summed_BTM)[0],
    )


def _opened(sentence: str, model: str) -> tuple[str, Encoder, tuple[str, ...], Sequence[int]]:
    """Find the model, and what it reads of the sentence."""
    if model == "auto":
        model = "minilm" if has_minilm() else "random"
    if model == "random":
        return _random(sentence)
    if (Path(model) / "run.json").is_file():
        run = open_run(Path(model))
        encoder, told = run.model.encoder, f"The model of {model}"
        tokenizer, ids = _read_by(run, sentence)
    else:
        encoder, tokenizer = load_encoder(model), Tokenizer.pretrained(str(locate(model)))
        told = "MiniLM, a small model trained to compare sentences" if model == "minilm" else f"The model {model}"
        ids = tokenizer.encode([sentence], max_tokens=_MOST + 1).ids[0]
    return told, encoder, tuple(token.strip() or " " for token in shown(tokenizer, ids)), ids


def _read_by(run: Run, sentence: str) -> tuple[Tokenizer, list[int]]:
    """Cut a sentence into tokens as a run's model reads it."""
    if isinstance(run.config, PairConfig):
        assert isinstance(run.model, Seq2Seq), "a run on pairs"
        return run.reader, [*run.reader.encode([sentence], max_tokens=_MOST).ids[0], run.model.config.end]
    found = run.tokenizer.encode([sentence], max_tokens=_MOST + 1, ends=run.config.data.ends)
    return run.tokenizer, found.ids[0]


def _random(sentence: str) -> tuple[str, Encoder, tuple[str, ...], Sequence[int]]:
    words = tuple(re.findall(r"\w+|[^\w\s]", sentence))[: _MOST + 1]
    known = {word: id_ for id_, word in enumerate(dict.fromkeys(words))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = EncoderConfig(max(1, len(known)), d_model=64, heads=4, layers=1, norm="post", positions="sinusoidal")
        encoder = Encoder(config)
    return "A small random model that has learned nothing", encoder, words, [known[word] for word in words]


def _some(vector_M: Tensor) -> str:
    """Write the first numbers of a vector."""
    shown = ", ".join(f"{value:.2f}" for value in vector_M[:3].tolist())
    return f"[{shown}, ...] ({len(vector_M)} numbers)"
