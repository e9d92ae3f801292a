"""``torch.ops.dynattn.window_attention``: windows with sinks in time linear in length, on any device.

The CPU kernels skip by themselves what lies outside of windows and sinks: N:M attention that keeps 0 of 1 key besides
them. Elsewhere the blocks of :mod:`dynattn.maths.bands` are one dense call of ``nm_attention``, on the backend that the
caller names. As an operator, this is one node for the compiler, whatever the length. :func:`dynattn.attention` has
checked the inputs.

A few queries, as in decoding, meet few keys, and copies of these would take longer than attention. So where blocks are
cut, their windows and the sinks are two calls over the keys where they lie, whose outputs are merged by their
logsumexps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.maths.bands import Bands, Spans, joined
from dynattn.maths.positions import distance, near_or_first
from dynattn.ops import buffers
from dynattn.ops.library import GRADIENTS, complete, define, library, no_autocast, recording, unobserved
from dynattn.ops.nm import BACKWARD as NM_BACKWARD
from dynattn.ops.nm import forward_cpu, nm_attention

_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? attn_mask"
_CALL = "int window, int sinks, bool causal, Scalar scale"
_DENSE = (1, 1, 0, 0, 1, False)  # n, m, window, sinks, stride and causal: the mask holds window, sinks and causality
_FEW = 6  # queries whose keys are worth two calls

FORWARD = define(
    "window_attention", f"{_INPUTS}, {_CALL}, bool needs_grad, str backend", "Tensor out, Tensor logsumexp"
)
BACKWARD = define(
    "window_attention_backward",
    f"{GRADIENTS}, Tensor out, Tensor logsumexp, {_INPUTS}, {_CALL}, bool mask_needs_grad, str backend",
    "Tensor query, Tensor key, Tensor value, Tensor attn_mask",
)


def knows_windows(backend: str) -> bool:
    """Whether a backend for dense attention has CPU kernels that know windows by themselves, which tiles do not."""
    name, _, isa = backend.partition("-")
    return name == "cpu" and isa not in cpu.TILE_ENGINES


def kernel_of(backend: str) -> str | None:
    """The name of the CPU kernels that know windows by themselves, where ``backend`` stands for such; else None."""
    if not knows_windows(backend):
        return None
    return f"cpu-{cpu.best_isa()}" if backend == "cpu" else backend


def pattern(window: int, sinks: int, causal: bool, scale: float) -> Pattern:
    """Windows and sinks as those kernels take them."""
    return Pattern(0, 1, window, sinks, 1, causal, scale)


def forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, window: int, sinks: int, causal: bool,
    scale: float, needs_grad: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator on any device: it takes what the operator takes, and returns output and logsumexp."""
    kernel = kernel_of(backend)
    if kernel is not None:
        run = forward_cpu if unobserved(query, key, value, attn_mask) else nm_attention
        options = (*pattern(window, sinks, causal, scale), False, needs_grad, kernel)
        out, logsumexp, *_ = run(query, key, value, attn_mask, None, *options)
        return out, logsumexp
    with no_autocast(query.device):
        if 0 < query.shape[2] <= min(_FEW, key.shape[2]):
            return _few(query, key, value, attn_mask, window, sinks, causal, scale, needs_grad, backend)
        bands = Bands.of(window, sinks, query.shape[2], key.shape[2], causal)
        out, logsumexp, *_ = nm_attention(
            *_pieces(bands, query, key, value, attn_mask), None, *_DENSE, scale, 0.0, False, needs_grad, backend
        )
        return bands.joined(out), bands.joined(logsumexp)


