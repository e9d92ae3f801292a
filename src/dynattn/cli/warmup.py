"""``dynattn warmup``: compile the CUDA kernels ahead of their first use."""

from __future__ import annotations

from typing import Annotated

import typer


def warmup(
    arch: Annotated[
        str, typer.Option(help="Comma-separated, for example sm_80,sm_90a; needs no GPU. Without: the GPUs at hand.")
    ] = "",
    head_dims: Annotated[str, typer.Option(help="Of your models, comma-separated; without: 64 and 128.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Every kernel: all sizes and masks, kept mass too.")] = False,
    training: Annotated[bool, typer.Option(help="The kernels of the backward too.")] = False,
    jobs: Annotated[int, typer.Option(min=0, help="Compile so many at a time; 0 for one a core.")] = 0,
) -> None:
    """Compile the CUDA kernels now, so that the first call does not wait for them (a second or two for each)."""
    import time

    from rich.progress import track

    from dynattn.kernels.cuda.loader import cache_folder
    from dynattn.kernels.cuda.warm import chosen, chosen_for_training, warm

    try:
        archs = [name.strip() for name in arch.split(",")] if arch else _at_hand()
        sizes = [int(size) for size in head_dims.split(",")] if head_dims else []
        work = [*chosen(archs, sizes, every), *(chosen_for_training(archs, sizes, every) if training else ())]
        start = time.perf_counter()
        compiled = sum(track(warm(work, jobs), f"{len(work)} kernels for {', '.join(archs)}", total=len(work)))
    except (ValueError, ImportError, RuntimeError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    seconds = time.perf_counter() - start
    there = len(work) - compiled
    typer.echo(f"{compiled} kernels compiled in {seconds:.0f} s, {there} were there; they are in {cache_folder()}")


def _at_hand() -> list[str]:
    """Architectures of the GPUs that torch sees."""
    import torch

    from dynattn.kernels.cuda.driver import device

    archs = sorted({device(index).arch for index in range(torch.cuda.device_count())})
    if not archs:
        raise ValueError("warmup: torch sees no CUDA device here; say what to compile for, as in --arch sm_80,sm_90a")
    return archs
