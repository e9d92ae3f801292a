"""Results made up by hand."""

from __future__ import annotations

from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.check import Check
from dynattn.lab.bench.record import Result
from dynattn.lab.timing import Timing

RIGHT, WRONG = Check(1e-7, 1e-6, 40), Check(0.5, 1e-6, 40)
WORKLOAD = Workload(heads=12, q_len=2048, head_dim=64)


def result(function: str, samples: tuple[float, ...], flops: float = 6e9) -> Result:
    timing = Timing(samples, 3, tuple(0.0 for _ in samples))
    return Result(WORKLOAD, function, "torch", flops, 8_000_000_000, 1 << 20, RIGHT, timing)
