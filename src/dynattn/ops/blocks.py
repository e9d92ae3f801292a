"""``torch.ops.dynattn.block_attention``: whole blocks of pairs, or N:M beside a window, by the CPU kernels.

The method gives its choice as blocks (:meth:`dynattn.methods.PairMethod.choose_blocks`), and dense or N:M attention
skips what they drop. Beside a window N:M may choose among all pairs: there are then no blocks. The blocks of
:class:`dynattn.BlockSkip` are found by the kernel on its way, among all or among those of another method. The blocks
are a result of the operator, so that the gradient gets them back and does not choose again. :func:`dynattn.attention`
has checked the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynattn.kernels import cpu
from dynattn.methods import block_skip
from dynattn.methods.base import Choice, PairMethod
from dynattn.methods.registry import parse
from dynattn.ops import buffers
from dynattn.ops.arguments import expanded, integer, nm_isa, rows_contiguous
from dynattn.ops.chosen import ByName, gradients
from dynattn.ops.library import CALL, GRADIENTS, INPUTS, RESULTS, complete, define, library
from dynattn.reference import in_blocks

_FINE_LOGSUMEXP = 1024.0  # rounded by 6e-5, and e to the power of a difference by as much
_CHOICE = "Tensor blocks"

FORWARD = define(
    "block_attention", f"{INPUTS}, {CALL}, bool aux, bool needs_grad, str backend", f"{RESULTS}, {_CHOICE}"
)
BACKWARD = define(
    "block_attention_backward",
    f"{GRADIENTS}, Tensor out, Tensor logsumexp, {_CHOICE}, {INPUTS}, {CALL}, str backend",
    "Tensor query, Tensor key, Tensor value",
)


def forward_cpu(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *arguments, aux, needs_grad, backend = rest
    call = ByName(*arguments)
    method, skips = call.pairs, call.pairs.choice is Choice.SKIPS
    tensors = (rows_contiguous(query), rows_contiguous(key), rows_contiguous(value), expanded(attn_mask, query, key))
    outputs = buffers.outputs(query, value, aux)
    isa = nm_isa(backend, query)
    if skips:
        among = cast("PairMethod | None", method.scored)
        seen = None if among is None else _chosen(among, query, key, attn_mask, call, isa)
        blocks = _skipped(tensors, outputs, call, isa, integer(seed), seen, needs_grad or aux)
    else:
        blocks = _chosen(method, query, key, attn_mask, call, isa) if method.whole_blocks else None
    run = partial(_run, *tensors, isa=isa, seed=integer(seed), needs_grad=needs_grad)
    sizes = _sizes(method)
    if aux or not skips:
        choice = {"blocks": blocks, "block_queries": sizes[0], "block_size": sizes[1], "positions": call.positions}
        run(outputs, aux, pattern=call.pattern, **choice)
    if aux:
        dense = buffers.outputs(query, value, aux)
        run(dense, aux, pattern=call.dense)
        _certify(outputs, dense, partial(_mass_by_definition, query, key, value, attn_mask, call))
    return *buffers.complete(outputs, query), _roomy(blocks, query, key, sizes)


def _chosen(
    method: PairMethod, query: Tensor, key: Tensor, attn_mask: Tensor | None, call: ByName, isa: str
) -> Tensor:  # fmt: skip
    """The blocks that a method of whole blocks keeps."""
    rule = method.block_rule()
    if rule is not None:
        rows, columns = (-(-x.shape[2] // rule.block) for x in (query, key))
        chosen = query.new_empty((*query.shape[:2], rows, columns), dtype=torch.bool)
        mask = expanded(attn_mask, query, key)
        cpu.choose_blocks(
            rows_contiguous(query), rows_contiguous(key), mask, chosen, rule, call.causal, call.scale, isa
        )  # fmt: skip
        return chosen
    # float32 means float32; and many small operators each find out more quickly that nothing is recorded
    with torch.autocast(query.device.type, enabled=False), torch._C._AutoDispatchBelowAutograd():
        return method.choose_blocks(query, key, attn_mask, call.causal, call.scale)


def _sizes(method: PairMethod) -> tuple[int, int]:
    """Queries and keys of a block; 0 where there are none."""
    if method.choice is Choice.SKIPS:
        return block_skip.QUERIES, block_skip.KEYS
    return int(method.whole_blocks), int(method.whole_blocks)


def _skipped(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None], outputs: tuple[Tensor, ...], call: ByName, isa: str,
    seed: int, seen: Tensor | None, exact: bool,
) -> Tensor:  # fmt: skip
    """Fill in the output and the logsumexp, and find the blocks on the way; ``seen`` are those of another method."""
    query, key, value, mask = tensors
    out, logsumexp, *_ = outputs
    rows, columns = -(-query.shape[2] // block_skip.QUERIES), -(-key.shape[2] // block_skip.KEYS)
    kept = query.new_zeros((*query.shape[:2], rows, columns), dtype=torch.bool)
    method = cast(block_skip.BlockSkip, call.pairs)
    size = 0 if method.among is None else int(method.among.whole_blocks)
    cpu.skip_forward(
        query, key, value, mask, out, logsumexp, kept, method.margin, call.pattern, isa, seed=seed, needs_grad=exact,
        blocks=seen, block_size=size,
    )  # fmt: skip
    return kept


def _room(query: Tensor, key: Tensor, sizes: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns of blocks the operator returns: always more than one, whatever the lengths are, or none
    where there are no blocks.

    Compilers and ``torch.export`` treat a size of 1 as a case of its own. If the size could be 1, they would compile
    for the lengths at hand alone.
    """
    if sizes == (0, 0):
        return 0, 0
    return query.shape[2] // sizes[0] + 2, key.shape[2] // sizes[1] + 2


