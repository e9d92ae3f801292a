"""Records made up by hand."""

from __future__ import annotations

from dynattn.lab.bench.check import Check
from dynattn.lab.bench.record import Record, Result
from dynattn.lab.bench.roofline import Roofline
from dynattn.lab.bench.suites import suite
from dynattn.lab.machine import machine
from dynattn.lab.timing import Timing

SECONDS = {"sdpa": 1.8, "unfused": 6.0, "dense": 1.3, "nm-1-2": 1.0, "nm-2-4": 1.04, "nm-1-2-w64-s4": 1.05}


def record_of(name: str, seconds: dict[str, float]) -> Record:
    """Each function takes the same time on every workload, a little more in the second of the three rounds."""
    results = []
    for workload, methods in _groups(name).items():
        for function in ("sdpa", "unfused", *methods):
            samples = (seconds[function], 1.1 * seconds[function], seconds[function])
            timing = Timing(samples, 1, (0.0, 0.0, 0.0))
            results.append(Result(workload, function, "cpu", 1e9, workload.dense_flops, 8, Check(0.0, 1e-6, 8), timing))
    return Record(name, machine(), Roofline(2e11, 2e10, "avx2", 2), tuple(results))


def _groups(name: str) -> dict:
    groups = {}
    for case in suite(name):
        groups.setdefault(case.workload, []).append(case.method.name)
    return groups
