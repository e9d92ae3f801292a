"""PoNet: three poolings in the place of attention, in time and memory linear in length.

    GA    = Σ_j softmax_j(ḡ · K_j / √head_dim) K_j           of each head, ḡ the mean of Q over the tokens
    SMP_i = max of S_j over the tokens j of the segment of i            number by number
    LMP_i = max of L_j over the tokens j = i-1, i, i+1                  number by number
    out_i = W ((GA + SMP_i) ∘ O_i + LMP_i)

Q, K, O, S and L are linear maps of the input. It looks ahead, and is not an approximation of attention: a model is
trained with it.

Source: arXiv:2110.02442 and its published code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynattn.maths.scores import arithmetic_dtype


class PoNet(nn.Module):
    """Mixes the tokens of a sequence by a global, a segment and a local pooling, with its six projections.

    Args:
        embed_dim: width of the input and of the output.
        heads: heads of the global aggregation, a divisor of ``embed_dim``. The other poolings take every number by
            itself.
        bias: whether the projections have biases.
        device: the device of the weights.
        dtype: the dtype of the weights.

    Raises:
        ValueError: ``heads`` does not divide ``embed_dim``.

    Source: arXiv:2110.02442.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or heads < 1 or embed_dim % heads:
            raise ValueError(
                f"PoNet: embed_dim must be a multiple of heads: got {embed_dim}, {heads}; change one of them"
            )
        self.heads = heads
        self.q_proj, self.k_proj, self.fusion_proj, self.segment_proj, self.local_proj, self.out_proj = (
            nn.Linear(embed_dim, embed_dim, bias, device, dtype) for _ in range(6)
        )

    def forward(self, x: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens.

        Args:
            x: (batch, length, embed_dim).
            segments: (batch, length) int64 from 0 to ``length - 1``: tokens of a sample that have the same number are a
                segment, wherever they stand. None for one segment. :func:`equal_segments` cuts samples in equal parts.
            mask: (batch, length) bool, False at padding, which changes nothing for the tokens; None for no padding.

        Returns:
            (batch, length, embed_dim); what the output projection makes of 0 at padding.

        Raises:
            TypeError: ``segments`` is not int64, or ``mask`` not bool.
            ValueError: shapes do not fit, or a segment's number is out of its range.
        """
        _check(x, segments, mask)
        query, key, fusion, segment, local = (
            projection(x)
            for projection in (self.q_proj, self.k_proj, self.fusion_proj, self.segment_proj, self.local_proj)
        )
        everywhere = _aggregated(query, key, self.heads, mask)
        mixed = (everywhere + _segment_maximum(segment, segments, mask)) * fusion + _local_maximum(local, mask)
        return self.out_proj(_filled(mixed, mask, 0.0))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def equal_segments(x: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """Cut samples into equal parts: token i of n is of segment ``i // (n // count + 1)``.

    A sample without padding and the same sample with padding have the same segments.

    Args:
        x: (batch, length, …), whose numbers are not read.
        count: into how many parts at most; the last ones may be shorter, or missing.
        mask: (batch, length) bool, False at padding; None for no padding.

    Returns:
        (batch or 1, length) int64. Padding has the segment of the token before it, or 0.

    Raises:
        ValueError: ``count`` is below 1.

    Source: the code of arXiv:2110.02442, which counts padding among the n tokens.
    """
    if count < 1:
        raise ValueError(f"equal_segments: count must be at least 1: got {count}; 1 makes the sequence one segment")
    if mask is None:
        length = x.shape[1]
        return (torch.arange(length, device=x.device) // (length // count + 1)).unsqueeze(0)
    place = (mask.cumsum(1) - 1).clamp(min=0)  # [batch, length], that of each token among the tokens
    return place // (mask.sum(1, keepdim=True) // count + 1)


def _aggregated(query: Tensor, key: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """GA: one vector for each sample, (batch, 1, embed_dim)."""
    wide = arithmetic_dtype(query.dtype)
    q = _filled(query, mask, 0.0).to(wide).unflatten(-1, (heads, -1))  # [batch, length, heads, head_dim]
    k = _filled(key, mask, 0.0).to(wide).unflatten(-1, (heads, -1))
    tokens = q.new_full((1, 1), q.shape[1]) if mask is None else mask.sum(1, keepdim=True)
    mean = q.sum(1) / tokens.clamp(min=1).unsqueeze(-1)  # [batch, heads, head_dim]
    scores = (k * mean.unsqueeze(1)).sum(-1) * q.shape[-1] ** -0.5  # [batch, length, heads]
    # The lowest number in place of -inf, with which the softmax of a sample that is all padding would be NaN.
    weights = _filled(scores, mask, torch.finfo(wide).min).softmax(1)
    return (weights.unsqueeze(-1) * k).sum(1).flatten(1).unsqueeze(1).to(query.dtype)


def _segment_maximum(x: Tensor, segments: Tensor | None, mask: Tensor | None) -> Tensor:
    """SMP, (batch, length, embed_dim); 0 at padding."""
    x = _filled(x, mask, -torch.inf)
    if segments is None:
        return _filled(x.amax(1, keepdim=True).expand_as(x), mask, 0.0) if x.shape[1] else x
    index = segments.unsqueeze(-1).expand(x.shape)
    largest = torch.full_like(x, -torch.inf).scatter_reduce(1, index, x, "amax")
    return _filled(largest.gather(1, index), mask, 0.0)


def _local_maximum(x: Tensor, mask: Tensor | None) -> Tensor:
    """LMP, (batch, length, embed_dim); 0 at padding."""
    beside = F.pad(_filled(x, mask, -torch.inf), (0, 0, 1, 1), value=-torch.inf)
    before, here, after = beside[:, :-2], beside[:, 1:-1], beside[:, 2:]
    return _filled(torch.maximum(torch.maximum(before, here), after), mask, 0.0)


def _filled(x: Tensor, mask: Tensor | None, value: float) -> Tensor:
    """Another value at padding, before anything infinite is multiplied, whose gradient would be NaN."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), value)


def _check(x: Tensor, segments: Tensor | None, mask: Tensor | None) -> None:
    for name, given, dtype in (("segments", segments, torch.int64), ("mask", mask, torch.bool)):
        if given is not None and given.dtype != dtype:
            raise TypeError(f"PoNet: {name} must be {dtype}: got {given.dtype}; convert it")
        if given is not None and given.shape != x.shape[:2] and given.shape != (1, x.shape[1]):
            raise ValueError(
                f"PoNet: {name} must have shape {tuple(x.shape[:2])}: got {tuple(given.shape)}; an entry for each token"
            )
    if segments is None or torch.compiler.is_compiling() or segments.numel() == 0:
        return
    least, most = (int(end) for end in torch.aminmax(segments))
    if least < 0 or most >= x.shape[1]:
        raise ValueError(
            f"PoNet: segments must be between 0 and {x.shape[1] - 1}, the length less 1: got {least} to {most}; number "
            "them from 0"
        )