def _roomy(blocks: Tensor | None, query: Tensor, key: Tensor, sizes: tuple[int, int]) -> Tensor:
    rows, columns = _room(query, key, sizes)
    if blocks is None:
        return query.new_empty((*query.shape[:2], rows, columns), dtype=torch.bool)
    return pad(blocks, (0, columns - blocks.shape[3], 0, rows - blocks.shape[2]))


def _run(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, outputs: tuple[Tensor, ...], aux: bool,
    **options: Any,
) -> None:  # fmt: skip
    out, logsumexp, kept_mass, kept, allowed = outputs if aux else (*outputs, None, None, None)
    cpu.nm_forward(query, key, value, mask, out, logsumexp, kept_mass, kept, allowed, **options)


def _certify(
    outputs: tuple[Tensor, ...], dense: tuple[Tensor, ...], by_definition: Callable[[], Tensor]
) -> None:  # fmt: skip
    """Fill in kept mass and allowed pairs by comparison with dense attention: the kept mass is
    ``exp(logsumexp of the kept pairs - logsumexp of all pairs)``, or that of the definition where those are rounded by
    too much."""
    _, logsumexp, kept_mass, _, allowed = outputs
    _, whole, _, _, all_allowed = dense
    mass = (logsumexp - whole).exp().clamp(max=1.0)  # the two sums round differently, so the quotient may exceed 1
    mass = mass.where((whole != torch.inf) | (logsumexp == -torch.inf), torch.nan)  # of infinity there is no share
    rough = (whole.abs() > _FINE_LOGSUMEXP) & whole.isfinite()
    if bool(rough.any()):
        mass = mass.where(~rough, by_definition())
    kept_mass.copy_(mass.where(all_allowed > 0, 1.0))
    allowed.copy_(all_allowed)


def _mass_by_definition(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, call: ByName
) -> Tensor:  # fmt: skip
    outputs = buffers.outputs(query, value, True)
    options = in_blocks.Options(call.pairs, call.causal, call.scale, 0.0)
    in_blocks.forward(outputs, query, key, value, attn_mask, None, options, True)
    return outputs[2]


def _backward(
    grad_out: Tensor, grad_logsumexp: Tensor, out: Tensor, logsumexp: Tensor, blocks: Tensor, query: Tensor,
    key: Tensor, value: Tensor, attn_mask: Tensor | None, seed: Tensor | None, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *arguments, backend = rest
    call = ByName(*arguments)
    queries, keys = _sizes(call.pairs)
    isa = nm_isa(backend, query)
    chosen = None
    if queries:
        chosen = blocks[:, :, : -(-query.shape[2] // queries), : -(-key.shape[2] // keys)].contiguous()
    return gradients(
        grad_out, grad_logsumexp, out, logsumexp, query, key, value, attn_mask, seed, call, isa,
        blocks=chosen, block_queries=queries, block_size=keys,
    )  # fmt: skip


def _forward_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, name, _causal, _scale, _dropout_p, aux, _needs_grad, _backend = rest
    shape = (*query.shape[:2], *_room(query, key, _sizes(cast(PairMethod, parse(name)))))
    return *buffers.complete(buffers.outputs(query, value, aux), query), query.new_empty(shape, dtype=torch.bool)


def _backward_fake(
    _grad_out: Tensor, _grad_logsumexp: Tensor, _out: Tensor, _logsumexp: Tensor, _blocks: Tensor, query: Tensor,
    key: Tensor, value: Tensor, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return buffers.gradients(query, key, value, None, False)[:3]


library.impl("block_attention", forward_cpu, "CPU")
library.impl("block_attention_backward", _backward, "CPU")
complete(FORWARD, BACKWARD, _forward_fake, _backward_fake)

block_attention = FORWARD.operator
