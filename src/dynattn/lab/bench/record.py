"""The record of a run: what was timed, on what, with every sample; to a JSON file and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.check import Check
from dynattn.lab.bench.peers import DENSE, SDPA
from dynattn.lab.bench.roofline import Roofline
from dynattn.lab.records import read_json, reason, write_json
from dynattn.lab.timing import Spread, Timing

_REMEDY = "measure again, or name the file that dynattn bench wrote"


@dataclass(frozen=True)
class Result:
    """One function on one workload.

    Attributes:
        workload: the problem.
        function: ``sdpa``, ``unfused`` or the short name of a method.
        backend: what ran: ``torch`` for the peers, else the backend of :func:`dynattn.explain` and, on a GPU, which
            of its kernels.
        flops: the FLOPs that the function needs.
        dense_flops: the FLOPs that dense attention needs for the same.
        bytes: the bytes that have to be moved at least once.
        check: whether the result was right.
        timing: the time; None where the result was not right.
        call: on a GPU, the seconds of a call from Python in a row of calls; None where that was not measured.
        failed: why a peer does not take the workload; empty where it does.
    """

    workload: Workload
    function: str
    backend: str
    flops: float
    dense_flops: float
    bytes: int
    check: Check
    timing: Timing | None
    call: float | None = None
    failed: str = ""

    @property
    def wrong(self) -> bool:
        """Whether there was a result, and it was wrong."""
        return not self.failed and not self.check.passed


@dataclass(frozen=True)
class Record:
    """A run.

    Attributes:
        suite: the name of the suite.
        machine: the machine, see :func:`dynattn.lab.machine.machine`.
        roofline: the machine's measured limits.
        results: the results, in the order of the run.
        format: the format of the file, a number that is raised when a field changes its meaning.
    """

    suite: str
    machine: dict[str, Any]
    roofline: Roofline
    results: tuple[Result, ...] = field(default=())
    format: int = 1

    def by_workload(self) -> dict[Workload, dict[str, Result]]:
        """Results by workload and function."""
        groups: dict[Workload, dict[str, Result]] = {}
        for result in self.results:
            groups.setdefault(result.workload, {})[result.function] = result
        return groups

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU was measured."""
        return self.machine.get("gpu") is not None

    def baseline(self, workload: Workload) -> str:
        """The function over which speed-ups are taken: the fastest dense attention on a GPU, and SDPA on a CPU."""
        group = self.by_workload().get(workload, {})
        medians = {
            name: result.timing.median for name, result in group.items() if name in DENSE and result.timing is not None
        }
        return min(medians, key=lambda name: medians[name]) if self.on_gpu and medians else SDPA

    def speedup(self, workload: Workload, function: str, baseline: str = SDPA) -> Spread | None:
        """How many times as fast as the baseline; None where either was not timed."""
        group = self.by_workload().get(workload, {})
        timings = [group[name].timing if name in group else None for name in (function, baseline)]
        own, base = timings
        return own.speedup(base) if own is not None and base is not None else None

    def share_of_peak(self, result: Result) -> float | None:
        """FLOPs a second that the function needs, over the most that the machine was measured to do in its dtype.

        None where either was not measured. Older records have no peak of a GPU in float32.
        """
        peak = self.roofline.peak(result.workload.dtype)
        return None if result.timing is None or peak is None else result.flops / result.timing.median / peak

    def share_of_bandwidth(self, result: Result) -> float | None:
        """Bytes a second that have to be moved, over the machine's; None where the function was not timed."""
        return None if result.timing is None else result.bytes / result.timing.median / self.roofline.bandwidth


def save(record: Record, path: Path) -> None:
    """Write a record as JSON. This needs no package, so that a run on a bare machine keeps what it measured.

    A figure that is not finite, as a wrong result's error may be, is written as Python's ``json`` and :func:`load` have
    it: ``Infinity``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(record))


def load(path: Path) -> Record:
    """Read a record.

    Raises:
        ImportError: pydantic is missing.
        ValueError: the file is not a record.
    """
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError as error:
        raise ImportError("dynattn.lab.bench: reading records needs pydantic; pip install 'dynattn[cli]'") from error
    value = read_json(path, _REMEDY)
    try:
        return TypeAdapter(Record).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"read: {path} must hold a record of dynattn bench: {reason(error)}; {_REMEDY}") from error