def _few(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, window: int, sinks: int, causal: bool,
    scale: float, needs_grad: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q_len, kv_len = query.shape[2], key.shape[2]
    spans = Spans.of(window, sinks, q_len, kv_len)
    mask = None if attn_mask is None else attn_mask.expand(*(attn_mask.shape[:-1] or (1,)), kv_len)

    def part(keys: slice, near: Tensor | None) -> tuple[Tensor, Tensor]:
        allowed = None if mask is None else mask[..., keys]
        if near is not None:
            allowed = near if allowed is None else joined(near, allowed)
        tensors = (query, key[:, :, keys], value[:, :, keys], allowed, None)
        out, logsumexp, *_ = nm_attention(*tensors, *_DENSE, scale, 0.0, False, needs_grad, backend)
        return out, logsumexp

    # one query keeps all keys of both runs, and every query all sinks that lie apart
    near = None if q_len == 1 else _near(query, kv_len, spans.near.start, window, sinks, causal)
    out, logsumexp = part(spans.near, near)
    if spans.sinks is not None:
        out, logsumexp = _merged(out, logsumexp, *part(spans.sinks, None))
    return out.contiguous(), logsumexp


def _near(query: Tensor, kv_len: int, first: int, window: int, sinks: int, causal: bool) -> Tensor:
    """What window, sinks and causality allow of the keys from the first one on: (q_len, keys)."""
    pairs = query.new_empty(query.shape[2], kv_len - first)
    offset = pairs.shape[1] - pairs.shape[0]
    kept = near_or_first(pairs, offset, window, sinks - first)
    return kept & (distance(pairs, offset) >= 0) if causal else kept


def _merged(out: Tensor, logsumexp: Tensor, other: Tensor, of_other: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the keys of two calls, from what each gave. Where neither allows a key, both outputs are 0."""
    share = (of_other - logsumexp).sigmoid().nan_to_num(0.0).unsqueeze(-1)  # of the weights, the other's
    merged = out * (1 - share) + other * share
    return merged.to(out.dtype), torch.logaddexp(logsumexp, of_other)


def _pieces(
    bands: Bands, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask = bands.mask(query.shape[0], attn_mask, query.device)
    return bands.queries(query), bands.keys(key), bands.keys(value), mask


def _backward(
    grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None, window: int, sinks: int, causal: bool, scale: float, mask_needs_grad: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients by kernels that know windows. Where there are none, or where a mask asks for its gradient, those of
    the blocks by ``nm_attention_backward``, which autograd of the cutting turns into the inputs'."""
    kernel = kernel_of(backend)
    if kernel is not None and not mask_needs_grad:
        tensors = (grad_out, grad_logsumexp, out, logsumexp, query, key, value, attn_mask, None)
        return NM_BACKWARD.operator(*tensors, *pattern(window, sinks, causal, scale), False, kernel)
    bands = Bands.of(window, sinks, query.shape[2], key.shape[2], causal)
    inputs = [query, key, value, *([attn_mask] if mask_needs_grad and attn_mask is not None else [])]
    with recording(query.device):
        leaves = [x.detach().requires_grad_() for x in inputs]
        mask = leaves[3] if len(leaves) == 4 else attn_mask
        pieces = _pieces(bands, leaves[0], leaves[1], leaves[2], mask)
    d_pieces = NM_BACKWARD.operator(
        bands.queries(grad_out), bands.queries(grad_logsumexp), bands.queries(out),
        bands.queries(logsumexp, fill=-torch.inf), *(x.detach() for x in pieces), None, *_DENSE, scale, 0.0,
        len(leaves) == 4, backend,
    )  # fmt: skip
    found = torch.autograd.grad(pieces[: len(leaves)], leaves, d_pieces[: len(leaves)])
    gradients = buffers.gradients(query, key, value, attn_mask, mask_needs_grad)
    for gradient, one in zip(gradients, found, strict=False):
        gradient.copy_(one)
    return gradients


def _forward_fake(query: Tensor, _key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return buffers.outputs(query, value, False) if knows_windows(rest[-1]) else buffers.packed(query, value)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    call = BACKWARD.Arguments(*arguments)
    return buffers.gradients(call.query, call.key, call.value, call.attn_mask, call.mask_needs_grad)


library.impl("window_attention", forward, "CompositeExplicitAutograd")
library.impl("window_attention_backward", _backward, "CompositeExplicitAutograd")
complete(FORWARD, BACKWARD, _forward_fake, _backward_fake)

window_attention = FORWARD.operator
