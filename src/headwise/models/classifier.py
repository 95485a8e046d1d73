"""Build the encoder, and the classifier on it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from headwise.contracts import Mask
from headwise.errors import ConfigError, InputError
from headwise.models import parts
from headwise.models.config import ClassifierConfig, EncoderConfig, checked
from headwise.modules import Attend, EncoderLayer, HiddenDropout

__all__ = ["Classifier", "Encoder", "Pooling"]


class Encoder(nn.Module):
    """Read texts: a hidden state for every token, from all tokens of its text.

    Args:
        config: what to build.

    Raises:
        ConfigError: with a line for every setting that cannot be.

    Example:
        >>> encoder = Encoder(EncoderConfig(vocabulary=100, d_model=32, heads=4))
        >>> encoder(torch.tensor([[5, 7, 9], [5, 8, 0]]), torch.tensor([3, 2])).shape
        torch.Size([2, 3, 32])
    """

    kind: ClassVar = "encoder"

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config = checked(config)
        width = config.d_model
        self.tokens = parts.tokens(config)
        self.positions = parts.added_positions(config)
        self.bias = parts.bias_positions(config, config.head_names, bidirectional=True)
        self.types = nn.Embedding(config.token_types, width) if config.token_types else None
        self.embedding_norm = parts.norm(config) if config.embedding_norm else None
        self.dropout = HiddenDropout(config.dropout)
        self.layers = nn.ModuleList(_layer(config, i) for i in range(config.layers))
        self.final_norm = parts.norm(config) if config.norm == "pre" else None
        if self.types is not None:
            nn.init.normal_(self.types.weight, std=0.02)

    def forward(self, tokens_BT: Tensor, length_B: Tensor, types_BT: Tensor | None = None) -> Tensor:
        """Read texts that are padded at the end; the padding changes nothing.

        Args:
            tokens_BT: token ids.
            length_B: how many tokens of each text are valid.
            types_BT: type of each token, 0 where left out; only for a model with token types.

        Returns:
            Hidden states, shape (B, T, M); those of the padding mean nothing.
        """
        x_BTM = self.embed(tokens_BT, types_BT)
        mask = Mask.lengths(length_B, length_B)
        for layer, heads in zip(self.layers, self.config.head_names, strict=True):
            x_BTM = layer(x_BTM, mask, bias=parts.bias_of(self.bias, heads))
        return x_BTM if self.final_norm is None else self.final_norm(x_BTM)

    def embed(self, tokens_BT: Tensor, types_BT: Tensor | None = None) -> Tensor:
        """Give what goes into the first layer: vectors of tokens, positions and types, normalised where asked."""
        x_BTM = parts.vectors(self.tokens, tokens_BT, self.config)
        if self.positions is not None:
            x_BTM = self.positions(x_BTM)
        if self.types is not None:
            x_BTM = x_BTM + (self.types.weight[0] if types_BT is None else self.types(types_BT))
        elif types_BT is not None:
            raise InputError("`types_BT` must be left out of a model without token types; got some. Set `token_types`.")
        if self.embedding_norm is not None:
            x_BTM = self.embedding_norm(x_BTM)
        dropped_BTM: Tensor = self.dropout(x_BTM)
        return dropped_BTM


def _layer(config: EncoderConfig, i: int) -> EncoderLayer:
    assert isinstance(config.kv_heads, tuple), "the settings were checked"
    attention = parts.attention(config, config.head_names[i], config.kv_heads[i], positions=True)
    feed_forward = parts.feed_forward(config)
    return EncoderLayer(
        attention,
        feed_forward,
        norm=config.norm,
        dropout=config.dropout,
        eps=config.norm_eps,
        normalisation=config.normalisation,
    )


class Pooling(nn.Module):
    """Make one vector of a text's hidden states.

    Args:
        kind: `"mean"` of the valid states; the `"first"`; `"attention"`, a mean weighted by how well each state fits
            a learned query (Yang et al. 2016, section 2.2); or `"pooler"`, BERT's layer with tanh on the first.
        d_model: width of the states.
    """

    def __init__(self, kind: Literal["mean", "first", "attention", "pooler"], d_model: int) -> None:
        super().__init__()
        self.kind = kind
        self.dense = nn.Linear(d_model, d_model) if kind == "pooler" else None
        self.query_M = nn.Parameter(torch.zeros(d_model)) if kind == "attention" else None
        self.attend = Attend((0,)) if kind == "attention" else None

    def forward(self, x_BTM: Tensor, length_B: Tensor) -> Tensor:
        """Pool the first `length_B` states of each text: shape (B, M)."""
        if self.query_M is not None and self.attend is not None:
            query_B11M = self.query_M.to(x_BTM.dtype).expand(x_BTM.shape[0], 1, 1, -1)
            seen = x_BTM[:, None], x_BTM[:, None]
            pooled_B11M: Tensor = self.attend(query_B11M, *seen, Mask.lengths(length_B), cross=True)
            return pooled_B11M[:, 0, 0]
        if self.kind == "mean":
            valid_BT1 = (torch.arange(x_BTM.shape[1], device=x_BTM.device) < length_B[:, None])[..., None]
            return x_BTM.masked_fill(~valid_BT1, 0).sum(1) / length_B.clamp(min=1)[:, None].to(x_BTM.dtype)
        return x_BTM[:, 0] if self.dense is None else torch.tanh(self.dense(x_BTM[:, 0]))

    def extra_repr(self) -> str:
        """Show the kind."""
        return f"kind={self.kind}"


class Classifier(nn.Module):
    """Read texts and give each a logit per class.

    Args:
        config: what to build; `classes` names the logits.
        encoder: an encoder to build on, as `load_encoder` gives one; its config takes the place of `config.encoder`.

    Raises:
        ConfigError: with a line for every setting that cannot be.

    Example:
        >>> config = ClassifierConfig(EncoderConfig(vocabulary=100), classes=("bad", "good"))
        >>> Classifier(config)(torch.tensor([[5, 7, 9], [5, 8, 0]]), torch.tensor([3, 2])).shape
        torch.Size([2, 2])
    """

    kind: ClassVar = "classifier"

    def __init__(self, config: ClassifierConfig, encoder: Encoder | None = None) -> None:
        super().__init__()
        if encoder is not None:
            config = replace(config, encoder=encoder.config)
        self.config = config = checked(config)
        if not config.classes:
            raise ConfigError("`classes` must be known to build a model; got none. Set them to the data's labels.")
        self.encoder = Encoder(config.encoder) if encoder is None else encoder
        self.pooling = Pooling(config.pooling, config.encoder.d_model)
        self.dropout = HiddenDropout(config.dropout)
        self.output = nn.Linear(config.encoder.d_model, len(config.classes))
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens_BT: Tensor, length_B: Tensor, types_BT: Tensor | None = None) -> Tensor:
        """Give the logits of texts that are padded at the end, shape (B, C).

        Args:
            tokens_BT: token ids.
            length_B: how many tokens of each text are valid.
            types_BT: type of each token, as for the encoder.
        """
        pooled_BM = self.pooling(self.encoder(tokens_BT, length_B, types_BT), length_B)
        logits_BC: Tensor = self.output(self.dropout(pooled_BM))
        return logits_BC
