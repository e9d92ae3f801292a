"""Attention over a sequence whose parts lie on several processes of ``torch.distributed``.

    out = dynattn.distributed.attention(query, key, value, NM(2, 4), causal=True)

Each process holds a part of the queries and of the keys, in the order of the ranks, of any lengths. Keys and values are
gathered, so that every query chooses among all of them: the result is that of one process, for every method and any
lengths, groups of N:M that lie on two processes too. Memory is linear in the whole length.
"""

from __future__ import annotations

import zlib
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from dynattn import backends, functional
from dynattn.backends.problem import Result
from dynattn.functional import Aux
from dynattn.maths.dropout import seed_of_part
from dynattn.methods import NM, Method, PairMethod
from dynattn.methods.base import Choice
from dynattn.methods.blocks import Blocks
from dynattn.ops.sharding import is_sharded

_SAME = ("batch", "heads", "kv_heads", "head_dim", "value_dim", "dtype", "options")  # on all processes
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
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    return_aux: bool = False,
    group: distributed.ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, Aux]:
    """:func:`dynattn.attention` for this process's queries, among the keys of all processes.

    Every process of the group has to call it, with the same options; so with ``backward``. Keys require a gradient on
    all processes or on none, and so do values. They compare their calls first: where one refuses its inputs, all raise.

    Args:
        query: this process's part, (batch, heads, q_len, head_dim); parts lie in the order of the ranks.
        key: this process's part, (batch, kv_heads, kv_len, head_dim). Lengths may differ from process to process.
        value: this process's part, (batch, kv_heads, kv_len, value_dim).
        method: what to keep, a method that keeps pairs; positions and groups are those of the whole sequence.
        attn_mask: broadcasts to (batch, heads, q_len, all keys): the rows of this process, and the columns of all.
        causal: forbid keys after the query, aligned bottom-right in the whole.
        scale: factor of the scores; None for ``head_dim ** -0.5``.
        dropout_p: probability of dropping a kept weight, as in :func:`dynattn.attention`.
        seed: the seed of dropout; process r of the group draws from ``seed ^ (r << 32)``, by its own rows. None draws
            one from PyTorch's generator of this process.
        return_aux: also return what was kept and lost.
        group: the processes; None for all.

    Returns:
        (batch, heads, q_len, value_dim), this process's part; with ``return_aux`` a pair of it and
        :class:`dynattn.Aux`.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised, or another process refused its inputs.
        TypeError: an input is a ``DTensor``, or the method keeps no pairs.
        NotImplementedError: the certificate of a method that looks at positions is asked for without ``causal``.
        ValueError: calls of the processes do not fit together; the method chooses for runs of queries, and a part does
            not begin at such a run; or what :func:`dynattn.attention` says.
    """
    rank = _rank(group)
    query, key, value = functional.autocast(query, key, value)
    refusal = None
    try:
        _check(query, key, value, method, causal, return_aux)
        functional.check(query, key, value, method, None, causal, scale, dropout_p, seed, return_aux)
    except (TypeError, ValueError, NotImplementedError) as error:
        refusal = error
    grads = torch.is_grad_enabled() and [getattr(x, "requires_grad", False) for x in (key, value)]
    options = None if refusal else (method.name, causal, scale, dropout_p, return_aux, grads)
    queries, keys = _compare((query, key, value), options, refusal, group)
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
    if dropout_p != 0:
        seed = seed_of_part(torch.randint(2**63 - 1, (), device=query.device) if seed is None else seed, rank)
    if return_aux and behind:
        return _certified(query, key, value, method, attn_mask, causal, scale, dropout_p, seed, q_len)
    found = functional.attention(
        query, key, value, method, attn_mask=attn_mask, causal=causal, scale=scale, dropout_p=dropout_p, seed=seed,
        return_aux=return_aux,
    )  # fmt: skip
    if isinstance(found, tuple):
        return found
    return found[:, :, :q_len]


