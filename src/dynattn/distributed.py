"""Attention over a sequence whose parts lie on several processes of ``torch.distributed``.

    out = dynattn.distributed.attention(query, key, value, NM(2, 4), causal=True)

Each process holds a part of the queries and of the keys, in the order of the ranks, of any lengths. Keys and values are
gathered, so that every query chooses among all of them: the result is that of one process, for every method and any
lengths, groups of N:M that lie on two processes too. Memory is linear in the whole length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from dynattn import backends, functional
from dynattn.backends.problem import Result
from dynattn.functional import Aux
from dynattn.methods import NM, Method, PairMethod
from dynattn.methods.base import Choice
from dynattn.methods.blocks import Blocks
from dynattn.ops.sharding import is_sharded

_BY_SCORES = (Choice.GROUPS, Choice.ROWS, Choice.SKIPS, Choice.WINDOW)  # a key that is not seen cannot change these


class _Gather(torch.autograd.Function):
    """Parts of all processes, one behind the other along dimension 2; the gradient of a part is the sum of all."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, lengths: list[int], group: Any) -> Tensor:
        rank = distributed.get_rank(group)
        ctx.start, ctx.length, ctx.group = sum(lengths[:rank]), lengths[rank], group
        padded = F.pad(part, (0, 0, 0, max(lengths) - part.shape[2])).contiguous()  # all have to be of one shape
        parts = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(parts, padded, group=group)
        return torch.cat([one[:, :, :length] for one, length in zip(parts, lengths, strict=True)], dim=2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grad.contiguous().clone()
        distributed.all_reduce(total, group=ctx.group)
        return total.narrow(2, ctx.start, ctx.length), None, None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: Method = NM(2, 4),
    *,
    attn_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    return_aux: bool = False,
    group: distributed.ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, Aux]:
    """:func:`dynattn.attention` for this process's queries, among the keys of all processes.

    Every process of the group has to call it, with the same options; so with ``backward``, where any input of any
    process requires a gradient.

    Args:
        query: this process's part, (batch, heads, q_len, head_dim); parts lie in the order of the ranks.
        key: this process's part, (batch, kv_heads, kv_len, head_dim). Lengths may differ from process to process.
        value: this process's part, (batch, kv_heads, kv_len, value_dim).
        method: what to keep, a method that keeps pairs; positions and groups are those of the whole sequence.
        attn_mask: broadcasts to (batch, heads, q_len, all keys): the rows of this process, and the columns of all.
        causal: forbid keys after the query, aligned bottom-right in the whole.
        scale: factor of the scores; None for ``head_dim ** -0.5``.
        return_aux: also return what was kept and lost.
        group: the processes; None for all.

    Returns:
        (batch, heads, q_len, value_dim), this process's part; with ``return_aux`` a pair of it and
        :class:`dynattn.Aux`.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.
        TypeError: an input is a ``DTensor``, or the method keeps no pairs.
        NotImplementedError: the certificate of a method that looks at positions is asked for without ``causal``.
        ValueError: the method chooses for runs of queries, and a part does not begin at such a run; or what
            :func:`dynattn.attention` says.
    """
    _check(query, key, value, method)
    if return_aux and not causal and method.looks_at_positions:
        raise NotImplementedError(
            f"distributed.attention: return_aux needs causal=True for a method that looks at positions: got "
            f"{method.name}; leave return_aux out"
        )
    queries, keys = (_lengths(x, group) for x in (query, key))
    rank = distributed.get_rank(group)
    start, q_len, all_keys = sum(queries[:rank]), query.shape[2], sum(keys)
    _check_runs(method, queries)
    key, value = (_Gather.apply(x, keys, group) for x in (key, value))  # type: ignore[assignment]
    after = sum(queries) - start - q_len  # queries of the processes behind this one
    behind = after if not causal and method.looks_at_positions else 0
    if causal:
        end = max(all_keys - after, 0)
        seen = _seen(method, end, all_keys)
        behind = after - (all_keys - seen) if seen > end else 0
        key, value = key[:, :, :seen], value[:, :, :seen]
        attn_mask = attn_mask if attn_mask is None or attn_mask.shape[-1] == 1 else attn_mask[..., :seen]
    if behind:  # queries in the place of those behind say where these stand among the keys
        query = F.pad(query, (0, 0, 0, behind))
        if attn_mask is not None and attn_mask.dim() > 1 and attn_mask.shape[-2] > 1:
            attn_mask = F.pad(attn_mask, (0, 0, 0, behind))
    if return_aux and behind:
        return _certified(query, key, value, method, attn_mask, causal, scale, q_len)
    found = functional.attention(
        query, key, value, method, attn_mask=attn_mask, causal=causal, scale=scale, return_aux=return_aux
    )
    if isinstance(found, tuple):
        return found
    return found[:, :, :q_len]


def _certified(
    query: Tensor, key: Tensor, value: Tensor, method: Method, attn_mask: Tensor | None, causal: bool,
    scale: float | None, q_len: int,
) -> tuple[Tensor, Aux]:  # fmt: skip
    """The first rows of attention, and what was kept in them alone."""
    query, key, value = functional.autocast(query, key, value)
    functional.check(query, key, value, method, attn_mask, causal, scale, 0.0, None, True)
    call = functional.call_of(query, key, value, method, attn_mask, causal, scale, 0.0, None, True)
    result = backends.route(call.problem, "auto").run(call)
    own = Result(*(x[:, :, :q_len] for x in result if x is not None))
    return own.out, Aux.of(own)


def _check(query: Tensor, key: Tensor, value: Tensor, method: Method) -> None:
    if not distributed.is_available() or not distributed.is_initialized():
        raise RuntimeError(
            "distributed.attention: torch.distributed must be initialised: it is not; call "
            "torch.distributed.init_process_group(), or dynattn.attention in a single process"
        )
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor) or is_sharded(x):
            raise TypeError(
                f"distributed.attention: {name} must be this process's part as a plain tensor: got {type(x).__name__}; "
                "pass x.to_local() of a DTensor that is split along the length, or give DTensors to dynattn.attention"
            )
        if x.dim() != 4:
            raise ValueError(
                f"distributed.attention: {name} must have 4 dimensions (batch, heads, length, head_dim): got "
                f"{tuple(x.shape)}; unsqueeze the missing ones"
            )
    if not isinstance(method, PairMethod):
        raise TypeError(
            f"distributed.attention: method must keep pairs: got {getattr(method, 'name', method)!r}; use one that "
            "does, such as NM(2, 4)"
        )


def _check_runs(method: Method, queries: list[int]) -> None:
    run = getattr(method, "rows_together", 1)
    starts = [sum(queries[:rank]) for rank in range(len(queries)) if queries[rank]]
    if any(start % run for start in starts):
        raise ValueError(
            f"distributed.attention: parts must begin at a multiple of {run} queries, for which {method.name} chooses "
            f"together: got parts that begin at {starts}; split the sequence there"
        )


def _seen(method: Method, end: int, all_keys: int) -> int:
    """How many keys the choice for queries may look at, of which the last sees the first ``end``."""
    if method.choice in _BY_SCORES:
        return end
    if isinstance(method, Blocks):  # what lies in a block may count, whether or not it is seen
        return min(all_keys, -(-end // method.block) * method.block)
    return all_keys


def _lengths(x: Tensor, group: Any) -> list[int]:
    """How many keys, or queries, each process holds."""
    mine = torch.tensor([x.shape[2]], device=x.device)
    lengths = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(lengths, mine, group=group)
    return [int(length) for length in lengths]
