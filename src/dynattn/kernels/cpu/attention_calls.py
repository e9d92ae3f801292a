"""Calls the kernels of attention: N:M, rows and blocks that choose by their scores, skips, and the gradients."""

from __future__ import annotations

from torch import Tensor

from dynattn.kernels.cpu import runner
from dynattn.kernels.cpu.arguments import NM_BACKWARD, ROW_FORWARD, SKIP_FORWARD
from dynattn.kernels.cpu.packing import address, block_args, forward_args
from dynattn.kernels.pattern import ANYWHERE, BlockRule, Pattern, Positions, RowRule

MAX_HEAD_DIM = 512
"""The widest head that the kernels take, for queries, keys and values alike."""


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
    positions: Positions = ANYWHERE,
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
            :func:`~dynattn.kernels.cpu.isas.float_parts` says, without dropout, and no backward follows.
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
    args = forward_args(
        query, key, value, mask, out, pattern, isa, logsumexp=logsumexp, counts=(kept_mass, kept, allowed), seed=seed,
        needs_grad=needs_grad, blocks=blocks, block_size=block_size, block_queries=block_queries, positions=positions,
    )  # fmt: skip
    runner.run("nm_forward", args)


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
    positions: Positions = ANYWHERE,
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
    args = forward_args(
        query, key, value, mask, out, pattern, isa, logsumexp=logsumexp, counts=(kept_mass, kept, allowed),
        thresholds=thresholds, seed=seed, needs_grad=thresholds is not None, positions=positions,
    )  # fmt: skip
    runner.run("row_forward", args + ROW_FORWARD.pack(**rule._asdict()))


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
    args = forward_args(
        query, key, value, mask, out, pattern, isa, logsumexp=logsumexp, seed=seed, needs_grad=needs_grad,
        blocks=blocks, block_size=block_size,
    )  # fmt: skip
    runner.run("skip_forward", args + SKIP_FORWARD.pack(kept=kept_blocks.data_ptr(), margin=margin))


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
    dense = Pattern(1, 1, 0, 0, 1, causal, scale)
    args = forward_args(query, key, key, mask, query, dense, isa, block_size=rule.block)
    runner.run("choose_blocks", args + block_args(rule, chosen))


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
    positions: Positions = ANYWHERE,
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
    args = forward_args(
        query, key, value, mask, out, pattern, isa, logsumexp=logsumexp, thresholds=thresholds, seed=seed,
        needs_grad=True, blocks=blocks, block_size=block_size, block_queries=block_queries, first=first,
        positions=positions,
    )  # fmt: skip
    args += NM_BACKWARD.pack(
        grad_out=grad_out.data_ptr(),
        grad_logsumexp=grad_logsumexp.data_ptr(),
        d_query=d_query.data_ptr(),
        d_key=d_key.data_ptr(),
        d_value=d_value.data_ptr(),
        d_scores=address(d_scores),
        grad_out_strides=grad_out.stride()[:3],
        d_query_strides=d_query.stride()[:3],
        d_key_strides=d_key.stride()[:3],
        d_value_strides=d_value.stride()[:3],
    )
    runner.run("nm_backward", args)