def _certified(
    query: Tensor, key: Tensor, value: Tensor, method: Method, attn_mask: Tensor | None, causal: bool,
    scale: float | None, dropout_p: float, seed: int | Tensor | None, q_len: int,
) -> tuple[Tensor, Aux]:  # fmt: skip
    """The first rows of attention, and what was kept in them alone."""
    functional.check(query, key, value, method, attn_mask, causal, scale, dropout_p, seed, True)
    call = functional.call_of(query, key, value, method, attn_mask, causal, scale, dropout_p, seed, True)
    result = backends.route(call.problem, "auto").run(call)
    own = Result(*(x[:, :, :q_len] for x in result if x is not None))
    return own.out, Aux.of(own)


def _rank(group: Any) -> int:
    """The number of this process in the group."""
    if not distributed.is_available() or not distributed.is_initialized():
        raise RuntimeError(
            "distributed.attention: torch.distributed must be initialised: it is not; call "
            "torch.distributed.init_process_group(), or dynattn.attention in a single process"
        )
    rank = distributed.get_rank(group)
    if rank < 0:
        raise ValueError(
            "distributed.attention: this process must be of the group: it is not; call attention in its processes alone"
        )
    return rank


def _check(query: Any, key: Any, value: Any, method: Any, causal: bool, return_aux: bool) -> None:
    """Refuse what attention would take, and this cannot."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if isinstance(x, Tensor) and is_sharded(x):
            raise TypeError(
                f"distributed.attention: {name} must be this process's part as a plain tensor: got {type(x).__name__}; "
                "pass x.to_local() of a DTensor that is split along the length, or give DTensors to dynattn.attention"
            )
        if isinstance(x, Tensor) and x.is_meta:
            raise ValueError(
                f"distributed.attention: {name} must hold numbers: it is on the meta device; call dynattn.attention, "
                "which gives shapes"
            )
    if not isinstance(method, PairMethod):
        raise TypeError(
            f"distributed.attention: method must keep pairs: got {getattr(method, 'name', method)!r}; use one that "
            "does, such as NM(2, 4)"
        )
    if return_aux and not causal and method.looks_at_positions:
        raise NotImplementedError(
            f"distributed.attention: return_aux needs causal=True for a method that looks at positions: got "
            f"{method.name}; leave return_aux out"
        )


def _compare(tensors: tuple[Any, ...], options: Any, refusal: Exception | None, group: Any) -> tuple[list[int], ...]:
    """How many queries and keys each process holds, once all have said that their calls fit together.

    Args:
        tensors: query, key and value.
        options: what else has to be the same on all processes.
        refusal: why this process cannot take its inputs; None where it can.
        group: the processes.
    """
    facts = dict.fromkeys(("q_len", "kv_len", *_SAME), 0)
    if refusal is None:
        query, key, value = tensors
        batch, heads, q_len, head_dim = query.shape
        dtype, others = zlib.crc32(str(query.dtype).encode()), zlib.crc32(repr(options).encode())
        same = (batch, heads, key.shape[1], head_dim, value.shape[3], dtype, others)
        facts = {"q_len": q_len, "kv_len": key.shape[2], **dict(zip(_SAME, same, strict=True))}
    device = tensors[0].device if isinstance(tensors[0], Tensor) and not tensors[0].is_meta else torch.device("cpu")
    mine = torch.tensor([int(refusal is not None), *facts.values()], device=device)
    told = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(told, mine, group=group)
    refused, *found = torch.stack(told).T.tolist()
    if refusal is not None:
        raise refusal
    if any(refused):
        raise RuntimeError(
            f"distributed.attention: every process must give inputs that can be taken: process "
            f"{refused.index(1)} of the group refused its own; its error says why"
        )
    by_name = dict(zip(facts, found, strict=True))
    for name in _SAME:
        if len(set(by_name[name])) > 1:
            got = "others" if name in ("dtype", "options") else by_name[name]
            raise ValueError(
                f"distributed.attention: {name} must be the same on all processes: got {got}; parts differ in "
                "their lengths alone"
            )
    return by_name["q_len"], by_name["kv_len"]


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
        among = cast("PairMethod | None", cast(PairMethod, method).scored)
        return end if among is None else _seen(among, end, all_keys)
    if isinstance(method, Blocks):  # what lies in a block may count, whether or not it is seen
        return min(all_keys, -(-end // method.block) * method.block)
    return all_keys
