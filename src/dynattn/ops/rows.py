"""``torch.ops.dynattn.row_attention``: top-k, threshold and mass, where each row chooses by its own scores, by the CPU
kernels.

The kernel finds a threshold for each row, and keeps the scores above it. The thresholds are results of the operator.
The gradient makes the same scores to the bit, from the same products in the same order, and chooses by the same
thresholds. :func:`dynattn.attention` has checked the inputs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import RowRule
from dynattn.methods.base import PairMethod
from dynattn.methods.registry import parse
from dynattn.ops import buffers
from dynattn.ops.arguments import expanded, integer, isa_of, row_isa, rows_contiguous
from dynattn.ops.chosen import ByName, gradients
from dynattn.ops.library import CALL, GRADIENTS, INPUTS, RESULTS, complete, define, library

_CHOICE = "Tensor least, Tensor last"

FORWARD = define("row_attention", f"{INPUTS}, {CALL}, bool aux, str backend", f"{RESULTS}, {_CHOICE}")
BACKWARD = define(
    "row_attention_backward",
    f"{GRADIENTS}, Tensor out, Tensor logsumexp, {_CHOICE}, {INPUTS}, {CALL}, str backend",
    "Tensor query, Tensor key, Tensor value",
)


def _thresholds(query: Tensor) -> tuple[Tensor, Tensor]:
    rows = query.shape[:3]
    return query.new_empty(rows, dtype=torch.float32), query.new_empty(rows, dtype=torch.int32)


@lru_cache(maxsize=64)
def _rule(method: str) -> RowRule:
    return cast(PairMethod, parse(method)).row_rule()


def forward_cpu(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    """The operator on a CPU, for a caller who needs no choice. It takes what the operator takes, and returns only the
    results before the choice, and of them only those that were asked for."""
    *arguments, aux, backend = rest
    call = ByName(*arguments)
    alone = not aux and seed is None and not call.pairs.beside_window
    isa = row_isa(backend, query, key, _rule(call.method)) if alone else isa_of(backend)
    return _run(query, key, value, attn_mask, seed, call, aux, isa, None)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *arguments, aux, backend = rest
    thresholds = _thresholds(query)
    outputs = _run(query, key, value, attn_mask, seed, ByName(*arguments), aux, isa_of(backend), thresholds)
    return *buffers.complete(outputs, query), *thresholds


def _run(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, call: ByName, aux: bool,
    isa: str, thresholds: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    outputs = buffers.outputs(query, value, aux)
    out, logsumexp, kept_mass, kept, allowed = outputs if aux else (*outputs, None, None, None)
    cpu.row_forward(
        rows_contiguous(query), rows_contiguous(key), rows_contiguous(value), expanded(attn_mask, query, key), out,
        logsumexp, kept_mass, kept, allowed, thresholds, _rule(call.method), call.pattern, isa, seed=integer(seed),
        positions=call.positions,
    )  # fmt: skip
    return outputs


def _backward(
    grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, least: Tensor, last: Tensor,
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *arguments, backend = rest
    return gradients(
        grad_out, grad_logsumexp, out, logsumexp, query, key, value, attn_mask, seed, ByName(*arguments),
        isa_of(backend), thresholds=(least.contiguous(), last.contiguous()),
    )  # fmt: skip


def _forward_fake(query: Tensor, _key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, aux, _backend = rest
    return *buffers.complete(buffers.outputs(query, value, aux), query), *_thresholds(query)


def _backward_fake(
    _grad_out: Tensor, _grad_logsumexp: Tensor, _out: Tensor, _logsumexp: Tensor, _least: Tensor, _last: Tensor,
    query: Tensor, key: Tensor, value: Tensor, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return buffers.gradients(query, key, value, None, False)[:3]


library.impl("row_attention", _forward, "CPU")
library.impl("row_attention_backward", _backward, "CPU")
complete(FORWARD, BACKWARD, _forward_fake, _backward_fake)

row_attention = FORWARD.operator
