"""The arena's model: a small transformer encoder that reads token ids and gives a class.

    x_0 = E[tokens] + P,    y = x + A(LN(x)),    x' = y + W_2 gelu(W_1 LN(y)),    logits = W_4 relu(W_3 pool(LN(x_L)))

A is multi-head attention, dense or by a method of this library, or PoNet; pool is the mean over the tokens, or the
place of a learnt token put before them.

Source: arXiv:2011.04006 and its published code; arXiv:1706.03762 with the normalisation first, arXiv:2002.04745.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynattn.functional import attention
from dynattn.lab.training.mixers import Mixer, Pooling
from dynattn.methods import Method
from dynattn.nn import PoNet, equal_segments

# Both tables of embeddings are drawn alike, as in BERT. With PyTorch's 1.0 for tokens and 0.02 for positions the model
# hardly sees where a token stands: 400 steps on the 8×8 digits then give 37% instead of 93%.
_TABLE_STD = 0.02


@dataclass(frozen=True)
class Config:
    """Sizes of an encoder.

    Args:
        vocabulary: number of token ids; 0 is padding.
        classes: number of classes.
        length: tokens of the longest sequence.
        width: the width of the hidden states.
        layers: number of blocks.
        heads: query heads, a divisor of ``width``.
        mlp: width inside a block's feed-forward part and inside the classifier.
        pool: ``mean`` over the tokens, or ``cls``, a learnt token.
        dropout: the dropout of embeddings and of what each part of a block adds. Attention weights have none.

    Raises:
        ValueError: ``heads`` does not divide ``width``.
    """

    vocabulary: int
    classes: int
    length: int
    width: int
    layers: int
    heads: int
    mlp: int
    pool: Literal["mean", "cls"]
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(
                f"Config: width must be a multiple of heads: got {self.width}, {self.heads}; change one of them"
            )


class ObservedCall(NamedTuple):
    """The arguments of one attention call, as an observer sees them.

    Attributes:
        query, key, value: (batch, heads, length, head_dim).
        mask: bool (batch, 1, 1, length), True for tokens; None where nothing is padding.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None


class SelfAttention(nn.Module):
    """Multi-head self-attention without causal mask.

    Attributes:
        method: what to keep; None for PyTorch's ``scaled_dot_product_attention``. May be set anew at any time.
        observe: called with the arguments of every call before it is made; None for nothing.
    """

    def __init__(self, width: int, heads: int, method: Method | None) -> None:
        super().__init__()
        self.heads, self.method = heads, method
        self.observe: Callable[[ObservedCall], None] | None = None
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.observe is not None:
            self.observe(ObservedCall(query, key, value, mask))
        if self.method is None:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            out = attention(query, key, value, self.method, attn_mask=mask)
        return self.output(out.transpose(1, 2).flatten(2))


class Pools(nn.Module):
    """PoNet over equal parts of each sequence, without biases, as attention has none."""

    def __init__(self, width: int, heads: int, segments: int) -> None:
        super().__init__()
        self.segments = segments
        self.pools = PoNet(width, heads, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        tokens = None if mask is None else mask[:, 0, 0]
        return self.pools(x, equal_segments(x, self.segments, tokens), tokens)


class EncoderLayer(nn.Module):
    """What mixes the tokens and a feed-forward part, each normalised before and added after."""

    def __init__(self, config: Config, method: Mixer | None) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        if isinstance(method, Pooling):
            self.attention: nn.Module = Pools(config.width, config.heads, method.segments)
        else:
            self.attention = SelfAttention(config.width, config.heads, method)
        self.feed = nn.Sequential(
            nn.Linear(config.width, config.mlp), nn.GELU(), nn.Dropout(config.dropout),
            nn.Linear(config.mlp, config.width),
        )  # fmt: skip
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x), mask))
        return x + self.dropout(self.feed(self.norm_2(x)))


class Encoder(nn.Module):
    """The classifier.

    Args:
        config: its sizes.
        method: what its attention keeps; None for PyTorch's dense attention. Weights do not depend on it. Or pooling,
            which has other weights and no attention.
    """

    def __init__(self, config: Config, method: Mixer | None) -> None:
        super().__init__()
        self.sizes = config  # not "config": Trainer takes that for a Transformers configuration and writes to it
        with_cls = config.pool == "cls"
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.empty(config.length + with_cls, config.width))
        for table in (self.tokens.weight, self.positions):
            nn.init.normal_(table, std=_TABLE_STD)
        self.cls = nn.Parameter(torch.zeros(config.width)) if with_cls else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(EncoderLayer(config, method) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.classifier = nn.Sequential(
            nn.Linear(config.width, config.mlp), nn.ReLU(), nn.Linear(config.mlp, config.classes)
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Logits, and the mean cross-entropy where labels are given.

        Args:
            input_ids: (batch, length) int64, at most ``config.length`` long.
            attention_mask: (batch, length) bool, True for tokens, False for padding behind them; None where there is
                no padding.
            labels: (batch,) int64 classes.

        Returns:
            ``logits`` (batch, classes), and ``loss``, a scalar, where labels were given.
        """
        x, mask = self.tokens(input_ids), attention_mask
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        x = self.dropout(x + self.positions[: x.shape[1]])
        for block in self.blocks:
            x = block(x, None if mask is None else mask[:, None, None, :])
        logits = self.classifier(self._pool(self.norm(x), mask))
        found = {"logits": logits}
        if labels is not None:
            found["loss"] = F.cross_entropy(logits, labels)
        return found

    def attentions(self) -> list[SelfAttention]:
        """The attention of each block, first block first; none where blocks pool."""
        return [module for module in self.modules() if isinstance(module, SelfAttention)]

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.sizes.pool == "cls":
            return x[:, 0]
        if mask is None:
            return x.mean(1)
        weights = mask.to(x.dtype) / mask.sum(1, keepdim=True)
        return (x * weights.unsqueeze(-1)).sum(1)
