"""Calls the kernels of linear layers of which inputs, outputs or weights are left out."""

from __future__ import annotations

import torch
from torch import Tensor

from dynattn.kernels.cpu import loader, runner
from dynattn.kernels.cpu.arguments import DTYPES, LINEAR
from dynattn.kernels.cpu.isas import CODES

MAX_TOKENS = 8
"""So many tokens are few: there are kernels that read nothing of what is left out."""

NM_GROUPS = 16
"""Groups of a block of packed N:M weights."""

CHOICE_MS = (2, 4, 8, 16)
"""The kernels choose among so many inputs in a row."""

_ADDRESSES = LINEAR.part("x", "out")  # of the tensors, with which the arguments begin
_NO_ADDRESSES = dict.fromkeys(("x", "weight", "places", "scale", "bias", "keep", "thresholds", "factors", "out"), 0)


def linear_rows(
    x: Tensor, weight_t: Tensor, bias: Tensor | None, out: Tensor, isa: str, *, keep: Tensor | None = None,
    thresholds: Tensor | None = None, factors: Tensor | None = None, n: int = 0, m: int = 0,
    scale: Tensor | None = None,
) -> None:  # fmt: skip
    """y = Σ_i x_i W[i, :] over the inputs that are kept, into a tensor that the caller gives. Checks nothing.

    Of ``keep``, ``thresholds`` and ``n`` with ``m`` one says which these are.

    Args:
        x: (tokens, in), float32 or bfloat16, contiguous, as all but the weights. More than :data:`MAX_TOKENS` are
            float32, with weights of float32.
        weight_t: (in, out), dtype of ``x`` or int8; its rows are contiguous.
        bias: (out,), dtype of ``x``; or None.
        out: (tokens, out), dtype of ``x``.
        isa: ``avx512``, ``avx2``, ``neon`` or ``portable``.
        keep: bool (tokens, in); or None.
        thresholds: float32 (1,) or (in,): kept is what is larger, and NaN; or None.
        factors: float32 (in,), by which sizes are weighed; or None.
        n, m: of every ``m`` inputs in a row the ``n`` largest are kept, and NaN; ``m`` is one of :data:`CHOICE_MS`.
        scale: float32 (out,), the factor of each output, where weights are int8.

    Raises:
        ImportError: the library is not there.
        MemoryError: no memory for the lists of what is kept.
        RuntimeError: the library refused; the text says why.
    """
    own = prepare(x, weight_t, out.shape[1], isa, thresholds=thresholds, n=n, m=m)
    run("linear_rows", own, x, weight_t, bias, out, keep=keep, thresholds=thresholds, factors=factors, scale=scale)


def linear_choice(
    x: Tensor, out: Tensor, isa: str, *, thresholds: Tensor | None = None, factors: Tensor | None = None, n: int = 0,
    m: int = 0,
) -> None:  # fmt: skip
    """Which inputs :func:`linear_rows` keeps, into a bool tensor (tokens, in) that the caller gives. Checks nothing.

    Args:
        x, isa, thresholds, factors, n, m: as in :func:`linear_rows`.
        out: filled with the choice.

    Raises:
        As :func:`linear_rows`.
    """
    own = prepare(x, x, out.shape[1], isa, thresholds=thresholds, n=n, m=m)
    run("linear_choice", own, x, None, None, out, thresholds=thresholds, factors=factors)


def linear_outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, isa: str, *, keep: Tensor, scale: Tensor | None = None
) -> None:
    """y_j = W[j, :] · x for the outputs that are kept, and 0 for the others. Checks nothing.

    Args:
        x, bias, out, isa, scale: as in :func:`linear_rows`, for at most :data:`MAX_TOKENS`.
        weight: (out, in), dtype of ``x`` or int8; its rows are contiguous.
        keep: bool (tokens, out).

    Raises:
        As :func:`linear_rows`.
    """
    run("linear_outputs", prepare(x, weight, out.shape[1], isa), x, weight, bias, out, keep=keep, scale=scale)


def linear_nm_weight(
    x: Tensor, values: Tensor, places: Tensor, bias: Tensor | None, out: Tensor, n: int, m: int, isa: str
) -> None:
    """y = x W̃ᵀ + bias for N:M weights in packed form. Checks nothing.

    Args:
        x, bias, out, isa: as in :func:`linear_rows`, for at most :data:`MAX_TOKENS`.
        values: (out, ⌈in / (16 · m)⌉ · n · 16), dtype of ``x``: blocks of 16 groups, the first weights of all groups
            of a block before the second ones.
        places: int32 (out, words): a bit for each group of a block, for each bit of a place.
        n, m: of each ``m`` inputs in a row ``n`` have a weight; ``m`` is 2 or 4.

    Raises:
        As :func:`linear_rows`.
    """
    run("linear_nm_weight", prepare(x, values, out.shape[1], isa, n=n, m=m), x, values, bias, out, places=places)


def prepare(
    x: Tensor, weight: Tensor, outputs: int, isa: str, *, thresholds: Tensor | None = None, n: int = 0, m: int = 0
) -> bytes:
    """What the library is given for such tensors, except for their addresses: for calls made again.

    Args:
        x, weight, isa, thresholds, n, m: as the functions above are given them.
        outputs: the length of the output's rows.
    """
    tokens, inputs = x.shape
    args = LINEAR.pack(
        **_NO_ADDRESSES,
        tokens=tokens,
        inputs=inputs,
        outputs=outputs,
        weight_stride=weight.stride(0),
        threshold_stride=int(thresholds is not None and len(thresholds) > 1),
        parallel=loader.parallel() or 0,
        dtype=DTYPES[x.dtype],
        weight_dtype=DTYPES[weight.dtype],
        n=n,
        m=m,
        isa=CODES[isa],
        threads=torch.get_num_threads(),
    )
    return args[_ADDRESSES.size :]


def run(
    function: str, prepared: bytes, x: Tensor, weight: Tensor | None, bias: Tensor | None, out: Tensor,
    keep: Tensor | None = None, thresholds: Tensor | None = None, factors: Tensor | None = None,
    scale: Tensor | None = None, places: Tensor | None = None,
) -> None:  # fmt: skip
    """Run a kernel for tensors like those that :func:`prepare` was given.

    Args:
        function: its name.
        prepared: what :func:`prepare` gave.
        x, weight, bias, out, keep, thresholds, factors, scale, places: as the functions above are given them.

    Raises:
        As :func:`linear_rows`.
    """
    addresses = _ADDRESSES.pack(
        x.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if places is None else places.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if keep is None else keep.data_ptr(),
        0 if thresholds is None else thresholds.data_ptr(),
        0 if factors is None else factors.data_ptr(),
        out.data_ptr(),
    )
    runner.run(function, addresses + prepared)
