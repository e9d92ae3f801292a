"""Runs ``varlen_attention()`` once its arguments are numbers and tensors: all texts at once, or one after another."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def _together(
    query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, block_table: Tensor | None, options: Options
) -> together.Packed | None:
    """All texts by one call of the kernels; None where they do not compute this."""
    left, right = options.window
    if not bounds.queries or left >= 0 or right > 0:
        return None
    if query.device.type != "cpu" or not query.dtype == key.dtype == value.dtype:  # pages that autocast converts
        return None
    query = query.transpose(0, 1).unsqueeze(0)
    key, value = (x.transpose(0, 1)[None] if block_table is None else x.transpose(1, 2) for x in (key, value))
    if not len(key):
        return None
    method, causal, scale, aux = options.method, options.causal, options.scale, options.return_aux
    call = call_of(query, key, value, method, None, causal, scale, options.dropout_p, options.seed, aux)
    isa = together.isa_for(call, options.backend, bounds, block_table)
    return None if isa is None else together.attend(call, isa, bounds, block_table)


def _alone(text: Text, number: int, options: Options) -> tuple[Tensor, Any]:
    """One text by :func:`dynattn.attention`."""
    seed = None if options.seed is None else seed_of_part(options.seed, number)
    given: dict[str, Any] = {
        "attn_mask": _seen(text, *options.window), "causal": options.causal, "scale": options.scale,
        "dropout_p": options.dropout_p, "seed": seed, "backend": options.backend, "return_aux": options.return_aux,
    }  # fmt: skip
    found = attention(*text, options.method, **given)
    return found if options.return_aux else (found, None)  # type: ignore[return-value]


def _check(query: Tensor, key: Tensor, value: Tensor, options: Options, paged: bool) -> None:
    """Refuse what attention cannot take, where there is no text too."""
    if paged:  # by the first page, since the pool may be large
        key, value = autocast(*(x[:1].flatten(0, 1) for x in (key, value)))
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    check(
        query, key, value, options.method, None, options.causal, options.scale, options.dropout_p, options.seed,
        options.return_aux,
    )  # fmt: skip


def _packed(outs: list[Tensor], query: Tensor, value: Tensor) -> Tensor:
    """(1, heads, length, value_dim) of each text as (tokens, heads, value_dim)."""
    if not outs:
        return query.new_empty(0, query.shape[1], value.shape[-1])
    return torch.cat([out[0].transpose(0, 1) for out in outs])


def _aux(parts: list[Aux], query: Tensor) -> Aux:
    if not parts:
        nothing = query.new_empty(0, query.shape[1], dtype=arithmetic_dtype(query.dtype))
        return Aux(nothing, nothing, nothing)
    logsumexp, kept_mass = (torch.cat([part[i][0].transpose(0, 1) for part in parts]) for i in range(2))
    return Aux(logsumexp, kept_mass, torch.cat([part.density for part in parts]))


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
    if found is not None:
        parts = [Aux.of(result) for result in found.results]
        return found.out, _aux(parts, query) if options.return_aux else None
    texts = cut(query, key, value, bounds, places.block_table)
    each = [_alone(text, number, options) for number, text in enumerate(texts)]
    aux = _aux([one for _, one in each], query) if options.return_aux else None
    return _packed([out for out, _ in each], query, value), aux
