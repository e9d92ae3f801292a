"""Runs ``varlen_attention()`` once its arguments are numbers and tensors: texts at once, and one after another."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dynattn.checks import check
from dynattn.functional import Aux, attention, autocast, call_of
from dynattn.maths.dropout import seed_of_part
from dynattn.maths.scores import arithmetic_dtype
from dynattn.methods import Method
from dynattn.ops import sharding
from dynattn.varlen import together
from dynattn.varlen.texts import Bounds, Text, cut, read


class Places(NamedTuple):
    """Where the texts lie, as :func:`dynattn.varlen_attention` is told."""

    cu_seq_q: Tensor | None
    cu_seq_k: Tensor | None
    max_q: int | None
    max_k: int | None
    seqused_k: Tensor | None
    block_table: Tensor | None


class Options(NamedTuple):
    """What is computed, as :func:`dynattn.varlen_attention` is told; ``window`` is its ``window_size``."""

    method: Method
    causal: bool
    scale: float | None
    window: tuple[int, int]
    dropout_p: float
    seed: int | Tensor | None
    backend: str
    return_aux: bool


class _Part(NamedTuple):
    """What was computed of a text: (length, heads, value_dim), and the certificate where that is asked for."""

    out: Tensor
    aux: Aux | None


def _together(
    query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, block_table: Tensor | None, options: Options
) -> tuple[list[int], together.Packed] | None:
    """The texts that one call of the kernels computes, and what it gives; None where there are none."""
    left, right = options.window
    if not bounds.queries or left >= 0 or right > 0:
        return None
    if query.device.type != "cpu" or not query.dtype == key.dtype == value.dtype:  # pages that autocast converts
        return None
    rows = query
    query = query.transpose(0, 1).unsqueeze(0)
    key, value = (x.transpose(0, 1)[None] if block_table is None else x.transpose(1, 2) for x in (key, value))
    if not len(key):
        return None
    method, causal, scale, aux = options.method, options.causal, options.scale, options.return_aux
    call = call_of(query, key, value, method, None, causal, scale, options.dropout_p, options.seed, aux)
    kernel = together.kernel_for(call, options.backend, bounds, block_table)
    if kernel is None:
        return None
    isa, numbers = kernel
    if len(numbers) < len(bounds.queries):
        each = rows.split(bounds.queries)
        call = call._replace(query=torch.cat([each[number] for number in numbers]).transpose(0, 1).unsqueeze(0))
        block_table = None if block_table is None else block_table[numbers]
        bounds = bounds.of(numbers)
    return numbers, together.attend(call, isa, bounds, block_table)


def _alone(text: Text, number: int, options: Options) -> _Part:
    """One text by :func:`dynattn.attention`."""
    seed = None if options.seed is None else seed_of_part(options.seed, number)
    given: dict[str, Any] = {
        "attn_mask": _seen(text, *options.window), "causal": options.causal, "scale": options.scale,
        "dropout_p": options.dropout_p, "seed": seed, "backend": options.backend, "return_aux": options.return_aux,
    }  # fmt: skip
    found: Any = attention(*text, options.method, **given)
    out, aux = found if options.return_aux else (found, None)
    return _Part(out[0].transpose(0, 1), aux)


def _check(query: Tensor, key: Tensor, value: Tensor, options: Options, paged: bool) -> None:
    """Refuse what attention cannot take, where there is no text too."""
    if paged:  # by the first page, since the pool may be large
        key, value = autocast(*(x[:1].flatten(0, 1) for x in (key, value)))
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    check(
        query, key, value, options.method, None, options.causal, options.scale, options.dropout_p, options.seed,
        options.return_aux,
    )  # fmt: skip


def _aux(parts: list[Aux], query: Tensor) -> Aux:
    if not parts:
        nothing = query.new_empty(0, query.shape[1], dtype=arithmetic_dtype(query.dtype))
        return Aux(nothing, nothing, nothing)
    logsumexp, kept_mass = (torch.cat([part[i][0].transpose(0, 1) for part in parts]) for i in range(2))
    return Aux(logsumexp, kept_mass, torch.cat([part.density for part in parts]))


def _joined(parts: list[_Part], query: Tensor, value: Tensor, return_aux: bool) -> tuple[Tensor, Aux | None]:
    """All texts, one after another."""
    nothing = query.new_empty(0, query.shape[1], value.shape[-1])
    out = torch.cat([part.out for part in parts]) if parts else nothing
    return out, _aux([cast(Aux, part.aux) for part in parts], query) if return_aux else None


def _seen(text: Text, left: int, right: int) -> Tensor | None:
    """The pairs within the window, bool (q_len, kv_len); None where ``causal`` alone limits them, or nothing."""
    if left < 0 and right <= 0:
        return None
    q_len, kv_len = text.query.shape[2], text.key.shape[2]
    place = torch.arange(q_len, device=text.query.device)[:, None] + kv_len - q_len
    distance = torch.arange(kv_len, device=text.query.device) - place  # [q_len, kv_len]
    seen = distance >= -left if left >= 0 else torch.ones_like(distance, dtype=torch.bool)
    return sharding.like(text.query, seen & (distance <= right) if right > 0 else seen)


def _check_most(name: str, most: Any, lengths: list[int]) -> None:
    if most is None:
        return
    if not isinstance(most, int) or most < max(lengths, default=0):
        raise ValueError(
            f"varlen_attention: {name} must be an int that no text exceeds: got {most!r} where the longest has "
            f"{max(lengths, default=0)}; leave it out"
        )


def attend(query: Tensor, key: Tensor, value: Tensor, places: Places, options: Options) -> tuple[Tensor, Aux | None]:
    """Attention of packed texts, and what was kept and lost where that is asked for.

    Args:
        query, key, value, places, options: as :func:`dynattn.varlen_attention` takes them; not nested.

    Raises:
        As :func:`dynattn.varlen_attention`.
    """
    bounds = read(query, key, value, places.cu_seq_q, places.cu_seq_k, places.seqused_k, places.block_table)
    paged = places.block_table is not None
    (query,) = autocast(query)
    key, value = (key, value) if paged else autocast(key, value)
    _check(query, key, value, options, paged)
    _check_most("max_q", places.max_q, bounds.queries)
    _check_most("max_k", places.max_k, bounds.keys)
    found = _together(query, key, value, bounds, places.block_table, options)
    parts: dict[int, _Part] = {}
    if found is not None:
        numbers, packed = found
        certified = [Aux.of(result) for result in packed.results]
        if len(numbers) == len(bounds.queries):
            return packed.out, _aux(certified, query) if options.return_aux else None
        outs = packed.out.split([bounds.queries[number] for number in numbers])
        parts = dict(zip(numbers, map(_Part, outs, certified or [None] * len(outs)), strict=True))
    rest = [number for number in range(len(bounds.queries)) if number not in parts]
    for number, text in zip(rest, cut(query, key, value, bounds, places.block_table, rest), strict=True):
        parts[number] = _alone(text, number, options)
    return _joined([parts[number] for number in sorted(parts)], query, value, options.return_aux)
