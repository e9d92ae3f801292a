"""``dynattn warmup``: compile the CUDA kernels ahead of their first use."""

from __future__ import annotations

from typing import Annotated

import typer

from dynattn.cli.options import counted, listed, whole_numbers
from dynattn.cli.running import running


def warmup(
    arch: Annotated[
        str, typer.Option(help="Comma-separated, for example sm_80,sm_90a; needs no GPU. Without: the GPUs at hand.")
    ] = "",
    head_dims: Annotated[
        str,
        typer.Option(
            help="The head dims of your models, comma-separated. Default: 64 and 128.", callback=whole_numbers
        ),
    ] = "",
    every: Annotated[bool, typer.Option("--all", help="Every kernel: all sizes and masks, kept mass too.")] = False,
    training: Annotated[bool, typer.Option(help="The kernels of the backward too.")] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Compile so many at a time. Default: one a core.", callback=counted(most=1024))
    ] = None,
) -> None:
    """Compile the CUDA kernels now, so that the first call does not wait for them (a second or two for each)."""
    with running("warmup", "cuda"):
        import time
        from contextlib import closing

        from dynattn.kernels.cuda.loader import cache_folder
        from dynattn.kernels.cuda.warm import at_hand, chosen, chosen_for_training, warm
        from dynattn.lab.terminal import console, say, stages

        archs = list(dict.fromkeys(listed(arch))) or at_hand()
        sizes = [int(size) for size in listed(head_dims)]
        work = [*chosen(archs, sizes, every), *(chosen_for_training(archs, sizes, every) if training else ())]
        screen, began, done, compiled = console(), time.perf_counter(), 0, 0
        try:
            with stages(screen) as stage, closing(warm(work, jobs or 0)) as kernels:
                advance = stage(f"{len(work)} kernels for {', '.join(archs)}", len(work))
                for anew in kernels:
                    done += 1
                    compiled += anew
                    advance()
        except KeyboardInterrupt:
            say(screen, f"stopped: {done} of {len(work)} kernels are in {cache_folder()}")
            raise
        seconds, folder = time.perf_counter() - began, cache_folder()
        say(
            screen,
            f"{compiled} kernels compiled in {seconds:.0f} s, {done - compiled} were there; all are in {folder}",
        )
