"""Calls the kernels of linear layers of a few tokens, of which inputs, outputs or weights are left out."""

from __future__ import annotations

import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.cpu import loader
from dynattn.kernels.cpu.arguments import LINEAR

MAX_TOKENS = 8
"""The kernels take at most so many tokens."""

NM_GROUPS = 16
"""Groups of a block of packed N:M weights."""


def linear_rows(
    x: Tensor, weight_t: Tensor, bias: Tensor | None, keep: Tensor, out: Tensor, isa: str, scale: Tensor | None = None
) -> None:
    """y = Σ_i x_i W[i, :] over the inputs that are kept, into a tensor that the caller gives. Checks nothing.

    Args:
        x: (tokens, in), float32 or bfloat16, contiguous, as all but the weights.
        weight_t: (in, out), dtype of ``x`` or int8; its rows are contiguous.
        bias: (out,), dtype of ``x``; or None.
        keep: bool (tokens, in).
        out: (tokens, out), dtype of ``x``.
        isa: ``avx512``, ``avx2``, ``neon`` or ``portable``.
        scale: float32 (out,), the factor of each output, where weights are int8.

    Raises:
        ImportError: the library is not there.
        MemoryError: no memory for the lists of what is kept.
        RuntimeError: the library refused; the text says why.
    """
    _call("linear_rows", x, weight_t, bias, keep, out, isa, scale=scale)


def linear_outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, out: Tensor, isa: str, scale: Tensor | None = None
) -> None:
    """y_j = W[j, :] · x for the outputs that are kept, and 0 for the others. Checks nothing.

    Args:
        x, bias, out, isa, scale: as in :func:`linear_rows`.
        weight: (out, in), dtype of ``x`` or int8; its rows are contiguous.
        keep: bool (tokens, out).

    Raises:
        As :func:`linear_rows`.
    """
    _call("linear_outputs", x, weight, bias, keep, out, isa, scale=scale)


def linear_nm_weight(
    x: Tensor, values: Tensor, places: Tensor, bias: Tensor | None, out: Tensor, n: int, m: int, isa: str
) -> None:
    """y = x W̃ᵀ + bias for N:M weights in packed form. Checks nothing.

    Args:
        x, bias, out, isa: as in :func:`linear_rows`.
        values: (out, ⌈in / (16 · m)⌉ · n · 16), dtype of ``x``: blocks of 16 groups, the first weights of all groups
            of a block before the second ones.
        places: int32 (out, words): a bit for each group of a block, for each bit of a place.
        n, m: of each ``m`` inputs in a row ``n`` have a weight; ``m`` is 2 or 4.

    Raises:
        As :func:`linear_rows`.
    """
    _call("linear_nm_weight", x, values, bias, None, out, isa, places=places, n=n, m=m)


def _call(
    function: str, x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor | None, out: Tensor, isa: str, *,
    scale: Tensor | None = None, places: Tensor | None = None, n: int = 0, m: int = 0,
) -> None:  # fmt: skip
    tokens, inputs = x.shape
    args = LINEAR.pack(
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        places=cpu._address(places),
        scale=cpu._address(scale),
        bias=cpu._address(bias),
        keep=cpu._address(keep),
        out=out.data_ptr(),
        tokens=tokens,
        inputs=inputs,
        outputs=out.shape[1],
        weight_stride=weight.stride(0),
        parallel=loader.parallel() or 0,
        dtype=cpu._DTYPES[x.dtype],
        weight_dtype=cpu._DTYPES[weight.dtype],
        n=n,
        m=m,
        isa=cpu._ISAS[isa],
        threads=torch.get_num_threads(),
    )
    cpu._run(function, args)
