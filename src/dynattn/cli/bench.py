"""``dynattn bench``: kernels against dense attention, fused and unfused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SUITE = "targets: lengths 384–4096; small: 64–384; paper: the shapes of arXiv:2203.00091; dtypes; layout; decode"


def bench(
    suite: Annotated[str, typer.Option(help=_SUITE)] = "targets",
    device: Annotated[str, typer.Option(help="cpu, or cuda for the GPU at hand and shapes that fill one.")] = "cpu",
    methods: Annotated[str, typer.Option(help="Short names, comma-separated, instead of the suite's own.")] = "",
    threads: Annotated[int, typer.Option(min=0, help="Of torch and the kernels; 0 leaves torch's setting.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for one workload, all functions together.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=0, help="Take exactly this many rounds instead of --seconds.")] = 0,
    backend: Annotated[str, typer.Option(help="As dynattn.attention takes it, for example cpu-avx2.")] = "auto",
    output: Annotated[Path, typer.Option(help="JSON with every sample and the machine.")] = Path("reports/bench.json"),
    report: Annotated[Path, typer.Option(help="HTML page with plots.")] = Path("reports/bench.html"),
) -> None:
    """Time the kernels against PyTorch's best dense attention and unfused attention, and check each result."""
    from dynattn.lab.bench.command import cases, run_command

    try:
        chosen = cases(suite, methods.split(",") if methods else [], device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    right = run_command(
        suite, chosen, device=device, threads=threads, seconds=seconds, rounds=rounds or None, backend=backend,
        output=output, report=report,
    )  # fmt: skip
    if not right:
        raise typer.Exit(1)
