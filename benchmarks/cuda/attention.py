"""N:M attention against dense attention on the device: the suites of ``dynattn bench``, in the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dynattn.kernels.cuda import launch as launching
from dynattn.lab.bench.cases import Case, Workload
from dynattn.lab.bench.record import Record, Result, save
from dynattn.lab.bench.roofline import Roofline
from dynattn.lab.bench.run import by_workload, measure
from dynattn.lab.bench.suites import suite
from dynattn.lab.machine import machine
from dynattn.methods import NM

SUITES = ("paper", "targets", "dtypes")
METHODS = (NM(1, 2), NM(2, 4))
TINY = Workload(heads=2, q_len=64, head_dim=64, dtype="bfloat16", causal=True)  # for a run without a device
_SECONDS = 0.8  # for a workload, all functions together; never less than the least number of rounds
_EARLIER_LENGTH = 4096


def run(output: Path, roofline: Roofline, time_is_left: Callable[[], bool]) -> list[dict]:
    """All suites; a workload for which no time is left is named and left out. Writes each suite's record."""
    records, results = [], []
    for name in SUITES:
        here = machine("cuda")
        for workload, methods in by_workload(suite(name, "cuda")).items():
            if not time_is_left():
                records.append({"label": workload.label, "left_out": "no time"})
                continue
            results += measure(workload, methods, device="cuda", seconds=_SECONDS)
            record = Record(name, here, roofline, tuple(results))
            save(record, output / f"{name}.json")
            records += (found := figures(record, workload))
            print("  ", line(found), flush=True)
        results.clear()
    return records


def without_a_device(output: Path) -> list[dict]:
    """The same code on a CPU, and one round."""
    results = measure(TINY, METHODS, rounds=1)
    record = Record("tiny", machine(), Roofline(None, 1.0, None, 1), tuple(results))
    save(record, output / "tiny.json")
    return figures(record, TINY)


def earlier_kernel() -> list[dict]:
    """The kernel of earlier devices on Hopper."""
    records, here = [], machine("cuda")
    with without_wgmma():
        for head_dim in (64, 128):
            cases = (Case(w, m) for w in _long(head_dim) for m in METHODS)
            for workload, methods in by_workload(cases).items():
                results = tuple(
                    replace(result, function=f"{result.function} by mma") if result.backend != "torch" else result
                    for result in measure(workload, methods, device="cuda", seconds=_SECONDS)
                )
                record = Record("earlier", here, Roofline(None, 1.0, None, 0), results)
                records += [found for found in figures(record, workload) if found["backend"] != "torch"]
    return records


def figures(record: Record, workload: Workload) -> list[dict]:
    """One entry a function: was it right, how long did it take, how many times as fast as the best dense one is it."""
    return [_figure(record, result) for result in record.by_workload()[workload].values()]


def line(found: list[dict]) -> str:
    """One workload in words."""
    words = []
    for entry in found:
        if "milliseconds" in entry:
            ratio = f" {entry['over_best_dense']:.2f}×" if entry["backend"] != "torch" else ""
            words.append(f"{entry['function']} {entry['milliseconds']:.3f} ms{ratio}")
        else:
            words.append(f"{entry['function']}: {entry['failed'] or ('right' if entry['right'] else 'wrong')}")
    return f"{found[0]['label']}: " + ", ".join(words) if found else ""


@contextmanager
def without_wgmma() -> Iterator[None]:
    """On Hopper, the kernel of earlier devices."""
    strides = launching.WGMMA_STRIDES
    launching.WGMMA_STRIDES = ()  # pyright: ignore
    launching._select.cache_clear()
    try:
        yield
    finally:
        launching.WGMMA_STRIDES = strides
        launching._select.cache_clear()


def _long(head_dim: int) -> list[Workload]:
    return [
        workload
        for workload in by_workload(suite("targets", "cuda"))
        if (workload.q_len, workload.head_dim, workload.causal) == (_EARLIER_LENGTH, head_dim, False)
    ]


def _figure(record: Record, result: Result) -> dict:
    entry = {
        "label": result.workload.label, "function": result.function, "backend": result.backend,
        "right": result.check.passed and not result.failed, "error": result.check.error, "bound": result.check.bound,
        "failed": result.failed,
    }  # fmt: skip
    if result.timing is None:
        return entry
    speedup = record.speedup(result.workload, result.function, record.baseline(result.workload))
    return entry | {
        "milliseconds": result.timing.median * 1e3, "quartiles": [1e3 * x for x in result.timing.quartiles],
        "samples": len(result.timing.samples), "over_best_dense": speedup.median if speedup else None,
        "dense_tflops": result.dense_flops / result.timing.median * 1e-12,
        "tflops": result.flops / result.timing.median * 1e-12,
        "call_milliseconds": None if result.call is None else result.call * 1e3,
    }  # fmt: skip
