"""What ``dynattn bench`` does: reserve the files, run a suite with progress, write record and page, print the table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dynattn.backends import backends
from dynattn.lab.bench import cuda
from dynattn.lab.bench.cases import DTYPES, Case
from dynattn.lab.bench.page import page
from dynattn.lab.bench.record import Record, save
from dynattn.lab.bench.roofline import roofline
from dynattn.lab.bench.run import by_workload, measure
from dynattn.lab.bench.suites import suite
from dynattn.lab.bench.terminal import show
from dynattn.lab.machine import describe, machine
from dynattn.lab.progress import Stage
from dynattn.lab.records import reserve, write_whole
from dynattn.lab.reports import shown
from dynattn.lab.terminal import say, stages
from dynattn.methods import NM, parse

_DEVICES = ("cpu", "cuda")
_DTYPES = {"cpu": tuple(name for name in DTYPES if name != "tf32"), "cuda": tuple(DTYPES)}


def _nm(name: str) -> NM:
    method = parse(name)
    if not isinstance(method, NM):
        raise ValueError(f"bench: methods must be N:M methods: got {name!r}")
    return method


def _measure(settings: Settings, here: dict[str, Any], stage: Stage) -> Record:
    advance = stage("machine's limits", 1)
    dtypes = tuple(dict.fromkeys(case.workload.dtype for case in settings.cases))
    limit = roofline(device=settings.device, dtypes=dtypes)
    advance()
    results = []
    for workload, methods in by_workload(settings.cases).items():
        advance = stage(workload.label, 1)
        results += measure(
            workload, methods, device=settings.device, backend=settings.backend, seconds=settings.seconds,
            rounds=settings.rounds,
        )  # fmt: skip
        advance()
    advance = stage("machine's limits, again", 1)
    limit = limit.or_higher(roofline(device=settings.device, dtypes=dtypes))
    advance()
    return Record(settings.suite, here, limit, tuple(results))


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Settings:
    """What to time.

    Args:
        suite: its name.
        device: ``cpu`` or ``cuda``; it decides the suite's shapes.
        methods: short names, instead of the suite's own; empty for those.
        threads: how many threads torch and the kernels use; None leaves torch's setting.
        seconds, rounds: for each workload, as :func:`dynattn.lab.timing.interleaved` takes them.
        backend: as :func:`dynattn.attention` takes it.
        dtype: the dtype of all workloads, instead of the suite's own; None for those.

    Raises:
        ValueError: no such suite, dtype, method, device or backend; or nothing can run on the device here.
    """

    suite: str = "targets"
    device: str = "cpu"
    methods: tuple[str, ...] = ()
    threads: int | None = None
    seconds: float = 3.0
    rounds: int | None = None
    backend: str = "auto"
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.device not in _DEVICES:
            raise ValueError(f"bench: device must be one of {', '.join(_DEVICES)}: got {self.device!r}")
        if self.dtype is not None and self.dtype not in _DTYPES[self.device]:
            raise ValueError(
                f"bench: dtype must be one of {', '.join(_DTYPES[self.device])} on {self.device}: got {self.dtype!r}"
            )
        known = ("auto", *backends())
        if self.backend not in known:
            raise ValueError(f"bench: backend must be one of {', '.join(known)}: got {self.backend!r}")
        reason = cuda.unavailable_reason() if self.device == "cuda" else None
        if reason is not None:
            raise ValueError(f"bench: device must be one that can run here: got {self.device!r}, and {reason}")
        _ = self.cases  # unknown names are refused here

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """The cases to run."""
        own = suite(self.suite, self.device)
        if self.dtype is not None:
            own = tuple(dict.fromkeys(replace(c, workload=replace(c.workload, dtype=self.dtype)) for c in own))
        if not self.methods:
            return own
        chosen = [_nm(method) for method in self.methods]
        return tuple(Case(workload, method) for workload in by_workload(own) for method in chosen)


def run(settings: Settings, output: Path, report: Path, console: Console) -> bool:
    """Run, write and show; the table is printed whether the files could be written or not.

    Args:
        settings: what to time.
        output: JSON file.
        report: HTML file.
        console: where to print.

    Returns:
        False where a result was wrong.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: the backend cannot run a case, a file cannot be written, or both
            are the same one.
    """
    if output.absolute() == report.absolute() and not output.is_char_device():  # /dev/null takes both
        raise ValueError(f"bench: --output and --report must be two files: got {output} for both; give another name")
    with reserve(output, report):
        with _threads(settings.threads):
            here = machine(settings.device)
            say(console, describe(here))
            # The progress is redrawn only between workloads: a thread that redraws it would take a core from the
            #     samples.
            with stages(console, redraw=False) as stage:
                record = _measure(settings, here, stage)
        with shown(lambda: show(record, console), console, report, output):
            save(record, output)
            write_whole(report, page(record))
    return not any(result.wrong for result in record.results)
