"""Exported programs without operators of dynattn: for ONNX, and for any runtime that knows PyTorch's own alone.

    program = torch.export.export(model, inputs, dynamic_shapes=shapes)
    torch.onnx.export(decompose(program), f="model.onnx")

Dense and N:M attention become their definition, in operators that every exporter translates. Nothing is sorted:

    kept(i, j) ⇔ fewer than N keys of j's group have a larger score for i, or the same one and stand before j
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dynattn.kernels.pattern import Pattern
from dynattn.maths.positions import near_or_first
from dynattn.maths.scores import per_head, scores
from dynattn.methods.nm import NM
from dynattn.ops import buffers, nm


def decompose(program: ExportedProgram) -> ExportedProgram:
    """The same program with the definition in the place of dense and N:M attention.

    It holds all scores at once, computes and masks them all, and is not faster than dense attention. Sizes that the
    program leaves open stay open.

    Args:
        program: what ``torch.export.export`` gives for a model whose attention is dynattn's.

    Returns:
        A program of the same inputs and outputs, without operators of dynattn.

    Raises:
        TypeError: ``program`` is no exported program.
        ValueError: it holds another operator of dynattn, or drops weights.

    Source: arXiv:2203.00091; ties as :class:`dynattn.NM` has them.
    """
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"decompose: program must be an exported program: got {type(program).__name__}; pass "
            "torch.export.export(model, inputs)"
        )
    operator = nm.FORWARD.operator
    for node in _ours(program):
        if node.target is not operator:
            raise ValueError(
                f"decompose: dynattn's attention in the program must be dense or N:M: got {node.target}"
                f"{_told(node)}; export the model with NM(n, m)"
            )
        if nm.FORWARD.Arguments(*node.args).seed is not None:
            raise ValueError(
                "decompose: the program must not drop weights: its attention has a dropout_p; call model.eval() "
                "before torch.export.export"
            )
    return program.run_decompositions({operator: _attention})


def _ours(program: ExportedProgram) -> Iterator[Any]:
    """The nodes of the program, and of the graphs in it, that call an operator of dynattn."""
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            if node.op == "call_function" and getattr(node.target, "namespace", None) == "dynattn":
                yield node


def _told(node: Any) -> str:
    """The method that a node's operator takes by its name, in brackets."""
    names = [argument.name for argument in node.target._schema.arguments]
    return f" ({node.args[names.index('method')]})" if "method" in names else ""


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, _seed: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    """``torch.ops.dynattn.nm_attention`` in plain PyTorch, for sizes that are symbols."""
    *pattern, aux, _needs_grad, _backend = rest
    call = Pattern(*pattern)
    offset = key.shape[2] - query.shape[2]
    s = scores(query, key, attn_mask, call.causal, call.scale, offset)
    allowed = s != -math.inf
    kept = allowed & _choice(s, call.method, offset)
    chosen = s.masked_fill(~kept, -math.inf)
    out = (_softmax(chosen, kept) @ per_head(value, query.shape[1]).to(s.dtype)).to(query.dtype)
    if query.stride(1) < query.stride(2):  # as the operator's output lies in memory
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
    if not aux:
        return buffers.complete((out, chosen.logsumexp(-1)), query)
    kept_mass = (_softmax(s, allowed) * kept).sum(-1).where(allowed.any(-1), 1.0)
    counts = (pairs.sum(-1, dtype=torch.int32) for pairs in (kept, allowed))
    return out, chosen.logsumexp(-1), kept_mass, *counts


def _choice(s: Tensor, method: NM, offset: int) -> Tensor:
    """What :func:`dynattn.methods.nm.choose` keeps, whether it is allowed or not.

    NaN counts as infinity. Where it takes another's place, that is infinite, and the row is NaN either way.
    """
    if method.keeps_everything:
        return torch.ones_like(s, dtype=torch.bool)
    ranked = s.masked_fill(s.isnan(), math.inf)
    keys = torch.arange(s.shape[-1], device=s.device)
    block = method.m * method.stride
    first = keys // block * block + keys % method.stride  # the first key of each key's group
    place = keys % block // method.stride  # each key's place in its group
    before = torch.zeros_like(s, dtype=torch.int32)  # how many keys of its group go before a key
    for other in range(method.m):
        at = first + other * method.stride
        rival = ranked.index_select(-1, torch.where(at < s.shape[-1], at, keys))  # the last group may be short
        before = before + ((rival > ranked) | ((rival == ranked) & (other < place))).to(torch.int32)
    kept = before < method.n
    return kept | near_or_first(s, offset, method.window, method.sinks) if method.window or method.sinks else kept


def _softmax(s: Tensor, kept: Tensor) -> Tensor:
    """Softmax over the kept scores; a row that keeps nothing gets zeros, not NaN."""
    return s.softmax(-1).where(kept, 0.0)
