"""``torch.ops.dynattn.varlen_attention``: packed texts as one operator, for graphs that do not know the lengths.

``torch.compile`` and ``torch.export`` cannot read lengths while they trace. The operator reads them when it runs. Its
backward computes the forward again, text by text, and takes its gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynattn.checks import check
from dynattn.functional import Aux, autocast
from dynattn.maths.scores import arithmetic_dtype
from dynattn.methods.registry import parse
from dynattn.ops.library import recording, refuse_second_derivatives
from dynattn.varlen import run
from dynattn.varlen.texts import check_layout

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? cu_seq_q, Tensor? cu_seq_k, SymInt? max_q, SymInt? max_k, "
    "Tensor? seqused_k, Tensor? block_table, str method, bool causal, Scalar? scale, SymInt left, SymInt right, "
    "Scalar dropout_p, Tensor? seed, str backend, bool needs_grad, bool aux"
)


def attend(
    query: Tensor, key: Tensor, value: Tensor, places: run.Places, options: run.Options
) -> tuple[Tensor, Aux | None]:
    """What :func:`dynattn.varlen.run.attend` gives, as one operator.

    Args:
        query, key, value, places, options: likewise.

    Raises:
        TypeError, ValueError: as :func:`dynattn.varlen_attention`; for lengths and pages when the operator runs.
    """
    query, key, value = autocast(query, key, value)
    paged = places.block_table is not None
    check_layout(query, key, value, paged=paged)
    if not paged:  # a pool has any number of pages, and is checked when the operator runs
        query_of_one, key_of_one, value_of_one = (x.transpose(0, 1)[None] for x in (query, key, value))
        check(
            query_of_one, key_of_one, value_of_one, options.method, None, options.causal, options.scale,
            options.dropout_p, options.seed, options.return_aux,
        )  # fmt: skip
    left, right = options.window
    seed = options.seed
    if seed is not None and not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=query.device)
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    operator: Any = torch.ops.dynattn.varlen_attention.default
    out, logsumexp, kept_mass, density = operator(
        query, key, value, *places, options.method.known_as, options.causal, options.scale, left, right,
        options.dropout_p, seed, options.backend, needs_grad, options.return_aux,
    )  # fmt: skip
    return out, Aux(logsumexp, kept_mass, density) if options.return_aux else None


def _run(query: Tensor, key: Tensor, value: Tensor, rest: tuple[Any, ...]) -> tuple[Tensor, Aux | None]:
    method, causal, scale, left, right, dropout_p, seed, backend, _, aux = rest[6:]
    options = run.Options(parse(method), causal, scale, (left, right), dropout_p, seed, backend, aux)
    with torch.autocast(query.device.type, enabled=False):  # it was heeded before
        return run.attend(query, key, value, run.Places(*rest[:6]), options)


def _recorded(
    query: Tensor, key: Tensor, value: Tensor, rest: tuple[Any, ...]
) -> tuple[list[Tensor], Tensor, Aux | None]:
    """The same of leaves of a graph of its own, which come first."""
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    return leaves, *_run(leaves[0], leaves[1], leaves[2], rest)


@torch.library.custom_op(
    "dynattn::varlen_attention", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    needs_grad = rest[-2]
    if needs_grad:  # as the backward computes it: a call without gradients may round otherwise, and choose otherwise
        with recording(query.device):
            _, out, aux = _recorded(query, key, value, rest)
        out, aux = out.detach(), None if aux is None else Aux(*(x.detach() for x in aux))
    else:
        out, aux = _run(query, key, value, rest)
    out = out.contiguous()  # as the fake is
    nothing = [query.new_empty(0, dtype=arithmetic_dtype(query.dtype)) for _ in range(3)]
    return (out, *(nothing if aux is None else aux))  # type: ignore[return-value]


@torch.library.custom_op(
    "dynattn::varlen_attention_backward", mutates_args=(),
    schema=f"(Tensor grad_out, Tensor? grad_logsumexp, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
)  # fmt: skip
def _backward(
    grad_out: Tensor, grad_logsumexp: Tensor | None, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    with recording(query.device):
        leaves, out, aux = _recorded(query, key, value, rest)
        results, given = [out], [grad_out]
        if aux is not None and grad_logsumexp is not None:
            results.append(aux.logsumexp)
            given.append(grad_logsumexp)
        if not out.requires_grad:  # there are no texts
            return tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in leaves)  # type: ignore[return-value]
        found = torch.autograd.grad(results, leaves, given, materialize_grads=True)
    return tuple(x.contiguous() for x in found)  # type: ignore[return-value]


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    tokens, heads, _ = query.shape
    out = query.new_empty(tokens, heads, value.shape[-1])
    dtype = arithmetic_dtype(query.dtype)
    if not rest[-1]:
        return (out, *(query.new_empty(0, dtype=dtype) for _ in range(3)))
    rows = [query.new_empty(tokens, heads, dtype=dtype) for _ in range(2)]
    texts = 0 if cu_seq_q is None else cu_seq_q.shape[0] - 1  # None is refused when it runs
    return (out, *rows, query.new_empty(texts, heads, dtype=dtype))


@_backward.register_fake
def _(
    _grad_out: Tensor, _grad_logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.tensors = [isinstance(x, Tensor) for x in inputs]
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.others = [x for x in inputs if not isinstance(x, Tensor)]
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_logsumexp: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    saved, others = iter(ctx.saved_tensors), iter(ctx.others)
    inputs = [next(saved) if is_tensor else next(others) for is_tensor in ctx.tensors]
    if grad_out is None:
        query, value = inputs[0], inputs[2]
        grad_out = query.new_zeros(*query.shape[:2], value.shape[-1])
    operator: Any = torch.ops.dynattn.varlen_attention_backward.default
    found = operator(grad_out, grad_logsumexp, *inputs)
    return (*found, *(None for _ in inputs[3:]))


_forward.register_autograd(_gradients, setup_context=_remember)
_backward.register_autograd(refuse_second_derivatives)
