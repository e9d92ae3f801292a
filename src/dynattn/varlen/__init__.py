"""``varlen_attention()``: texts of different lengths side by side without padding, each attending to itself alone.

A text is computed by the very call that :func:`dynattn.attention` would make for it, so that its groups, windows, sinks
and blocks are counted from its own first key, and neighbours change none of its bits.
"""

from __future__ import annotations

from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from dynattn.functional import Aux, attention
from dynattn.methods import NM, Method
from dynattn.varlen.texts import Text, cut, of_jagged

_TEXT_BITS = 32  # a text's number changes the upper half of the seed, since parts of a call change the lower


@overload
def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, method: Method = ..., *, cu_seq_q: Tensor | None = ...,
    cu_seq_k: Tensor | None = ..., max_q: int | None = ..., max_k: int | None = ..., causal: bool = ...,
    scale: float | None = ..., window_size: tuple[int, int] = ..., seqused_k: Tensor | None = ...,
    block_table: Tensor | None = ..., dropout_p: float = ..., seed: int | Tensor | None = ..., backend: str = ...,
    return_aux: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, method: Method = ..., *, cu_seq_q: Tensor | None = ...,
    cu_seq_k: Tensor | None = ..., max_q: int | None = ..., max_k: int | None = ..., causal: bool = ...,
    scale: float | None = ..., window_size: tuple[int, int] = ..., seqused_k: Tensor | None = ...,
    block_table: Tensor | None = ..., dropout_p: float = ..., seed: int | Tensor | None = ..., backend: str = ...,
    return_aux: Literal[True],
) -> tuple[Tensor, Aux]: ...  # fmt: skip


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method: Method = NM(2, 4),
    *,
    cu_seq_q: Tensor | None = None,
    cu_seq_k: Tensor | None = None,
    max_q: int | None = None,
    max_k: int | None = None,
    causal: bool = False,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    backend: str = "auto",
    return_aux: bool = False,
) -> Tensor | tuple[Tensor, Aux]:
    """Attention of texts of different lengths that are packed into one tensor; each text sees itself alone.

    For each text it is :func:`dynattn.attention`, to the bit. Arguments are named as those of
    ``torch.nn.attention.varlen.varlen_attn``, and mean the same. It is differentiable in query, key and value.

    Args:
        query: (tokens, heads, head_dim), the texts one after another; or a jagged nested tensor (texts, length, heads,
            head_dim), which brings its own bounds.
        key: (key tokens, kv_heads, head_dim); with ``block_table`` a pool of pages (pages, page_size, kv_heads,
            head_dim); or jagged, where ``query`` is.
        value: like ``key``, with a last dimension of its own.
        method: what to keep, for example ``NM(2, 4)``; ``NM(n, n)`` is dense attention.
        cu_seq_q: (texts + 1,), int32 or int64: text t has the queries ``cu_seq_q[t]`` to ``cu_seq_q[t + 1] - 1``. It
            begins with 0 and ends with the number of tokens.
        cu_seq_k: the same for keys and values; None where they are those of ``cu_seq_q``, and with ``block_table``.
        max_q, max_k: numbers that no text's queries and keys exceed; checked, and not needed.
        causal: forbid keys after the query, aligned bottom-right in each text, as in :func:`dynattn.attention`.
        scale: factor of the scores; None for ``head_dim ** -0.5``.
        window_size: (left, right): a query sees at most so many keys before and after its own place, which is aligned
            bottom-right; below 0 for no limit. (-1, 0) is ``causal``. The method chooses among the keys that are seen.
        seqused_k: (texts,), int32 or int64: of text t the first ``seqused_k[t]`` keys take part, as if there were no
            others.
        block_table: (texts, most pages), int32 or int64: the keys of text t lie in the pages ``block_table[t, 0]``,
            ``block_table[t, 1]``, and so on, as many as ``seqused_k[t]`` keys need. Pages are gathered, text by text.
        dropout_p, seed: as in :func:`dynattn.attention`; text t draws from ``seed ^ (t << 32)``.
        backend: as in :func:`dynattn.attention`.
        return_aux: also return what was kept and lost.

    Returns:
        (tokens, heads, value_dim) in the dtype of ``query``; jagged where it is. With ``return_aux`` a pair of it and
        :class:`dynattn.Aux`, whose ``logsumexp`` and ``kept_mass`` are (tokens, heads), and whose ``density`` is
        (texts, heads).

    Raises:
        TypeError: an argument is of a wrong type or dtype.
        ValueError: shapes, bounds or values do not fit; the text says which, and what to do.
        RuntimeError: the backend asked for cannot run this.

    Source: the method's; see its docstring. N:M: arXiv:2203.00091.
    """
    _check_tensors(query, key, value)
    jagged = query.is_nested or key.is_nested or value.is_nested
    if jagged:
        given = {"cu_seq_q": cu_seq_q, "cu_seq_k": cu_seq_k, "seqused_k": seqused_k, "block_table": block_table}
        _refuse_beside_jagged(given)
        query, key, value, cu_seq_q, cu_seq_k = of_jagged(query, key, value)
    texts = cut(query, key, value, cu_seq_q, cu_seq_k, seqused_k, block_table)
    _check_most("max_q", max_q, [text.query.shape[2] for text in texts])
    _check_most("max_k", max_k, [text.key.shape[2] for text in texts])
    left, right = _window(window_size)
    options: dict[str, Any] = {
        "causal": causal or right == 0, "scale": scale, "dropout_p": dropout_p, "backend": backend,
        "return_aux": return_aux,
    }  # fmt: skip
    if dropout_p and seed is None:
        seed = torch.randint(2**63 - 1, (), device=query.device)
    found = [
        attention(*text, method, attn_mask=_seen(text, left, right), seed=_seed(seed, number), **options)
        for number, text in enumerate(texts)
    ]
    out = _packed([one[0] if return_aux else one for one in found], query, value)
    if jagged:
        out = torch.nested.nested_tensor_from_jagged(out, cast(Tensor, cu_seq_q))
    return (out, _aux([one[1] for one in found], query)) if return_aux else out


