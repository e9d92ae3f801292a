"""The instruction sets that there are kernels for: which of them run here, which one a call takes, and how fast one is.

A tile engine counts as one: what multiplies tiles of bfloat16 numbers on a matrix unit, or as a matrix unit does.
"""

from __future__ import annotations

from functools import cache

import torch

from dynattn.kernels.cpu import loader
from dynattn.kernels.pattern import RowRule

CODES = {
    "portable": 0,
    "avx2": 1,
    "avx512": 2,
    "tiles-portable": 3,
    "avx512bf16": 4,
    "amx": 5,
    "neon": 6,
}
"""Their numbers in ``dynattn_cpu.h``."""

TILE_ENGINES = ("amx", "avx512bf16", "tiles-portable")
"""The instruction sets that are engines of the tile kernels."""

_PARTS = {"highest": 3, "high": 2, "medium": 1}  # bfloat16 numbers that a float32 number is taken as on tiles
_FEW_QUERIES = 6  # as nm/few_plan.h has it for values that are not wide
_FEW_QUERIES_IN_PAIRS = 8  # likewise, where products are of pairs of bfloat16 numbers
_RANKED_ON_TILES = 256  # keys of a row that keeps some by rank, at most


@cache
def best_isa() -> str:
    """The fastest instruction set that the library holds and this processor runs."""
    best = loader.library().dynattn_best_isa()
    return next(name for name, code in CODES.items() if code == best)


@cache
def isa_available(name: str) -> bool:
    """True where the library holds kernels for ``name`` and this processor runs them."""
    return isa_refusal(name) is None


@cache
def isa_refusal(name: str) -> str | None:
    """Why the kernels for ``name`` cannot run here, or None where they can."""
    if name not in CODES:
        return f"there are no kernels for {name}"
    if not loader.is_available():
        return loader.unavailable_reason()
    refusal = loader.library().dynattn_isa_refusal(CODES[name])
    return None if refusal is None else refusal.decode()


@cache
def tile_engine() -> str | None:
    """The tile engine that is made to be the fastest on this processor; None where there is none."""
    fastest = loader.library().dynattn_tile_isa()
    return next((name for name, code in CODES.items() if code == fastest), None)


@cache
def tile_disagreement(engine: str) -> str | None:
    """What a tile engine computes otherwise than the portable engine does, on this processor; None where they agree.

    A few small problems are computed by both, in some hundredths of a second, once for the process. Emulated
    instructions have shown that the code follows the manual; this shows that the processor does.

    Args:
        engine: ``amx``, ``avx512bf16`` or ``tiles-portable``.
    """
    found = loader.library().dynattn_tile_disagreement(CODES[engine])
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
    return loader.library().dynattn_fma_peak(CODES[isa], threads, seconds, loader.parallel())
