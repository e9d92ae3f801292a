"""``varlen_attention()``: texts of different lengths side by side without padding, each attending to itself alone.

A text is computed by the very call that :func:`dynattn.attention` would make for it, so that its groups, windows, sinks
and blocks are counted from its own first key, and neighbours change none of its bits.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from dynattn.checks import check_dropout
from dynattn.functional import Aux
from dynattn.methods import NM, Method
from dynattn.varlen import again, compiled
from dynattn.varlen.run import Options, Places, attend
from dynattn.varlen.texts import of_jagged

_NO_LIMIT = 2**62  # no text is as long, and int64 holds it


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
            ``block_table[t, 1]``, and so on, as many as ``seqused_k[t]`` keys need. N:M and dense attention without a
            gradient read pages of a multiple of 16 keys in place; else, and for texts that go to a tile engine, pages
            are gathered, text by text.
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
    places = Places(cu_seq_q, cu_seq_k, max_q, max_k, seqused_k, block_table)
    special = return_aux or seed is not None or dropout_p != 0
    known = again.key_of(query, key, value, places, window_size, method, causal, scale, backend, special)
    plan = None if known is None else again.find(known)
    if plan is not None and (found := plan.run(query, key, value, places)) is not None:
        return found
    _check_tensors(query, key, value)
    jagged = query.is_nested or key.is_nested or value.is_nested
    if jagged:
        given = {"cu_seq_q": cu_seq_q, "cu_seq_k": cu_seq_k, "seqused_k": seqused_k, "block_table": block_table}
        _refuse_beside_jagged(given)
        query, key, value, cu_seq_q, cu_seq_k = of_jagged(query, key, value)
    window = _window(window_size)
    if dropout_p != 0 or seed is not None:
        check_dropout(dropout_p, seed, query.device)
        seed = torch.randint(2**63 - 1, (), device=query.device) if seed is None else seed
    places = places._replace(cu_seq_q=cu_seq_q, cu_seq_k=cu_seq_k)
    options = Options(method, causal or window[1] == 0, scale, window, dropout_p, seed, backend, return_aux)
    shapes_alone = torch.compiler.is_compiling() or _is_fake(query) or (query.is_meta and _is_meta(cu_seq_q))
    run = compiled.attend if shapes_alone else attend
    out, aux = run(query, key, value, places, options)
    if known is not None and plan is None:
        again.remember(known, query, key, value, places, options)
    if jagged:
        out = torch.nested.nested_tensor_from_jagged(out, cast(Tensor, cu_seq_q))
    return (out, cast(Aux, aux)) if return_aux else out


def _is_meta(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_meta


def _is_fake(x: Tensor) -> bool:
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return type(x) is not Tensor and module is not None and isinstance(x, module.FakeTensor)


def _window(window_size: Any) -> tuple[int, int]:
    if not (
        isinstance(window_size, (tuple, list))
        and len(window_size) == 2
        and all(isinstance(size, (int, torch.SymInt)) and not isinstance(size, bool) for size in window_size)
    ):
        raise TypeError(
            f"varlen_attention: window_size must be two ints (left, right): got {window_size!r}; -1 sets no limit"
        )
    left, right = (-1 if isinstance(size, int) and not 0 <= size < _NO_LIMIT else size for size in window_size)
    return left, right


def _check_tensors(*tensors: Any) -> None:
    for name, x in zip(("query", "key", "value"), tensors, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"varlen_attention: {name} must be a tensor: got {type(x).__name__}; convert with torch.as_tensor()"
            )


def _refuse_beside_jagged(given: dict[str, Tensor | None]) -> None:
    for name, x in given.items():
        if x is not None:
            raise ValueError(
                f"varlen_attention: {name} must be left out where query is jagged, which brings its own bounds"
            )
