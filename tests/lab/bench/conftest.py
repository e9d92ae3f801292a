"""Records made up by hand, of a processor and of a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynattn.lab.bench.check import Check
from dynattn.lab.bench.record import Record
from dynattn.lab.bench.roofline import Roofline
from dynattn.lab.machine import machine
from tests.lab.bench.made_up import WORKLOAD, WRONG, result


@pytest.fixture
def record() -> Record:
    results = (
        result("sdpa", (0.10, 0.12, 0.11), 8e9),
        result("unfused", (0.30, 0.36, 0.33), 8e9),
        result("dense", (0.10, 0.12, 0.11), 8e9),
        result("nm-1-2", (0.05, 0.06, 0.055)),
        replace(result("nm-2-4", (1.0,)), check=WRONG, timing=None),
    )
    return Record("targets", machine(), Roofline(2e11, 2e10, "avx2", 2), results)


@pytest.fixture
def gpu_record() -> Record:
    workload = replace(WORKLOAD, dtype="bfloat16")
    times = {"sdpa": 1.2e-4, "sdpa-flash": 1.0e-4, "unfused": 1e-3, "nm-1-2": 0.8e-4}
    results = tuple(
        replace(result(name, (seconds,) * 3, 2e10), workload=workload, call=2e-4) for name, seconds in times.items()
    )
    refused = replace(results[0], function="sdpa-cudnn", timing=None, check=Check(0.0, 0.0, 0), failed="no kernel")
    here = machine() | {"gpu": {"name": "A GPU", "multiprocessors": 132, "driver": "580", "cuda": "13", "cudnn": 9}}
    return Record("paper", here, Roofline(8e14, 4e12, "bfloat16", 0), (*results, refused))
