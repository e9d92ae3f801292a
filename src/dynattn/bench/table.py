"""A record in words: the cells that the terminal's table and the HTML page share."""

from __future__ import annotations

from dynattn.bench.peers import UNFUSED
from dynattn.bench.record import Record, Result
from dynattn.bench.roofline import Roofline
from dynattn.bench.timing import Spread
from dynattn.methods import NM

COLUMNS = (
    "heads×length×dim", "function", "backend", "ms", "× SDPA", "quartiles", "× unfused", "× dense", "GFLOP/s",
    "of peak", "disturbed",
)  # fmt: skip
_TOO_MANY = 0.1  # share of disturbed samples that medians and quartiles bear without harm, with room to spare
NOTE = (
    "ms: median of one call. × SDPA: how many times as fast as PyTorch's scaled_dot_product_attention, the median of "
    "the ratios within each round, and their quartiles; × unfused and × dense: as fast as matmul, softmax, matmul, and "
    "as this library's own dense kernel. of peak: multiply-adds that the function needs (N:M: all of QKᵀ, N/M of PV) "
    "over the machine's measured peak. Every result was checked against the definition in float64 in the same run."
)
NOTE_MORE = "GFLOP/s counts the same multiply-adds. disturbed: samples during which threads waited for a core."


def cells(record: Record, result: Result) -> list[str]:
    """One cell a column of ``COLUMNS``; a wrong result shows no figure."""
    head = [result.workload.label, result.function, result.backend]
    if result.timing is None:
        return [*head, "WRONG", *[""] * (len(COLUMNS) - len(head) - 1)]
    timing, share = result.timing, record.share_of_peak(result)
    speedup = record.speedup(result.workload, result.function)
    return [
        *head,
        f"{timing.median * 1e3:.3g}" if timing.median < 0.1 else f"{timing.median * 1e3:.0f}",
        _ratio(speedup),
        f"{speedup.q1:.2f}–{speedup.q3:.2f}" if speedup else "",
        _ratio(record.speedup(result.workload, result.function, UNFUSED)),
        _ratio(record.speedup(result.workload, result.function, NM(1, 1).name)),
        f"{result.flops / timing.median * 1e-9:.0f}",
        f"{share:.0%}" if share is not None else "",
        f"{timing.disturbed}/{len(timing.samples)}" if timing.waited else "unknown",
    ]


def mistakes(record: Record) -> list[str]:
    """A line for each wrong result."""
    return [
        f"WRONG: {result.function} ({result.backend}) on {result.workload.label}: "
        f"off by {result.check.error:.1e}, may be {result.check.bound:.1e}"
        for result in record.results
        if not result.check.passed
    ]


def warning(record: Record) -> str:
    """What to say when other programs used the cores too often; empty where they did not."""
    timings = [result.timing for result in record.results if result.timing is not None]
    samples = sum(len(timing.waited) for timing in timings)
    disturbed = sum(timing.disturbed for timing in timings)
    if disturbed <= _TOO_MANY * samples:
        return ""
    return (
        f"{disturbed} of {samples} samples were disturbed: other programs used the cores. "
        "Do not rely on these figures; run again on an idle machine."
    )


def limits(roofline: Roofline) -> str:
    """The machine's measured limits, one line."""
    peak = "no kernel library, so no peak" if roofline.flops is None else f"{roofline.flops * 1e-9:.0f} GFLOP/s peak"
    isa = f" ({roofline.isa})" if roofline.isa else ""
    return f"{peak}{isa}, {roofline.bandwidth * 1e-9:.1f} GB/s copy, {roofline.threads} threads"


def _ratio(speedup: Spread | None) -> str:
    return f"{speedup.median:.2f}" if speedup else ""
