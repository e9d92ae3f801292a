"""``dynattn bench``: kernels against dense attention, fused and unfused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynattn.cli.options import Threads, counted, listed, output_file, timed
from dynattn.cli.running import FAILED_CHECK, running

_SUITE = (
    "targets: lengths 384-4096; small: 64-384; paper: the shapes of arXiv:2203.00091; dtypes; layout; training; "
    "decode; call, on a CPU: one or four keys, which shows what a call costs"
)
_MOST_ROUNDS = 1_000_000


def bench(
    suite: Annotated[str, typer.Option(help=_SUITE)] = "targets",
    device: Annotated[str, typer.Option(help="cpu, or cuda for the GPU at hand and shapes that fill one.")] = "cpu",
    methods: Annotated[str, typer.Option(help="Short names, comma-separated, instead of the suite's own.")] = "",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The dtype of every workload: float32, bfloat16, float16; tf32 on a GPU. Default: the suite's own."
        ),
    ] = None,
    threads: Threads = None,
    seconds: Annotated[
        float, typer.Option(help="Time for one workload, all functions together.", callback=timed())
    ] = 3.0,
    rounds: Annotated[
        int | None,
        typer.Option(help="Take exactly this many rounds instead of --seconds.", callback=counted(most=_MOST_ROUNDS)),
    ] = None,
    backend: Annotated[str, typer.Option(help="As dynattn.attention takes it, for example cpu-avx2.")] = "auto",
    output: Annotated[Path, typer.Option(help="JSON with every sample and the machine.", callback=output_file)] = Path(
        "reports/bench.json"
    ),
    report: Annotated[Path, typer.Option(help="HTML page with plots.", callback=output_file)] = Path(
        "reports/bench.html"
    ),
) -> None:
    """Time the kernels against PyTorch's best dense attention and unfused attention, and check each result.

    Ends with code 1 where a result is wrong.
    """
    with running("bench"):
        from dynattn.lab.bench.command import Settings, run
        from dynattn.lab.terminal import console

        settings = Settings(
            suite=suite, device=device, methods=listed(methods), threads=threads, seconds=seconds, rounds=rounds,
            backend=backend, dtype=dtype,
        )  # fmt: skip
        if not run(settings, output, report, console()):
            raise typer.Exit(FAILED_CHECK)
