"""Compile kernels ahead of their first use, on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from dynattn.kernels.cuda import loader
from dynattn.kernels.cuda.variants import HEAD_DIMS, WGMMA_HEAD_DIMS, Instantiation, Variant, variants
from dynattn.kernels.cuda.variants_backward import (
    BackwardVariant,
    WgmmaBackwardVariant,
    main_variants,
    small_variants,
    wgmma_variants,
)

_COMMON_HEAD_DIMS = (64, 128)
_COMMON_MASKS = ("none", "bool")


def chosen(archs: Sequence[str], head_dims: Sequence[int], every: bool) -> list[tuple[Variant, str]]:
    """What to compile, by architecture.

    Args:
        archs: ``sm_80``, ``sm_90a``, …
        head_dims: of the models to come; () for 64 and 128.
        every: all masks, kept mass and counts, dropout too; else no mask and boolean masks, without them, stride 16
            without window and sinks, and no TF32.

    Raises:
        ValueError: no kernel takes an architecture or a head_dim.
    """
    sizes = {size for wanted in head_dims or _COMMON_HEAD_DIMS for size in _padded(wanted)}
    for arch in archs:
        loader.check_arch(Variant("mma", "bfloat16", HEAD_DIMS[0], 1, 2), arch)
    return [
        (variant, arch)
        for arch in archs
        for variant in variants()
        if variant.kernel == "mma" or arch == "sm_90a"
        if every or ((variant.kernel, variant.head_dim) in sizes and _common(variant))
    ]


def chosen_for_training(archs: Sequence[str], head_dims: Sequence[int], every: bool) -> list[tuple[Instantiation, str]]:
    """What a backward needs besides: as :func:`chosen`, which has the forward kernel that goes with it."""
    sizes = {size for wanted in head_dims or _COMMON_HEAD_DIMS for size in _padded(wanted)}
    needed, of_hopper = (
        [variant for variant in pool if every or ((kernel, variant.head_dim) in sizes and _common(variant))]
        for kernel, pool in (("mma", main_variants()), ("wgmma", wgmma_variants()))
    )
    return [
        (variant, arch)
        for arch in archs
        for variant in (*small_variants(), *needed, *(of_hopper if arch == "sm_90a" else ()))
    ]


def warm(work: Sequence[tuple[Instantiation, str]], jobs: int = 0) -> Iterator[bool]:
    """Compile each of ``work`` and leave it on the disk.

    Args:
        work: as :func:`chosen` gives it.
        jobs: processes at a time; 0 for one a core.

    Yields:
        As each is done: True where it was compiled, False where it was there already.

    Raises:
        ImportError: cuda-core or NVRTC is missing.
        RuntimeError: the compiler refused one.
    """
    reason = loader.missing()
    if reason is not None:
        raise ImportError(f"warmup: {reason}")
    # spawned, since a forked process inherits torch's threads and locks but not their state
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs or os.cpu_count() or 1, max(1, len(work))), mp_context=spawn) as pool:
        for future in as_completed([pool.submit(_compile, variant, arch) for variant, arch in work]):
            yield future.result()


def _padded(head_dim: int) -> Iterator[tuple[str, int]]:
    """The kernels that take ``head_dim``, and the size that each pads it to."""
    if not 1 <= head_dim <= HEAD_DIMS[-1]:
        raise ValueError(f"warmup: head_dim must be between 1 and {HEAD_DIMS[-1]}: got {head_dim}")
    for kernel, sizes in (("mma", HEAD_DIMS), ("wgmma", WGMMA_HEAD_DIMS)):
        fits = [size for size in sizes if size >= head_dim]
        yield from ((kernel, size) for size in fits[:1])


def _common(variant: Variant | BackwardVariant | WgmmaBackwardVariant) -> bool:
    aux = isinstance(variant, Variant) and variant.aux
    dropout = not isinstance(variant, WgmmaBackwardVariant) and variant.dropout
    if variant.mask not in _COMMON_MASKS or aux or dropout or variant.dtype == "tf32":
        return False
    return variant.stride == 1 or not variant.band


def _compile(variant: Instantiation, arch: str) -> bool:
    return bool(loader.compile_variant(variant, arch).log)
