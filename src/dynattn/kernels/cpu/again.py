"""Calls of attention that are made again, for which everything but the addresses of the tensors is packed once.

The arguments of a call begin with the addresses; what follows depends on shapes, strides and options alone. A
``prepare`` function packs that, the caller keeps it, and each call gives it back with tensors that lie alike.
:mod:`~dynattn.kernels.cpu.texts` has the same for texts.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dynattn.kernels.cpu import loader
from dynattn.kernels.cpu.arguments import NM_BACKWARD, ROW_FORWARD, SKIP_FORWARD
from dynattn.kernels.cpu.packing import ADDRESSES, addresses, block_args, forward_args
from dynattn.kernels.cpu.runner import refuse
from dynattn.kernels.pattern import BlockRule, Pattern, RowRule

_GRADIENT_ADDRESSES = NM_BACKWARD.part("grad_out", "grad_out_strides")  # the backward's own, and those strides
_STRIDES = NM_BACKWARD.part("d_query_strides", "d_value_strides")  # of the gradients


def prepare_nm_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, pattern: Pattern, isa: str,
    needs_grad: bool = False,
) -> bytes:  # fmt: skip
    """What :func:`~dynattn.kernels.cpu.nm_forward` gives the library for such tensors, except for their addresses.

    Args:
        query, key, value, mask, out, pattern, isa, needs_grad: as there, for the output alone and, where a backward
            follows, the logsumexp.
    """
    return forward_args(query, key, value, mask, out, pattern, isa, needs_grad=needs_grad)[ADDRESSES.size :]


def prepare_row_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, rule: RowRule, pattern: Pattern,
    isa: str,
) -> bytes:  # fmt: skip
    """The same of :func:`~dynattn.kernels.cpu.row_forward`, for the output alone."""
    call = prepare_nm_forward(query, key, value, mask, out, pattern, isa)
    return call + ROW_FORWARD.pack(**rule._asdict())


def prepare_skip_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, margin: float, pattern: Pattern,
    isa: str,
) -> bytes:  # fmt: skip
    """The same of :func:`~dynattn.kernels.cpu.skip_forward`, for the output alone, of all blocks."""
    call = prepare_nm_forward(query, key, value, mask, out, pattern, isa)
    return call + SKIP_FORWARD.pack(kept=0, margin=margin)


def prepare_block_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, rule: BlockRule, pattern: Pattern,
    isa: str,
) -> bytes:  # fmt: skip
    """The same of :func:`~dynattn.kernels.cpu.choose_blocks` and N:M attention over what it keeps, for the output
    alone."""
    args = forward_args(query, key, value, mask, out, pattern, isa, block_size=rule.block)
    return args[ADDRESSES.size :] + block_args(rule, None)


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
    status = function(addresses(query, key, value, mask, out, logsumexp) + prepared)
    if status != 0:
        refuse("forward_again", status)


def prepare_nm_backward(d_query: Tensor, d_key: Tensor, d_value: Tensor) -> bytes:
    """What :func:`~dynattn.kernels.cpu.nm_backward` gives the library for gradients of such strides, behind the strides
    of ``grad_out``."""
    return _STRIDES.pack(*d_query.stride()[:3], *d_key.stride()[:3], *d_value.stride()[:3])


def nm_backward_again(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    out: Tensor, logsumexp: Tensor, gradients: tuple[Tensor, Tensor, Tensor], forward: bytes, backward: bytes,
) -> None:  # fmt: skip
    """:func:`~dynattn.kernels.cpu.nm_backward` for tensors of the shapes and strides that ``forward`` and ``backward``
    were prepared for; ``grad_out`` of any strides but the last, and no gradient of the logsumexp."""
    d_query, d_key, d_value = gradients
    own = _GRADIENT_ADDRESSES.pack(
        grad_out.data_ptr(), 0, d_query.data_ptr(), d_key.data_ptr(), d_value.data_ptr(), 0, *grad_out.stride()[:3]
    )
    status = loader.library().dynattn_nm_backward(
        addresses(query, key, value, mask, out, logsumexp) + forward + own + backward
    )
    if status != 0:
        refuse("nm_backward", status)
