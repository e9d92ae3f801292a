"""The table of a record: the cells that the terminal and the HTML page share."""

from __future__ import annotations

from dynattn.lab.bench.peers import SDPA, UNFUSED
from dynattn.lab.bench.record import Record, Result
from dynattn.lab.bench.roofline import Roofline
from dynattn.lab.timing import Spread, Timing
from dynattn.methods import NM

_CPU_COLUMNS = (
    "heads×length×dim", "function", "backend", "ms", "× SDPA", "quartiles", "× unfused", "× dense", "GFLOP/s",
    "of peak", "disturbed",
)  # fmt: skip
_GPU_COLUMNS = (
    "heads×length×dim", "function", "backend", "ms", "× best dense", "quartiles", "× SDPA", "× unfused", "TFLOP/s",
    "dense TFLOP/s", "of peak", "of copy", "call ms",
)  # fmt: skip
_CPU_SHORT = ("heads×length×dim", "function", "ms", "× SDPA", "quartiles", "× unfused", "× dense", "of peak")
_GPU_SHORT = (
    "heads×length×dim", "function", "ms", "× best dense", "quartiles", "× unfused", "dense TFLOP/s", "of peak",
)  # fmt: skip
_TOO_MANY = 0.1  # medians and quartiles bear this share of disturbed samples without harm, with room to spare
_CPU_NOTE = (
    "ms: median of one call. × SDPA: how many times as fast as PyTorch's scaled_dot_product_attention, the median of "
    "the ratios within each round, and their quartiles; × unfused and × dense: as fast as matmul, softmax, matmul, and "
    "as this library's own dense kernel. of peak: multiply-adds that the function needs (N:M: all of QKᵀ, N/M of PV) "
    "over the most that were measured here in the workload's dtype. Every result was checked against the definition in "
    "float64 in the same run."
)
_CPU_MORE = "GFLOP/s counts the same multiply-adds. disturbed: samples during which threads waited for a core."
_GPU_NOTE = (
    "ms: median of one call in a CUDA graph, inputs not in the L2 cache. × best dense: how many times as fast as the "
    "fastest dense attention of this table, the median of the ratios within each round, and their quartiles; × SDPA: "
    "as torch's own choice; × unfused: as matmul, softmax, matmul. dense TFLOP/s: multiply-adds of dense attention "
    "over this time. of peak: multiply-adds that the function needs (N:M: all of QKᵀ, N/M of PV) over those of a "
    "large matrix product in the workload's dtype. Every result was checked against the definition in float64 in the "
    "same run."
)
_GPU_MORE = (
    "TFLOP/s counts what the function needs. of copy: query, key, value and output, once, over the bandwidth of a "
    "large copy. call ms: of one call from Python after another, without a graph."
)


def columns(record: Record, short: bool = False) -> tuple[str, ...]:
    """Names of the columns; ``short`` for those that a terminal of 80 characters holds."""
    if record.on_gpu:
        return _GPU_SHORT if short else _GPU_COLUMNS
    return _CPU_SHORT if short else _CPU_COLUMNS


def note(record: Record, more: bool = False) -> str:
    """What the columns mean; ``more`` also explains those that a terminal does not show."""
    text, rest = (_GPU_NOTE, _GPU_MORE) if record.on_gpu else (_CPU_NOTE, _CPU_MORE)
    return f"{text} {rest}" if more else text


def cells(record: Record, result: Result) -> dict[str, str]:
    """The content of each column. A function that was not timed shows no figure."""
    head = {"heads×length×dim": result.workload.label, "function": result.function, "backend": result.backend}
    row = dict.fromkeys(columns(record), "") | head
    if result.timing is None:
        return row | {"ms": "cannot" if result.failed else "WRONG"}
    timing = result.timing
    return row | {
        "ms": _milliseconds(timing.median), **_speedups(record, result),
        "of peak": _percent(record.share_of_peak(result)),
        **(_of_gpu(record, result, timing) if record.on_gpu else _of_cpu(result, timing)),
    }  # fmt: skip


def _speedups(record: Record, result: Result) -> dict[str, str]:
    def over(baseline: str) -> Spread | None:
        return record.speedup(result.workload, result.function, baseline)

    best = over(record.baseline(result.workload))
    found = {
        "× SDPA": _ratio(over(SDPA)),
        "quartiles": f"{best.q1:.2f}–{best.q3:.2f}" if best else "",
        "× unfused": _ratio(over(UNFUSED)),
    }
    return found | ({"× best dense": _ratio(best)} if record.on_gpu else {"× dense": _ratio(over(NM(1, 1).name))})


def _of_cpu(result: Result, timing: Timing) -> dict[str, str]:
    return {
        "GFLOP/s": f"{result.flops / timing.median * 1e-9:.0f}",
        "disturbed": f"{timing.disturbed}/{len(timing.samples)}" if timing.waited else "unknown",
    }


def _of_gpu(record: Record, result: Result, timing: Timing) -> dict[str, str]:
    return {
        "TFLOP/s": f"{result.flops / timing.median * 1e-12:.0f}",
        "dense TFLOP/s": f"{result.dense_flops / timing.median * 1e-12:.0f}",
        "of copy": _percent(record.share_of_bandwidth(result)),
        "call ms": _milliseconds(result.call) if result.call is not None else "",
    }


def mistakes(record: Record) -> list[str]:
    """A line for each wrong result."""
    return [
        f"WRONG: {result.function} ({result.backend}) on {result.workload.label}: "
        f"off by {result.check.error:.1e}, may be {result.check.bound:.1e}"
        for result in record.results
        if result.wrong
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
    if not roofline.threads:
        flops = f"{(roofline.flops or 0) * 1e-12:.0f} TFLOP/s in a large matrix product ({roofline.isa})"
        copy = f"{roofline.bandwidth * 1e-12:.2f} TB/s in a large copy"
        return ", ".join([flops, copy, *_products(roofline, 1e-12, "TFLOP/s")])
    peak = "no kernel library, so no peak" if roofline.flops is None else f"{roofline.flops * 1e-9:.0f} GFLOP/s peak"
    isa = f" ({roofline.isa})" if roofline.isa else ""
    rest = f"{roofline.bandwidth * 1e-9:.1f} GB/s copy", f"{roofline.threads} threads"
    return ", ".join([f"{peak}{isa}", *_products(roofline, 1e-9, "GFLOP/s"), *rest])


def _products(roofline: Roofline, unit: float, name: str) -> list[str]:
    return [f"{flops * unit:.3g} {name} product in {dtype}" for dtype, flops in roofline.products.items()]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _ratio(speedup: Spread | None) -> str:
    return f"{speedup.median:.2f}" if speedup else ""
