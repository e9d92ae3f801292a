"""The methods that take part, by kind of model and length."""

from __future__ import annotations

from dynattn.lab.models import Kind
from dynattn.methods import parse

DENSE = "dense"
"""Dense attention as :func:`dynattn.attention` computes it: what a layer keeps that cannot be made sparse."""

_BLOCK = 64


def candidates(kind: Kind, length: int) -> tuple[str, ...]:
    """Short names, the likeliest to pay first: a small budget of time takes the first of them alone.

    1:4 is none of them: its kernels are no faster than dense attention (docs/methods/nm.md).

    Args:
        kind: the kind of the model.
        length: tokens.
    """
    sinks = 4 if kind == "decoder" else 1
    block = _BLOCK if length >= 16 * _BLOCK else 16
    windows = [w for w in (length // 16, length // 8, length // 4, length // 32) if w >= 4]
    names = [
        f"blockskip-4.0-in(blockmass-0.98-b{block}-similar)", f"blockskip-3.0-in(blockmass-0.98-b{block}-similar)",
        "blockskip-4.0", f"nm-1-2-x16-w{_BLOCK}-s{sinks}", f"blockskip-5.0-in(blockmass-0.99-b{block}-similar)",
        f"blockmass-0.98-b{block}-similar", "blockskip-3.0", "nm-1-2-x16", f"blocktopk-0.25-b{block}-bounds",
        f"blockmass-0.95-b{block}-similar", "blockskip-2.0", f"nm-1-2-w{_BLOCK}-s{sinks}",
        f"blocktopk-0.25-b{block}-similar", "blockskip-5.0",
        *(f"blocktopk-{ratio}-b{block}-mean" for ratio in (0.25, 0.5)), f"window-{max(4, length // 16)}-s{sinks}",
        f"blocktopk-0.125-b{block}-bounds", "nm-1-2", "nm-2-4", f"blocktopk-0.25-b{block}-sampled", "topk-0.125",
        *(f"window-{w}-s{sinks}" for w in windows),
        *(f"blocktopk-{ratio}-b{block}-{by}" for by in ("sampled", "mean") for ratio in (0.25, 0.125, 0.5)),
        *(f"blockmass-{mass}-b{block}-sampled" for mass in (0.95, 0.9, 0.99)),
        *(f"blocktopk-{ratio}-b{block}-antidiagonal" for ratio in (0.25, 0.125)),
        "topk-0.25", f"threshold-{_threshold(length)}", "mass-0.95",
    ]  # fmt: skip
    return tuple(dict.fromkeys(parse(name).name for name in names))


def _threshold(length: int) -> str:
    """A weight that costs little: at 2048 tokens 0.0007 loses 0.01 to 0.02 nats; weights fall as the length grows."""
    return f"{0.0007 * 2048 / length:.6f}"
