"""Efficient attention: linear time and memory, by two softmaxes in place of one.

    out = softmax(Q over head_dim) · (softmax(K over positions)ᵀ V)

Source: "Efficient Attention: Attention with Linear Complexities", arXiv:1812.01243.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.maths.linear import forbid, key_bias, mix
from dynattn.maths.scores import arithmetic_dtype, per_head
from dynattn.methods.base import MixingMethod
from dynattn.methods.registry import register


@final
@register
@dataclass(frozen=True)
class EfficientAttention(MixingMethod):
    """Every dimension of the keys is a map over positions; a query mixes the values that these maps gather.

        p_if = softmax over f of (scale · √head_dim · q_if)
        w_jf = exp(k_jf + bias_j) / Σ_l exp(k_lf + bias_l)
        out_i = Σ_f p_if Σ_j w_jf v_j

    No pair of a query and a key is ever compared. The rows of ``p wᵀ`` are positive and sum to 1, as those of a softmax
    do, but they do not approximate it: a model has to be trained with this method.

    The published method has no scale: the default ``scale = head_dim ** -0.5`` gives it, any other multiplies the
    queries accordingly. A bias, or a mask, has one value for each key; a forbidden key has weight 0. Where ``causal``,
    the sums over j and l run over the keys up to the query's place, bottom-right, so that a query's result does not
    depend on what follows; the published method is bidirectional.

    Source: arXiv:1812.01243; the bias and the causal form are this library's.
    """

    @property
    def name(self) -> str:
        """``efficient``."""
        return "efficient"

    @classmethod
    def from_name(cls, name: str) -> EfficientAttention | None:
        """The method where ``name`` is ``efficient``, else None."""
        return cls() if name == "efficient" else None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        """Mix the values; time and memory linear in length.

        Args:
            query: (batch, heads, q_len, head_dim).
            key: (batch, kv_heads, kv_len, head_dim).
            value: (batch, kv_heads, kv_len, value_dim).
            attn_mask: broadcasts to (batch, heads, 1, kv_len): bool (True: allowed) or float (added).
            causal: forbid keys after the query.
            scale: ``head_dim ** -0.5`` for the published method.

        Returns:
            (batch, heads, q_len, value_dim) in the dtype of ``query``; 0 in rows with nothing allowed.

        Raises:
            ValueError: the mask differs from query to query.
        """
        dtype, heads = arithmetic_dtype(query.dtype), query.shape[1]
        factor = scale * math.sqrt(query.shape[-1])
        log_query = (factor * query.to(dtype)).log_softmax(-1)
        key, value = per_head(key.to(dtype), heads), per_head(value.to(dtype), heads)
        key, value = forbid(key, value, key_bias("efficient", attn_mask, dtype))
        if not causal:
            weights = (key - _finite(key.logsumexp(-2, keepdim=True))).exp()
            return (log_query.exp() @ (weights.mT @ value)).to(query.dtype)
        seen = _seen(key, query.shape[2])
        sums, log_scale = mix(log_query - _finite(seen), key, value, causal=True)
        return (log_scale.exp() * sums).to(query.dtype)


def _seen(key: Tensor, q_len: int) -> Tensor:
    """``log Σ_l exp(k_lf)`` over the keys that each query sees: (batch, heads, q_len, head_dim)."""
    totals = torch.nn.functional.pad(key.logcumsumexp(-2), (0, 0, 1, 0), value=-math.inf)  # the first: no key
    count = torch.arange(1, q_len + 1, device=key.device) + key.shape[2] - q_len
    return totals[:, :, count.clamp(min=0)]


def _finite(total: Tensor) -> Tensor:
    """0 in place of the -inf of a query to which no key is allowed. Its weights are 0, whatever they are divided by."""
    return total.masked_fill(total == -math.inf, 0.0)
