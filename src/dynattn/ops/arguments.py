"""Converts the arguments of operators to what the CPU kernels take."""

from __future__ import annotations

from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import RowRule


def isa_of(backend: str) -> str:
    """The instruction set that a backend's name stands for: the best for ``cpu``, or that of ``cpu-<isa>``."""
    return cpu.best_isa() if backend == "cpu" else backend.removeprefix("cpu-")


def nm_isa(backend: str, query: Tensor) -> str:
    """The same for N:M attention or whole blocks, for which ``cpu`` may stand for a matrix unit."""
    if backend == "cpu":
        return cpu.nm_isa(query.dtype, query.shape[2])
    return isa_of(backend)


def row_isa(backend: str, query: Tensor, key: Tensor, rule: RowRule) -> str:
    """The same for rows that choose by their own scores, of which the output alone is asked for, without dropout."""
    if backend == "cpu":
        return cpu.row_isa(query.dtype, query.shape[2], key.shape[2], rule)
    return isa_of(backend)


def integer(seed: Tensor | None) -> int:
    """The seed of dropout as a number; 0 without dropout."""
    return 0 if seed is None else int(seed)


def rows_contiguous(x: Tensor) -> Tensor:
    """``x``, or a copy where its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def expanded(attn_mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """The mask as a view of shape (batch, heads, q_len, kv_len), with strides of 0 where it broadcasts."""
    return None if attn_mask is None else attn_mask.expand(*query.shape[:3], key.shape[2])
