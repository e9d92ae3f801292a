"""Compiles kernels ahead of their first use, on all cores."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from dynattn.children import Pool
from dynattn.kernels.cuda import loader
from dynattn.kernels.cuda.driver import device
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


def _check_cache() -> None:
    """Make sure, before minutes of work, that a file can be written into the cache."""
    folder = loader.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise OSError(_unwritable(error.strerror or str(error))) from error


def _unwritable(reason: str) -> str:
    return (
        f"warmup: the cache must be a folder that can be written: {loader.cache_folder()}: {reason}; make room there, "
        "or set DYNATTN_CACHE to another folder, also where the kernels are to be used"
    )


def _compile(variant: Instantiation, arch: str) -> tuple[bool, bool]:
    """Compile a variant. Returns whether it was compiled anew, and whether it is on the disk now."""
    done = loader.compile_variant(variant, arch)
    return bool(done.log), done.kept


def at_hand() -> list[str]:
    """Architectures of the GPUs that torch sees.

    Raises:
        ValueError: there is none.
    """
    archs = sorted({device(index).arch for index in range(torch.cuda.device_count())})
    if not archs:
        raise ValueError("warmup: torch sees no CUDA device here; say what to compile for, as in --arch sm_80,sm_90a")
    return archs


def chosen(archs: Sequence[str], head_dims: Sequence[int], every: bool) -> list[tuple[Variant, str]]:
    """What to compile, by architecture.

    Args:
        archs: ``sm_80``, ``sm_90a``, …
        head_dims: the head dimensions of the models to come; () for 64 and 128.
        every: compile all variants: all masks, with kept mass and counts, with dropout. Otherwise only those without
            mask and with boolean masks, without counts and dropout, with stride 16 but without window and sinks, and
            not in TF32.

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
    """The kernels that a backward needs besides those of :func:`chosen`, which has the same arguments."""
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


def warm(work: Sequence[tuple[Instantiation, str]], jobs: int = 0) -> Generator[bool, None, None]:
    """Compile each of ``work`` and leave it on the disk. Closing the iterator ends the compilers at once.

    Args:
        work: as :func:`chosen` gives it.
        jobs: processes at a time; 0 for one a core.

    Yields:
        As each is done: True where it was compiled, False where it was there already.

    Raises:
        ImportError: cuda-core or NVRTC is missing.
        OSError: the cache cannot be written, so nothing would be there afterwards.
        RuntimeError: the compiler refused one, or a process died.
    """
    reason = loader.missing()
    if reason is not None:
        raise ImportError(f"warmup: {reason}")
    _check_cache()
    with Pool(min(jobs or os.cpu_count() or 1, max(1, len(work)))) as pool:
        try:
            for future in as_completed(pool.submit([(_compile, variant, arch) for variant, arch in work])):
                compiled, kept = future.result()
                if not kept:
                    raise OSError(_unwritable("the disk may be full"))
                yield compiled
        except BrokenProcessPool as error:
            raise RuntimeError(
                "warmup: compilers must live until they are done: one died, for want of memory as a rule; what was "
                "compiled is kept: run the command again with fewer --jobs"
            ) from error
