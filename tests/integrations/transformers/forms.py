"""Attention by any name, and what looks like it: modules from (batch, length, 8) to the same shape."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def helped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in a function of another file than the module that calls it."""
    return torch.softmax(q @ k.mT, -1) @ v


class Mixer(nn.Module):
    """A module whose name says nothing of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.drop = nn.Dropout(0.1)

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.q(x) @ self.k(x).mT, self.v(x)


class Fused(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


class Written(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        scores, values = self.scores(x)
        probs = functional.softmax(scores, dim=-1, dtype=torch.float32).to(x.dtype)
        probs = self.drop(probs)
        return torch.matmul(probs, values)


class InOneLine(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1).type_as(x) @ self.v(x)


class ByModule(Mixer):
    def __init__(self) -> None:
        super().__init__()
        self.normalise = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.normalise(torch.bmm(self.q(x), self.k(x).mT))
        return torch.bmm(weights * 1.0, self.v(x)) if x.shape[0] > 99 else torch.bmm(weights, self.v(x))


class Einsum(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        weights = torch.einsum("bid,bjd->bij", self.q(x), self.k(x)).softmax(-1)
        weights = weights * 0.5
        return torch.einsum("bij,bjd->bid", weights, self.v(x))


class Elsewhere(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return helped(self.q(x), self.k(x), self.v(x))


class Exponentials(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        scores, values = self.scores(x)
        powers = torch.exp(scores - scores.amax(-1, keepdim=True))
        return (powers / powers.sum(-1, keepdim=True)) @ values


class Logarithms(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        scores, values = self.scores(x)
        return torch.exp(scores - scores.logsumexp(-1, keepdim=True)) @ values


class DividedLate(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        scores, values = self.scores(x)
        powers = scores.exp()
        return (powers @ values) / powers.sum(-1, keepdim=True)


class Router(Mixer):
    """Experts, chosen by a softmax: no attention."""

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = torch.topk(functional.softmax(self.q(x), dim=-1), 2)
        share = share / share.sum(-1, keepdim=True)
        experts = torch.stack([self.k(x), self.v(x)]) @ torch.eye(8)
        return (experts.movedim(0, -1)[..., :2] * share.unsqueeze(-2)).sum(-1) + chosen.sum()


class Decay(Mixer):
    """A state space: exponentials that reach a product, and are no weights."""

    def forward(self, x: Tensor) -> Tensor:
        decay = torch.exp(-functional.softplus(self.q(x) @ self.k(x).mT)) / math.sqrt(8)
        return decay.tril() @ self.v(x)


class SoftEmbedding(Mixer):
    """Tokens that are only likely, by the rows of a table."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.q(x).softmax(-1), self.k.weight)


class OfLayers(Mixer):
    """Shares that are learned, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.share.softmax(-1)
        return weights @ self.v(x)


class Classifier(Mixer):
    """A softmax at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(self.q(x @ torch.eye(8)), dim=-1)


def _encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


class Twice(nn.Module):
    """Attention of PyTorch's module, with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class WithWeights(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x)[0]


SHOWN: tuple[Callable[[], nn.Module], ...] = (
    Fused, Written, InOneLine, ByModule, Einsum, Elsewhere, Twice, WithWeights, _encoder_layer,
)  # fmt: skip
"""Attention that code shows."""

HIDDEN: tuple[Callable[[], nn.Module], ...] = (Exponentials, Logarithms, DividedLate)
"""Attention that only its operators show."""

OTHER: tuple[Callable[[], nn.Module], ...] = (Router, Decay, Classifier)
"""What is no attention."""

BY_PARAMETERS: tuple[Callable[[], nn.Module], ...] = (SoftEmbedding, OfLayers)
"""What is none either, as the code shows and operators do not."""
