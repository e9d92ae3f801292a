"""Timing on a CUDA device: CUDA graphs call a function on many inputs, and events take the time.

The time of a kernel is that of a CUDA graph of it, which has no Python and no gaps between launches. Each graph calls
its function once on each of several sets of inputs. Together these are more than twice as large as the L2 cache, so
that every call finds its inputs in memory, as in a model. The cost of a call from Python is measured by itself, for the
sizes where it counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dynattn.kernels.cuda import driver
from dynattn.lab.bench.cases import Workload
from dynattn.lab.timing import Spread

DEVICE = "cuda"
MIN_SAMPLE = 0.005  # seconds; events resolve half a microsecond

_CACHES = 2  # the sets of inputs fill the L2 cache so many times
_SETS_AT_MOST = 16
_WARM_UPS = 2  # calls before a capture, since what a function sets up at its first call must not be captured
_CALLS, _TURNS = 50, 5  # for the cost of a call from Python: so many calls in a row, so many times

Inputs = tuple[Tensor, Tensor, Tensor]


def unavailable_reason() -> str | None:
    """Why nothing can be timed on a CUDA device here; None where it can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here; run it on a machine with one, with a CUDA build of PyTorch"
    return driver.unavailable_reason(torch.cuda.current_device())


def input_sets(workload: Workload) -> list[Inputs]:
    """Inputs on the device, different ones, together larger than the L2 cache."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    count = min(_SETS_AT_MOST, 1 + math.ceil(_CACHES * cache / workload.bytes))
    return [workload.inputs(seed, DEVICE) for seed in range(count)]


def captured(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """A function that replays a CUDA graph in which each of ``calls`` runs once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """A function that runs each of ``calls`` once, for what no graph captures."""

    def run() -> None:
        for call in calls:
            call()

    return run


def elapsed(function: Callable[[], object], calls: int) -> float:
    """Seconds of ``calls`` calls, by events on the device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def from_python(calls: Sequence[Callable[[], object]]) -> float:
    """Seconds of one call from Python after another: the kernel or Python, whichever is slower."""
    cycle = [calls[i % len(calls)] for i in range(_CALLS)]
    torch.cuda.synchronize()
    return Spread.of(tuple(elapsed(in_turn(cycle), 1) / _CALLS for _ in range(_TURNS))).median


@contextmanager
def precision(workload: Workload) -> Iterator[None]:
    """PyTorch's setting for products of float32, as the workload's dtype asks for it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if workload.dtype == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
