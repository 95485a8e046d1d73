"""Build the model that reads one text and writes another."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.contracts import Mask, PairBatch, Scored, twice
from headwise.functional.losses import linear_cross_entropy
from headwise.models import parts
from headwise.models.classifier import Encoder
from headwise.models.config import checked
from headwise.models.copying import Copying
from headwise.models.seq2seq_config import Seq2SeqConfig
from headwise.modules import Beams, DecoderLayer, HiddenDropout, KeyValueCache, TokenEmbedding
from headwise.modules.attention import lowered

__all__ = ["Decoder", "Seq2Seq", "State"]


class Decoder(nn.Module):
    """Go from the tokens that are written, and the states of a source, to states that tell the next token.

    Args:
        config: what to build.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        own = config.decoder.as_encoder(config.encoder, cross=False)
        self.config, self.copy = own, config.copy
        self.positions = parts.added_positions(own)
        self.bias = parts.bias_positions(own, own.head_names, bidirectional=False)
        self.embedding_norm = parts.norm(own) if own.embedding_norm else None
        self.dropout = HiddenDropout(own.dropout)
        self.layers = nn.ModuleList(_layer(config, i) for i in range(own.layers))
        self.final_norm = parts.norm(own) if own.norm == "pre" else None

    def forward(
        self, x_BTM: Tensor, length_B: Tensor, source_BKM: Tensor, source_length_B: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Transform the vectors of texts that are known to their ends and padded there.

        Returns:
            The states, and for a model that copies the weights with which the last layer's heads look at the source.
        """
        x_BTM = self._placed(x_BTM, 0)
        own = Mask.causal() & Mask.lengths(length_B, length_B)
        seen, source_BKM = Mask.lengths(source_length_B), lowered(source_BKM)
        for layer, heads in zip(self._layers, self.config.head_names, strict=True):
            x_BTM = asking_BTM = layer.listen(x_BTM, own, bias=parts.bias_of(self.bias, heads))
            x_BTM = layer.read(x_BTM, source_BKM, seen)
        weights_BHTK = self._layers[-1].weights(asking_BTM, source_BKM, seen) if self.copy else None
        return x_BTM if self.final_norm is None else self.final_norm(x_BTM), weights_BHTK

    def step(self, x_BWM: Tensor, state: State) -> tuple[Tensor, Tensor | None]:
        """Transform the vectors of the next position of every beam, and remember it; results as for `forward`."""
        x_BWM = self._placed(x_BWM.flatten(0, 1)[:, None], state.beams.length).view_as(x_BWM)
        state.beams.write(x_BWM.shape[1])
        seen, source_BKM = Mask.lengths(state.source_length_B), state.source_BKM
        for layer, heads, (written, source) in zip(self._layers, self.config.head_names, state.caches, strict=True):
            x_BWM = asking_BWM = layer.listen_on(x_BWM, written, state.beams, bias=parts.bias_of(self.bias, heads))
            x_BWM = layer.read(x_BWM, source_BKM, seen, source)
        weights_BHWK = self._layers[-1].weights(asking_BWM, source_BKM, seen, source) if self.copy else None
        return x_BWM if self.final_norm is None else self.final_norm(x_BWM), weights_BHWK

    @property
    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def _placed(self, x_BTM: Tensor, offset: int) -> Tensor:
        """Give what goes into the first layer."""
        if self.positions is not None:
            x_BTM = self.positions(x_BTM, offset)
        if self.embedding_norm is not None:
            x_BTM = self.embedding_norm(x_BTM)
        dropped_BTM: Tensor = self.dropout(x_BTM)
        return dropped_BTM


def _layer(config: Seq2SeqConfig, i: int) -> DecoderLayer:
    own, cross = (config.decoder.as_encoder(config.encoder, cross=cross) for cross in (False, True))
    assert isinstance(own.kv_heads, tuple), "the settings were checked"
    assert isinstance(cross.kv_heads, tuple), "the settings were checked"
    return DecoderLayer(
        parts.attention(own, own.head_names[i], own.kv_heads[i], positions=True),
        parts.attention(cross, cross.head_names[i], cross.kv_heads[i], positions=False),
        parts.feed_forward(own),
        norm=own.norm,
        dropout=own.dropout,
        eps=own.norm_eps,
        normalisation=own.normalisation,
    )


class State:
    """Hold what decoding keeps: the source of each sentence once, and what its beams have written.

    Args:
        source_BK: tokens of the sources.
        source_BKM: their states.
        source_length_B: how many of each are valid.
        caches: for each layer, what is written, and the source.
    """

    def __init__(
        self,
        source_BK: Tensor,
        source_BKM: Tensor,
        source_length_B: Tensor,
        caches: list[tuple[KeyValueCache, KeyValueCache]],
    ) -> None:
        self.source_BK, self.source_BKM, self.source_length_B = source_BK, source_BKM, source_length_B
        self.caches = caches
        self.beams = Beams(len(source_BKM), source_BKM.device)

    def reorder(self, parent_BW: Tensor) -> None:
        """Let beam w of sentence b go on from what beam `parent_BW[b, w]` of that sentence had written."""
        self.beams.reorder(parent_BW)

    def keep(self, sentence_N: Tensor) -> None:
        """Go on with these sentences only, in this order."""
        self.source_BK, self.source_BKM = self.source_BK[sentence_N], self.source_BKM[sentence_N]
        self.source_length_B = self.source_length_B[sentence_N]
        self.beams.keep(sentence_N)
        for written, source in self.caches:
            written.select(sentence_N)
            source.select(sentence_N)


class Seq2Seq(nn.Module):
    """Read texts and write texts: an encoder, and a decoder that looks at its states.

    Args:
        config: what to build.

    Raises:
        ConfigError: with a line for every setting that cannot be.

    Example:
        >>> model = Seq2Seq(Seq2SeqConfig(EncoderConfig(vocabulary=100))).eval()
        >>> state = model.begin(torch.tensor([[5, 7, 9]]), torch.tensor([3]))
        >>> model.step(torch.tensor([[1, 1]]), state).shape
        torch.Size([1, 2, 100])
    """

    kind: ClassVar = "seq2seq"

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config = checked(config)
        self.encoder = Encoder(config.encoder)
        assert config.target_vocabulary is not None, "the settings were written out"
        self.target_tokens = None if config.shared else parts.tokens(config.encoder, config.target_vocabulary)
        self.decoder = Decoder(config)
        width = config.encoder.d_model
        output = None if config.tied else nn.Linear(width, config.target_vocabulary, bias=False)
        self.output: nn.Module | None = output
        self.output_bias = nn.Parameter(torch.zeros(config.target_vocabulary)) if config.output_bias else None
        last = config.decoder.as_encoder(config.encoder, cross=True).head_names[-1]
        self.copying = Copying(width, len(last)) if config.copy else None
        if output is not None:
            nn.init.normal_(output.weight, std=width**-0.5)

    def forward(self, source_BK: Tensor, source_length_B: Tensor, target_BT: Tensor, target_length_B: Tensor) -> Tensor:
        """Give the states from which each next token is told, shape (B, T, M): the one at t, after `target_BT[:, t]`.

        Args:
            source_BK: tokens to read, padded at the end.
            source_length_B: how many of each are valid.
            target_BT: tokens that are written, the begin token first, padded at the end.
            target_length_B: how many of each are valid.
        """
        return self._states(source_BK, source_length_B, target_BT, target_length_B)[0]

    def _states(
        self, source_BK: Tensor, source_length_B: Tensor, target_BT: Tensor, target_length_B: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        source_BKM = self.encoder(source_BK, source_length_B)
        x_BTM = parts.vectors(self._table, target_BT, self.config.encoder)
        found: tuple[Tensor, Tensor | None] = self.decoder(x_BTM, target_length_B, source_BKM, source_length_B)
        return found

    def loss(self, batch: PairBatch, *, smoothing: float = 0.0, rdrop: float = 0.0) -> Scored:
        """Sum the cross-entropy of every target token but the first, in nats; tokens x vocabulary are never held.

        Args:
            batch: pairs.
            smoothing: share of the target's probability that is spread over the vocabulary (Szegedy et al. 2016,
                section 7).
            rdrop: weight with which two readings of the batch, under other dropout, are drawn towards each other
                (R-Drop; Liang et al. 2021); 0 reads once. Other than 0 it doubles the memory of a step and a little
                more than doubles its time, and each token is counted twice.
        """
        batch = twice(batch) if rdrop else batch
        length_B = batch.target_length_B - 1
        given = batch.source_BK, batch.source_length_B, batch.target_BT[:, :-1], length_B
        # A call of the model itself is what `torch.compile` and shards know of.
        hidden_BTM, weights_BHTK = (self(*given), None) if self.copying is None else self._states(*given)
        valid_BT = torch.arange(hidden_BTM.shape[1], device=length_B.device) < length_B[:, None]
        next_BT, mixed = batch.target_BT[:, 1:], None
        if self.copying is not None and weights_BHTK is not None:
            kept_BT, copied_BT = self.copying.of_target(hidden_BTM, weights_BHTK, batch.source_BK, next_BT)
            mixed = kept_BT[valid_BT], copied_BT[valid_BT]
        return linear_cross_entropy(
            hidden_BTM[valid_BT],
            self.weight,
            next_BT[valid_BT],
            bias_V=self.output_bias,
            smoothing=smoothing,
            mixed=mixed,
            rdrop=rdrop,
        )

    def logits(self, hidden_BTM: Tensor) -> Tensor:
        """Score every token of the vocabulary, shape (B, T, V)."""
        if self.output is None:
            return nn.functional.linear(hidden_BTM, self.weight, self.output_bias)
        logits_BTV: Tensor = self.output(hidden_BTM)
        return logits_BTV if self.output_bias is None else logits_BTV + self.output_bias

    def begin(self, source_BK: Tensor, source_length_B: Tensor) -> State:
        """Read the sources; keys and values of cross attention are computed here, once, and shared by the beams."""
        source_BKM = self.encoder(source_BK, source_length_B)
        caches = []
        for layer in self.decoder.layers:
            assert isinstance(layer, DecoderLayer), "so they were built"
            source = KeyValueCache()
            layer.cross_attention.split(source_BKM[:, :1], source_BKM, source)
            caches.append((KeyValueCache(), source))
        return State(source_BK, source_BKM, source_length_B, caches)

    def step(self, token_BW: Tensor, state: State) -> Tensor:
        """Write one token with each beam, and score what may come next, shape (B, W, V).

        These are logits; of a model that copies, log-probabilities.
        """
        x_BWM = parts.vectors(self._table, token_BW, self.config.encoder)
        hidden_BWM, weights_BHWK = self.decoder.step(x_BWM, state)
        logits_BWV = self.logits(hidden_BWM)
        if self.copying is None:
            return logits_BWV
        return self.copying.of_all(hidden_BWM, weights_BHWK, state.source_BK, logits_BWV)

    @property
    def _table(self) -> TokenEmbedding:
        """Give the table of the target's token vectors."""
        return self.encoder.tokens if self.target_tokens is None else self.target_tokens

    @property
    def weight(self) -> Tensor:
        """Give the weights of the output, a row per token."""
        if self.output is None:
            return self._table.table.weight
        assert isinstance(self.output, nn.Linear), "a model that is packed for inference is not trained"
        return self.output.weight
