"""The fused C++ kernels, called through ctypes.

The library stands beside this file, where the build installs it, and is loaded at its first use (``loader.py``). It
takes plain pointers and strides (``dynattn_cpu.h``), so one build serves every version of torch and Python. Its loops
run on torch's own threads: the kernels are given ``GOMP_parallel`` of the OpenMP runtime that torch has loaded.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from dynattn.kernels.cpu import loader
from dynattn.kernels.cpu.arguments import BLOCK_FORWARD, NM_BACKWARD, NM_FORWARD, NM_TEXTS, ROW_FORWARD, SKIP_FORWARD
from dynattn.kernels.cpu.loader import is_available, unavailable_reason
from dynattn.kernels.pattern import BlockRule, Pattern, Positions, RowRule
from dynattn.maths import dropout
from dynattn.methods.base import Reach

MAX_HEAD_DIM = 512
"""The widest head that the kernels take, for queries, keys and values alike."""

_ISAS = {
    "portable": 0,
    "avx2": 1,
    "avx512": 2,
    "tiles-portable": 3,
    "avx512bf16": 4,
    "amx": 5,
    "neon": 6,
}
TILE_ENGINES = ("amx", "avx512bf16", "tiles-portable")
"""The instruction sets that are engines of the tile kernels."""

_PARTS = {"highest": 3, "high": 2, "medium": 1}  # bfloat16 numbers that a float32 number is taken as on tiles
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.bool: 3, torch.int8: 4}
_FEW_QUERIES = 6  # as nm/few_queries.h has it for values that are not wide
_FEW_QUERIES_IN_PAIRS = 8  # likewise, where products are of pairs of bfloat16 numbers
_RANKED_ON_TILES = 256  # keys of a row that keeps some by rank, at most
_OUT_OF_MEMORY, _BAD_PAGE = 2, 4
_ERRORS = {1: "this processor does not run the instruction set asked for", 3: "an argument is out of its range"}
_ADDRESSES = NM_FORWARD.part("query", "logsumexp")  # of a plain call's tensors, with which the arguments begin
_GRADIENT_ADDRESSES = NM_BACKWARD.part("grad_out", "grad_out_strides")  # likewise the backward's own, and those strides
_STRIDES = NM_BACKWARD.part("d_query_strides", "d_value_strides")  # of the gradients
_TEXT_ADDRESSES = NM_TEXTS.part("query_start", "block_table")  # with which the texts' own arguments begin
_NO_STRIDES = (0, 0, 0, 0)
_ANYWHERE = Positions()
_WORD64 = (1 << 64) - 1
PAGE_KEYS = 16
"""Pages that are read in place hold a multiple of so many keys."""


def nm_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    logsumexp: Tensor | None,
    kept_mass: Tensor | None,
    kept: Tensor | None,
    allowed: Tensor | None,
    pattern: Pattern,
    isa: str,
    *,
    seed: int = 0,
    needs_grad: bool = False,
    blocks: Tensor | None = None,
    block_size: int = 0,
    block_queries: int | None = None,
    positions: Positions = _ANYWHERE,
) -> None:
    """N:M attention, forward, into tensors that the caller gives. Checks nothing.

        out = softmax(scale · QKᵀ + mask, over the pairs that N:M keeps) V

    Args:
        query: (batch, heads, q_len, head_dim), float32, bfloat16 or float16; last dimension contiguous, as in all.
        key: (batch, kv_heads, kv_len, head_dim).
        value: (batch, kv_heads, kv_len, value_dim).
        mask: expanded to (batch, heads, q_len, kv_len), any strides; bool, float32, bfloat16 or float16; or None.
        out: (batch, heads, q_len, value_dim), dtype of ``query``.
        logsumexp: (batch, heads, q_len), float32, contiguous; or None.
        kept_mass, kept, allowed: (batch, heads, q_len), contiguous, float32, int32 and int32; or all None.
        pattern: what to keep and how to score.
        isa: ``avx512``, ``avx2``, ``neon`` or ``portable``; of bfloat16 also ``amx``, ``avx512bf16`` or
            ``tiles-portable``, which round the logsumexp to that of bfloat16 weights where neither counts nor a
            gradient are asked for. Of float32 ``amx`` and ``tiles-portable`` compute by as many bfloat16 parts as
            :func:`float_parts` says, without dropout, and no backward follows.
        seed: the seed of dropout, 64 bits.
        needs_grad: :func:`nm_backward` will follow, so that scores must round as they do there.
        blocks: bool (batch, heads, ⌈q_len / block_queries⌉, ⌈kv_len / block_size⌉), contiguous: False where a block of
            queries and keys is dropped whole, before N:M chooses; or None. What blocks drop is not computed.
        block_size: keys of a block, between 1 and 1024, and queries too unless ``block_queries`` says otherwise.
        block_queries: queries of a block; None for as many as keys.
        positions: what of the choice is dropped, and of dropped blocks kept, for where it stands. Counts but those of
            what is kept are not right where something is dropped.

    Raises:
        ImportError: the library is not there.
        MemoryError: no memory for the packed keys.
        RuntimeError: the library refused; the text says why.

    Source: arXiv:2203.00091.
    """
    args = _forward_args(
        query, key, value, mask, out, logsumexp, (kept_mass, kept, allowed), pattern, isa, seed, needs_grad,
        blocks, block_size, block_queries=block_queries, positions=positions,
    )  # fmt: skip
    _run("nm_forward", args)


def prepare_nm_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, pattern: Pattern, isa: str,
    needs_grad: bool = False,
) -> bytes:  # fmt: skip
    """What :func:`nm_forward` gives the library for such tensors, except for their addresses: for calls made again.

    Args:
        query, key, value, mask, out, pattern, isa, needs_grad: as in :func:`nm_forward`, for the output alone and,
            where a backward follows, the logsumexp.
    """
    none = (None, None, None)
    args = _forward_args(query, key, value, mask, out, None, none, pattern, isa, 0, needs_grad, None, 0)
    return args[_ADDRESSES.size :]


def prepare_row_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, rule: RowRule, pattern: Pattern,
    isa: str,
) -> bytes:  # fmt: skip
    """The same of :func:`row_forward`, for the output alone."""
    call = prepare_nm_forward(query, key, value, mask, out, pattern, isa)
    return call + ROW_FORWARD.pack(**rule._asdict())


def prepare_skip_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, margin: float, pattern: Pattern,
    isa: str,
) -> bytes:  # fmt: skip
    """The same of :func:`skip_forward`, for the output alone, of all blocks."""
    call = prepare_nm_forward(query, key, value, mask, out, pattern, isa)
    return call + SKIP_FORWARD.pack(kept=0, margin=margin)


def prepare_block_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, rule: BlockRule, pattern: Pattern,
    isa: str,
) -> bytes:  # fmt: skip
    """The same of :func:`choose_blocks` and :func:`nm_forward` over what it keeps, for the output alone."""
    none = (None, None, None)
    args = _forward_args(query, key, value, mask, out, None, none, pattern, isa, 0, False, None, rule.block)
    return args[_ADDRESSES.size :] + _block_args(rule, None)


def forward(name: str) -> Callable[[bytes], int]:
    """A function of the library, to be called again: ``nm_forward``, ``row_forward``, ``skip_forward`` or
    ``block_forward``."""
    return getattr(loader.library(), f"dynattn_{name}")


def forward_again(
    function: Callable[[bytes], int], query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor,
    prepared: bytes, logsumexp: Tensor | None = None,
) -> None:  # fmt: skip
    """One of :func:`forward` for tensors of the shapes and strides that ``prepared`` was made for; the mask may be one
    that is yet to be expanded to them. A logsumexp is filled by N:M attention alone."""
    status = function(_addresses(query, key, value, mask, out, logsumexp) + prepared)
    if status != 0:
        _refuse("forward_again", status)


def prepare_nm_backward(d_query: Tensor, d_key: Tensor, d_value: Tensor) -> bytes:
    """What :func:`nm_backward` gives the library for gradients of such strides, behind the strides of ``grad_out``."""
    return _STRIDES.pack(*d_query.stride()[:3], *d_key.stride()[:3], *d_value.stride()[:3])


def nm_backward_again(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    out: Tensor, logsumexp: Tensor, gradients: tuple[Tensor, Tensor, Tensor], forward: bytes, backward: bytes,
) -> None:  # fmt: skip
    """:func:`nm_backward` for tensors of the shapes and strides that ``forward`` and ``backward`` were prepared for;
    ``grad_out`` of any strides but the last, and no gradient of the logsumexp."""
    d_query, d_key, d_value = gradients
    own = _GRADIENT_ADDRESSES.pack(
        grad_out.data_ptr(), 0, d_query.data_ptr(), d_key.data_ptr(), d_value.data_ptr(), 0, *grad_out.stride()[:3]
    )
    status = loader.library().dynattn_nm_backward(
        _addresses(query, key, value, mask, out, logsumexp) + forward + own + backward
    )
    if status != 0:
        _refuse("nm_backward", status)


def nm_texts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor | None,
    kept_mass: Tensor | None,
    kept: Tensor | None,
    allowed: Tensor | None,
    pattern: Pattern,
    isa: str,
    *,
    query_start: Tensor,
    key_start: Tensor,
    key_count: Tensor,
    block_table: Tensor | None,
) -> bool:
    """N:M attention of texts of different lengths, forward, into tensors that the caller gives. Checks no argument.

    Each text is computed as :func:`nm_forward` computes it alone, to the bit; all share the threads.

    Args:
        query: (1, heads, tokens, head_dim), the texts one after another; dtype and strides as in :func:`nm_forward`.
        key: (1, kv_heads, key tokens, head_dim); with ``block_table`` (pages, kv_heads, page_size, head_dim).
        value: like ``key``, with a last dimension of its own.
        out: (1, heads, tokens, value_dim).
        logsumexp: contiguous, float32: text t has (heads, its tokens) from ``heads · query_start[t]`` on; or None.
        kept_mass, kept, allowed: likewise, float32, int32 and int32; or all None.
        pattern: what to keep and how to score, without dropout.
        isa: ``avx512``, ``avx2``, ``neon`` or ``portable``.
        query_start: (texts + 1,), int64, on the CPU and contiguous, as all that follow.
        key_start, key_count: (texts,), int64: the first key of a text, and how many it has.
        block_table: (texts, most pages), int32; key j of text t is row ``j % page_size`` of page
            ``block_table[t, j // page_size]``. page_size is a multiple of :data:`PAGE_KEYS`.

    Returns:
        False where ``block_table`` names a page that there is not, for a key; nothing is then written.

    Raises:
        As :func:`nm_forward`.

    Source: arXiv:2203.00091; pages, arXiv:2309.06180.
    """
    args = _forward_args(
        query, key, value, None, out, logsumexp, (kept_mass, kept, allowed), pattern, isa, 0, False, None, 0
    )
    args += NM_TEXTS.pack(
        query_start=query_start.data_ptr(),
        key_start=key_start.data_ptr(),
        key_count=key_count.data_ptr(),
        block_table=_address(block_table),
        texts=len(key_count),
        table_width=0 if block_table is None else block_table.shape[1],
        pages=key.shape[0],
        page_size=key.shape[2],
    )
    status = loader.library().dynattn_nm_texts(args)
    if status not in (0, _BAD_PAGE):
        _refuse("nm_texts", status)
    return status == 0


class PreparedTexts(NamedTuple):
    """What :func:`nm_texts` gives the library besides addresses: of the tensors, and of where texts lie in them."""

    call: bytes
    texts: bytes


def prepare_nm_texts(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, pattern: Pattern, isa: str, texts: int
) -> PreparedTexts:
    """What :func:`nm_texts` gives the library for such tensors without pages: for calls made again.

    Args:
        query, key, value, out, pattern, isa: as in :func:`nm_texts`, for the output alone.
        texts: how many there are.
    """
    none = (None, None, None)
    call = _forward_args(query, key, value, None, out, None, none, pattern, isa, 0, False, None, 0)
    own = NM_TEXTS.pack(
        query_start=0, key_start=0, key_count=0, block_table=0, texts=texts, table_width=0, pages=0, page_size=0
    )
    return PreparedTexts(call[_ADDRESSES.size :], own[_TEXT_ADDRESSES.size :])


def nm_texts_again(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, prepared: PreparedTexts, *, query_start: array[int],
    key_start: array[int], key_count: array[int],
) -> None:  # fmt: skip
    """:func:`nm_texts` for tensors that lie in memory as those of :func:`prepare_nm_texts` do, and where texts lie in
    arrays of 64-bit numbers, which are made faster than tensors."""
    places = _TEXT_ADDRESSES.pack(*(numbers.buffer_info()[0] for numbers in (query_start, key_start, key_count)), 0)
    status = loader.library().dynattn_nm_texts(
        _addresses(query, key, value, None, out, None) + prepared.call + places + prepared.texts
    )
    if status != 0:
        _refuse("nm_texts", status)


def row_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    logsumexp: Tensor | None,
    kept_mass: Tensor | None,
    kept: Tensor | None,
    allowed: Tensor | None,
    thresholds: tuple[Tensor, Tensor] | None,
    rule: RowRule,
    pattern: Pattern,
    isa: str,
    *,
    seed: int = 0,
    positions: Positions = _ANYWHERE,
) -> None:
    """Attention of rows that choose by their own scores, forward, into tensors that the caller gives. Checks nothing.

        out = softmax(scale · QKᵀ + mask, over the pairs that ``rule`` keeps) V

    Args:
        query, key, value, mask, out, logsumexp, kept_mass, kept, allowed, seed: as in :func:`nm_forward`.
        thresholds: two of (batch, heads, q_len), contiguous, float32 and int32, to be filled: the smallest score that a
            row keeps, in the kernels' own unit, and the last key kept of those that have it. :func:`nm_backward`
            chooses by them. None where no backward follows.
        rule: what a row keeps.
        pattern: dense: how to score; its window and sinks are joined to what the rule keeps.
        isa: ``avx512``, ``avx2``, ``neon`` or ``portable``; of bfloat16, for the output alone, without dropout, window
            and positions, also an engine of tiles, which leaves numbers that are not finite, or too large, to
            ``best_isa()``.
        positions: what of all that is dropped for where it stands.

    Raises:
        As :func:`nm_forward`.

    Source: arXiv:2010.03688.
    """
    args = _forward_args(
        query, key, value, mask, out, logsumexp, (kept_mass, kept, allowed), pattern, isa, seed,
        thresholds is not None, None, 0, thresholds=thresholds or (None, None), positions=positions,
    )  # fmt: skip
    _run("row_forward", args + ROW_FORWARD.pack(**rule._asdict()))


def skip_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    kept_blocks: Tensor,
    margin: float,
    pattern: Pattern,
    isa: str,
    *,
    seed: int = 0,
    needs_grad: bool = False,
    blocks: Tensor | None = None,
    block_size: int = 0,
) -> None:
    """Attention that skips what its scores show to be small, forward, into tensors that the caller gives. Checks
    nothing.

    Args:
        query, key, value, mask, out, logsumexp, isa, seed: as in :func:`nm_forward`; of tile engines bfloat16 alone.
        needs_grad: a backward will follow, or the logsumexp is of use, and is then not rounded to bfloat16 weights.
        kept_blocks: bool (batch, heads, ⌈q_len / 8⌉, ⌈kv_len / 16⌉), contiguous, all False; True where kept.
        margin: how far below a query's largest score so far the largest of a block lies that it does not ask for.
        pattern: dense: how to score.
        blocks: as in :func:`nm_forward`: what they drop is not scored, as if it were forbidden; or None.
        block_size: queries and keys of these, a multiple of 16.

    Raises:
        As :func:`nm_forward`.

    Source: arXiv:2512.12087.
    """
    none = (None, None, None)
    args = _forward_args(
        query, key, value, mask, out, logsumexp, none, pattern, isa, seed, needs_grad, blocks, block_size
    )  # fmt: skip
    _run("skip_forward", args + SKIP_FORWARD.pack(kept=kept_blocks.data_ptr(), margin=margin))


def choose_blocks(
    query: Tensor, key: Tensor, mask: Tensor | None, chosen: Tensor, rule: BlockRule, causal: bool, scale: float,
    isa: str,
) -> None:  # fmt: skip
    """The blocks of queries and keys that are kept, by the mean scores of their allowed pairs. Checks nothing.

    Args:
        query: (batch, heads, q_len, head_dim), float32, bfloat16 or float16; last dimension contiguous.
        key: (batch, kv_heads, kv_len, head_dim), likewise.
        mask: expanded to (batch, heads, q_len, kv_len), any strides; bool, float32, bfloat16 or float16; or None.
        chosen: bool (batch, heads, ⌈q_len / block⌉, ⌈kv_len / block⌉), contiguous, to be filled.
        rule: which are kept.
        causal: forbid keys after the query, aligned bottom-right.
        scale: factor of the scores.
        isa: as :func:`nm_forward` has it; an engine of tiles stands for ``best_isa()``.

    Raises:
        As :func:`nm_forward`.

    Source: arXiv:2407.02490.
    """
    pattern, none = Pattern(1, 1, 0, 0, 1, causal, scale), (None, None, None)
    args = _forward_args(query, key, key, mask, query, None, none, pattern, isa, 0, False, None, rule.block)
    _run("choose_blocks", args + _block_args(rule, chosen))


def _block_args(rule: BlockRule, chosen: Tensor | None) -> bytes:
    return BLOCK_FORWARD.pack(
        chosen=_address(chosen),
        floor=rule.floor,
        numerator=rule.numerator,
        denominator=rule.denominator,
        mass=rule.mass,
        alike=rule.alike,
        window=rule.window,
        sinks=rule.sinks,
    )


def nm_backward(
    grad_out: Tensor,
    grad_logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    d_query: Tensor,
    d_key: Tensor,
    d_value: Tensor,
    d_scores: Tensor | None,
    pattern: Pattern,
    isa: str,
    *,
    seed: int = 0,
    first: tuple[int, int] = (0, 0),
    blocks: Tensor | None = None,
    block_size: int = 0,
    block_queries: int | None = None,
    thresholds: tuple[Tensor, Tensor] | None = None,
    positions: Positions = _ANYWHERE,
) -> None:
    """Gradients of N:M attention with the choice held fixed, into tensors that the caller gives. Checks nothing.

        dV = Pᵀ dO,    dS = P ∘ (dO Vᵀ - rowsum(dO ∘ out) + dlogsumexp),    dQ = scale · dS K,    dK = scale · dSᵀ Q

    The choice is made again from the same products in the same order, so that it is the forward's to the bit.

    Args:
        grad_out: (batch, heads, q_len, value_dim), dtype of ``query``; last dimension contiguous, as in all.
        grad_logsumexp: (batch, heads, q_len), float32, contiguous.
        query, key, value, mask, pattern, isa, seed, blocks, block_size, block_queries, positions: as the forward had
            them.
        out, logsumexp: what the forward gave.
        d_query, d_key, d_value: shaped like ``query``, ``key`` and ``value``, in their dtype.
        d_scores: (batch, heads, q_len, kv_len), float32, contiguous, all 0: gradient of a mask that was added; or None.
        first: batch and head of the forward's tensors that these, a part of them, begin with: dropout draws by them.
        thresholds: what :func:`row_forward` gave, for its gradients.

    Raises:
        As :func:`nm_forward`.

    Source: arXiv:2203.00091; the formulas with logsumexp saved, arXiv:2205.14135.
    """
    args = _forward_args(
        query, key, value, mask, out, logsumexp, (None, None, None), pattern, isa, seed, True, blocks, block_size,
        first, thresholds or (None, None), block_queries, positions,
    )  # fmt: skip
    args += NM_BACKWARD.pack(
        grad_out=grad_out.data_ptr(),
        grad_logsumexp=grad_logsumexp.data_ptr(),
        d_query=d_query.data_ptr(),
        d_key=d_key.data_ptr(),
        d_value=d_value.data_ptr(),
        d_scores=_address(d_scores),
        grad_out_strides=grad_out.stride()[:3],
        d_query_strides=d_query.stride()[:3],
        d_key_strides=d_key.stride()[:3],
        d_value_strides=d_value.stride()[:3],
    )
    _run("nm_backward", args)


@cache
def best_isa() -> str:
    """The fastest instruction set that the library holds and this processor runs."""
    best = loader.library().dynattn_best_isa()
    return next(name for name, code in _ISAS.items() if code == best)


@cache
def isa_available(name: str) -> bool:
    """True where the library holds kernels for ``name`` and this processor runs them."""
    return isa_refusal(name) is None


@cache
def isa_refusal(name: str) -> str | None:
    """Why the kernels for ``name`` cannot run here, or None where they can."""
    if name not in _ISAS:
        return f"there are no kernels for {name}"
    if not is_available():
        return unavailable_reason()
    refusal = loader.library().dynattn_isa_refusal(_ISAS[name])
    return None if refusal is None else refusal.decode()


@cache
def tile_engine() -> str | None:
    """The tile engine that is made to be the fastest on this processor; None where there is none."""
    fastest = loader.library().dynattn_tile_isa()
    return next((name for name, code in _ISAS.items() if code == fastest), None)


@cache
def tile_disagreement(engine: str) -> str | None:
    """What a tile engine computes otherwise than the portable engine does, on this processor; None where they agree.

    A few small problems are computed by both, in some hundredths of a second, once for the process. Emulated
    instructions have shown that the code follows the manual; this shows that the processor does.

    Args:
        engine: ``amx``, ``avx512bf16`` or ``tiles-portable``.
    """
    found = loader.library().dynattn_tile_disagreement(_ISAS[engine])
    return None if found is None else found.decode()


@cache
def tile_isa() -> str | None:
    """The tile engine that is taken unasked on this processor: :func:`tile_engine` where its results are right."""
    engine = tile_engine()
    return engine if engine is not None and tile_disagreement(engine) is None else None


def float_parts() -> int:
    """How many bfloat16 numbers a float32 number is taken as on tiles: what ``torch.set_float32_matmul_precision`` says
    of PyTorch's own products. 3 for ``highest``, with six products for each of float32's; 2 for ``high``, with three; 1
    for ``medium``, with one."""
    return _PARTS[torch.get_float32_matmul_precision()]


def nm_isa(dtype: torch.dtype, q_len: int) -> str:
    """The fastest instruction set for N:M attention or whole blocks, forward and backward alike.

    A gradient makes the choice again from the forward's own sums, which other kernels round otherwise, so that both
    have one answer. Tiles take bfloat16. For few queries keys are read in place, which tiles of 16 queries do not gain
    from.

    Args:
        dtype: the dtype of the tensors.
        q_len: queries of a head.
    """
    few = _FEW_QUERIES_IN_PAIRS if tile_engine() == "avx512bf16" else _FEW_QUERIES  # the processors with such products
    tiled = dtype == torch.bfloat16 and q_len > few
    return (tile_isa() if tiled else None) or best_isa()


def row_isa(dtype: torch.dtype, q_len: int, kv_len: int, rule: RowRule) -> str:
    """The fastest instruction set for rows that choose by their own scores, of which the output alone is asked for.

    Tiles multiply the values of all keys, which takes as long as to add up a fourth of them one by one: what long rows
    keep by rank is listed.

    Args:
        dtype, q_len: as for :func:`nm_isa`.
        kv_len: keys of a head.
        rule: what a row keeps.
    """
    by_rank = rule.weight < 0 and rule.mass == 0
    return best_isa() if by_rank and kv_len > _RANKED_ON_TILES else nm_isa(dtype, q_len)


def fma_peak(isa: str, threads: int, seconds: float) -> float:
    """Floating-point operations a second that multiply-adds reach at best: the roofline, measured.

    Args:
        isa: ``avx512``, ``avx2``, ``neon`` or ``portable``.
        threads: threads to run, at least 1.
        seconds: how long to measure.

    Returns:
        Operations a second, a multiply-add counted as two; 0 where the processor does not run ``isa``.
    """
    return loader.library().dynattn_fma_peak(_ISAS[isa], threads, seconds, loader.parallel())


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _addresses(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, logsumexp: Tensor | None
) -> bytes:
    """The addresses with which the arguments of a plain call begin."""
    return _ADDRESSES.pack(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), _address(mask), out.data_ptr(), _address(logsumexp)
    )


def _forward_args(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, logsumexp: Tensor | None,
    counts: tuple[Tensor | None, Tensor | None, Tensor | None], pattern: Pattern, isa: str,
    seed: int, needs_grad: bool, blocks: Tensor | None, block_size: int, first: tuple[int, int] = (0, 0),
    thresholds: tuple[Tensor | None, Tensor | None] = (None, None), block_queries: int | None = None,
    positions: Positions = _ANYWHERE,
) -> bytes:  # fmt: skip
    if pattern.n == 0:  # a window by itself: dense attention that is cut down to it
        positions = Positions(Reach(pattern.window, pattern.sinks))
        pattern = pattern._replace(n=1, window=0, sinks=0)
    within, within_sinks = positions.within or (0, 0)
    batch, heads, q_len, head_dim = query.shape
    _, kv_heads, kv_len, value_dim = value.shape
    kept_mass, kept, allowed = counts
    threshold, last_tie = thresholds
    first_batch, first_head = first
    return NM_FORWARD.pack(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        mask=_address(mask),
        out=out.data_ptr(),
        logsumexp=_address(logsumexp),
        kept_mass=_address(kept_mass),
        kept=_address(kept),
        allowed=_address(allowed),
        blocks=_address(blocks),
        threshold=_address(threshold),
        last_tie=_address(last_tie),
        query_strides=query.stride()[:3],
        key_strides=key.stride()[:3],
        value_strides=value.stride()[:3],
        out_strides=out.stride()[:3],
        mask_strides=_NO_STRIDES if mask is None else mask.stride(),
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=head_dim,
        value_dim=value_dim,
        parallel=loader.parallel() or 0,
        seed=seed & _WORD64,
        scale=pattern.scale,
        dtype=_DTYPES[query.dtype],
        mask_dtype=0 if mask is None else _DTYPES[mask.dtype],
        n=pattern.n,
        m=pattern.m,
        window=pattern.window,
        sinks=pattern.sinks,
        within=within,
        within_sinks=within_sinks,
        beyond_blocks=positions.beyond_blocks,
        stride=pattern.stride,
        causal=pattern.causal,
        isa=_ISAS[isa],
        threads=torch.get_num_threads(),
        needs_grad=needs_grad,
        block_queries=block_size if block_queries is None else block_queries,
        block_size=block_size,
        drop_below=dropout.threshold(pattern.dropout_p),
        keep_factor=1 / (1 - pattern.dropout_p),
        first_batch=first_batch,
        first_head=first_head,
        parts=float_parts() if isa in TILE_ENGINES and query.dtype == torch.float32 else 0,
    )


def _run(function: str, args: bytes) -> None:
    status = getattr(loader.library(), f"dynattn_{function}")(args)
    if status != 0:
        _refuse(function, status)


def _refuse(function: str, status: int) -> NoReturn:
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"{function}: no memory for what is packed; use a smaller batch or free memory")
    raise RuntimeError(f"{function}: {_ERRORS.get(status, f'the library returned {status}')}; this is a bug in dynattn")
