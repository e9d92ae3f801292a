"""Linear attention in the log domain: a kernel of positive features, summed without overflow or underflow.

    sums_i = Σ_j Σ_f exp(a_if + b_jf) v_j,        j over all keys, or over those up to the query's place

Time and memory are linear in length: ``Σ_j exp(b_jf) v_j`` is a matrix of (features, value_dim), whatever the length.
Every sum is taken relative to its largest term, so that features may be any finite logarithms.

Source: the order of the products is that of arXiv:1812.01243 and arXiv:2006.16236; the logarithms are this library's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 16  # queries of a causal step; its (chunk, chunk, features) terms are formed one by one


def key_bias(method: str, attn_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask that says the same to every query, as a logarithm of each key's weight.

    Args:
        method: its name, for the error.
        attn_mask: broadcasts to (batch, heads, 1, kv_len): bool (True: allowed) or float (added), or None.
        dtype: the dtype of the result.

    Returns:
        (batch or 1, heads or 1, kv_len or 1, 1), -inf where the key is forbidden; None without a mask.

    Raises:
        ValueError: the mask tells queries apart. Such a mask has no place in a sum that all queries share.
    """
    if attn_mask is None:
        return None
    mask = attn_mask.reshape((1,) * (4 - attn_mask.dim()) + tuple(attn_mask.shape))
    if mask.shape[2] != 1:
        raise ValueError(
            f"{method}: attn_mask must be the same for every query, of shape (batch, 1, 1, kv_len): got "
            f"{tuple(attn_mask.shape)}; for a causal mask pass causal=True, else use a method that keeps pairs"
        )
    if mask.dtype == torch.bool:
        return torch.zeros(mask.mT.shape, dtype=dtype, device=mask.device).masked_fill(~mask.mT, -math.inf)
    return mask.mT.to(dtype)


def forbid(log_key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Add the bias of :func:`key_bias` to the logarithms, and set the values of forbidden keys to 0, whatever they
    hold."""
    if bias is None:
        return log_key, value
    forbidden = bias == -math.inf
    return (log_key + bias).masked_fill(forbidden, -math.inf), value.masked_fill(forbidden, 0.0)


def mix(log_query: Tensor, log_key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The sums above, as ``exp(scale_i) · sums_i``.

    Args:
        log_query: (batch, heads, q_len, features), finite.
        log_key: (batch, heads, kv_len, features), -inf where the key is forbidden.
        value: (batch, heads, kv_len, value_dim), finite where the key is forbidden.
        causal: sum over keys ``j <= i + kv_len - q_len``, else over all.

    Returns:
        sums (batch, heads, q_len, value_dim) and scale (batch, heads, q_len, 1). The scale is a constant to autograd.
        A row that sees no key has sums 0 and scale 0.
    """
    if causal and log_query.shape[2] and log_key.shape[2]:  # of none, all keys are those that are seen
        return _mix_causal(log_query, log_key, value)
    largest = _largest(log_key, dim=-2)
    scale = _finite(_largest(log_query + largest, dim=-1))
    state = (log_key - _finite(largest)).exp().mT @ value  # [batch, heads, features, value_dim]
    return (log_query + largest - scale).exp() @ state, scale


def _mix_causal(log_query: Tensor, log_key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Chunks of queries in turn. Keys before a chunk enter by the sums so far, the chunk's own keys term by term.

    Within a chunk the feature of a later key may be so large that the terms of an earlier query vanish beside it. So
    the exponents are added there before ``exp`` is taken, and no product of two ``exp`` is formed.
    """
    q_len, kv_len = log_query.shape[2], log_key.shape[2]
    before = kv_len - q_len  # so many keys are seen by every query; where negative, so many queries see no key
    unseeing = log_query[:, :, : max(0, -before)]
    sums = [value.new_zeros(*unseeing.shape[:3], value.shape[-1])]
    scales = [value.new_zeros(*unseeing.shape[:3], 1)]
    log_query = log_query[:, :, unseeing.shape[2] :]
    prefix = log_key[:, :, : max(0, before)]
    largest = _largest(prefix, dim=-2)
    state = (prefix - _finite(largest)).exp().mT @ value[:, :, : prefix.shape[2]]
    for start in range(0, log_query.shape[2], _CHUNK):
        a = log_query[:, :, start : start + _CHUNK]
        own = slice(prefix.shape[2] + start, prefix.shape[2] + start + a.shape[2])
        b, v = log_key[:, :, own], value[:, :, own]
        running = torch.maximum(b.detach().cummax(-2).values, largest)  # [batch, heads, chunk, features]
        scale = _finite(_largest(a + running, dim=-1))
        terms = a.unsqueeze(3) + b.unsqueeze(2) - scale.unsqueeze(3)  # [batch, heads, chunk, chunk, features]
        later = torch.ones(a.shape[2], a.shape[2], dtype=torch.bool, device=a.device).triu(1)
        weights = terms.masked_fill(later.unsqueeze(-1), -math.inf).exp().sum(-1)
        sums.append(weights @ v + (a + largest - scale).exp() @ state)
        scales.append(scale)
        after = running[:, :, -1:]
        state = (largest - _finite(after)).exp().mT * state + (b - _finite(after)).exp().mT @ v
        largest = after
    return torch.cat(sums, dim=2), torch.cat(scales, dim=2)


def _largest(x: Tensor, dim: int) -> Tensor:
    """The largest along a dimension, which stays with size 1; -inf where it is empty. It carries no gradient."""
    if x.shape[dim] == 0:
        shape = list(x.shape)
        shape[dim] = 1
        return x.new_full(shape, -math.inf)
    return x.detach().amax(dim, keepdim=True)


def _finite(x: Tensor) -> Tensor:
    """0 in place of -inf, where there is nothing to be relative to."""
    return x.masked_fill(x == -math.inf, 0.0)