def _packed(outs: list[Tensor], query: Tensor, value: Tensor) -> Tensor:
    """(1, heads, length, value_dim) of each text as (tokens, heads, value_dim)."""
    if not outs:
        return query.new_empty(0, query.shape[1], value.shape[-1])
    return torch.cat([out[0].transpose(0, 1) for out in outs])


def _aux(parts: list[Aux], query: Tensor) -> Aux:
    if not parts:
        nothing = torch.empty(0, query.shape[1], device=query.device)
        return Aux(nothing, nothing, nothing)
    logsumexp, kept_mass = (torch.cat([part[i][0].transpose(0, 1) for part in parts]) for i in range(2))
    return Aux(logsumexp, kept_mass, torch.cat([part.density for part in parts]))


def _seed(seed: int | Tensor | None, text: int) -> int | Tensor | None:
    return None if seed is None else seed ^ (text << _TEXT_BITS)


def _seen(text: Text, left: int, right: int) -> Tensor | None:
    """The pairs within the window, bool (q_len, kv_len); None where ``causal`` alone limits them, or nothing."""
    if left < 0 and right <= 0:
        return None
    q_len, kv_len = text.query.shape[2], text.key.shape[2]
    place = torch.arange(q_len, device=text.query.device)[:, None] + kv_len - q_len
    distance = torch.arange(kv_len, device=text.query.device) - place  # [q_len, kv_len]
    seen = distance >= -left if left >= 0 else torch.ones_like(distance, dtype=torch.bool)
    return seen & (distance <= right) if right > 0 else seen


def _window(window_size: Any) -> tuple[int, int]:
    if not (isinstance(window_size, (tuple, list)) and [type(size) for size in window_size] == [int, int]):
        raise TypeError(
            f"varlen_attention: window_size must be two ints (left, right): got {window_size!r}; -1 sets no limit"
        )
    left, right = window_size
    return left, right


def _check_tensors(*tensors: Any) -> None:
    for name, x in zip(("query", "key", "value"), tensors, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"varlen_attention: {name} must be a tensor: got {type(x).__name__}; convert with torch.as_tensor()"
            )


def _check_most(name: str, most: Any, lengths: list[int]) -> None:
    if most is None:
        return
    if not isinstance(most, int) or most < max(lengths, default=0):
        raise ValueError(
            f"varlen_attention: {name} must be an int that no text exceeds: got {most!r} where the longest has "
            f"{max(lengths, default=0)}; leave it out"
        )


def _refuse_beside_jagged(given: dict[str, Tensor | None]) -> None:
    for name, x in given.items():
        if x is not None:
            raise ValueError(
                f"varlen_attention: {name} must be left out where query is jagged, which brings its own bounds"
            )
