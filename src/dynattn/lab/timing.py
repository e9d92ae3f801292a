"""Times functions against each other in one run, interleaved, so that whatever the machine does affects all alike.

A *round* calls every function once, in an order drawn anew; a *sample* is one function's turn in a round: as many
calls as fill ``min_sample`` seconds, divided by their number. The ratio to the baseline is taken within each round,
between neighbours in time, and its median is the figure: a drift of the clock frequency cancels, a burst of another
process spoils one round and not the median.

Nothing is discarded. How long the process's threads waited for a core during a sample is recorded beside it, so that
a reader can tell a disturbed run from a quiet one.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

DISTURBED = 0.02  # a sample counts as disturbed if threads waited for a core during more than this share of its time
MIN_ROUNDS = 5
LEAST_ROUNDS = 3
"""Rounds of a whole model: one on a long text takes half a minute. Quartiles and the number of rounds are reported."""

_TASKS = Path("/proc/self/task")
_STAT = Path("/proc/stat")
_TICK = 0.01  # seconds; /proc/stat counts in USER_HZ, 100 on every Linux architecture in use


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: tuple[float, ...]) -> Spread:
        """The spread of one or more values; quartiles by linear interpolation between the values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3)


@dataclass(frozen=True)
class Timing:
    """Samples of one function.

    Attributes:
        samples: seconds of one call, one entry a round; the same index is the same round in every function's Timing.
        calls: calls that each sample averages over.
        waited: for each sample, seconds that threads waited for a core over seconds that the sample took; empty
            where the system does not tell.
    """

    samples: tuple[float, ...]
    calls: int
    waited: tuple[float, ...] = ()

    @property
    def seconds(self) -> Spread:
        """The seconds of one call."""
        return Spread.of(self.samples)

    @property
    def median(self) -> float:
        """Seconds of one call, the median of the samples."""
        return self.seconds.median

    @property
    def quartiles(self) -> tuple[float, float]:
        """Seconds of one call, a quarter of the samples below and a quarter above."""
        return self.seconds.q1, self.seconds.q3

    @property
    def disturbed(self) -> int:
        """Samples during which threads waited for a core for more than ``DISTURBED`` of the time."""
        return sum(share > DISTURBED for share in self.waited)

    def speedup(self, baseline: Timing) -> Spread:
        """How many times as fast as ``baseline``: of the ratios within each round, not of the medians' ratio."""
        return Spread.of(tuple(b / s for b, s in zip(baseline.samples, self.samples, strict=True)))


def threads_waited() -> float | None:
    """Seconds that this process's threads have waited for a core so far; None where the system does not tell.

    Linux only: the run delay of each thread, and the time that a hypervisor withheld from the whole machine.
    """
    try:
        delays = [_run_delay(task) for task in _TASKS.iterdir()]
        if not any(delays):  # a kernel without schedstat; this thread has waited at least once
            return None
        stolen = int(_STAT.read_text().split(maxsplit=9)[8])
    except (OSError, IndexError, ValueError):
        return None
    return sum(delays) * 1e-9 + stolen * _TICK


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 2.0,
    rounds: int | None = None,
    least: int = MIN_ROUNDS,
    min_sample: float | None = 0.02,
    clock: Callable[[], float] = time.perf_counter,
    waited: Callable[[], float | None] = threads_waited,
    elapsed: Callable[[Callable[[], Any], int], float] | None = None,
    each: int = 1,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, Timing]:
    """Time functions in alternation.

    Args:
        functions: by name; each is called with no argument and its result is dropped.
        seconds: stop after this long, calibration not counted, but not before ``least`` rounds.
        rounds: take exactly this many rounds instead.
        least: rounds to take however long they last.
        min_sample: repeat short functions until a sample lasts about this long, in seconds; None for samples of one
            call, which need no calibration but one call to warm up.
        clock: gives the time in seconds.
        waited: gives the seconds spent waiting for a core so far, or None where unknown.
        elapsed: seconds that so many calls of a function take, for what the host's clock does not see; None to take
            ``clock`` before and after.
        each: calls that a function makes of what is timed; a sample is divided by it.
        on_round: called after each round with the number of rounds taken.

    Returns:
        A Timing for each function, by name, in the order given.

    Raises:
        ValueError: no functions, or an argument that is not positive.
    """
    if not functions:
        raise ValueError("interleaved: functions must not be empty: pass at least one")
    given = (seconds, rounds, least, min_sample)
    if any(value is not None and value <= 0 for value in given):
        raise ValueError(f"interleaved: seconds, rounds, least and min_sample must be positive: got {given}")
    elapsed = elapsed or partial(_host_seconds, clock=clock)
    calls = {name: _calibrate(function, min_sample, elapsed) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    shares: dict[str, list[float]] = {name: [] for name in functions}
    shuffle = random.Random(0).shuffle  # the same orders in every run; each neighbour comes first as often as last
    collecting = gc.isenabled()
    gc.disable()
    try:
        start, taken = clock(), 0
        while taken < (least if rounds is None else rounds) or (rounds is None and clock() - start < seconds):
            order = list(functions)
            shuffle(order)
            for name in order:
                taken_seconds, share = _sample(functions[name], calls[name], elapsed, waited)
                samples[name].append(taken_seconds / (calls[name] * each))
                shares[name] += [] if share is None else [share]
            taken += 1
            if on_round is not None:
                on_round(taken)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(samples[name]), calls[name] * each, tuple(shares[name])) for name in functions}


def own_seconds(function: Callable[[], float], calls: int) -> float:
    """For ``elapsed``: of a function that returns the seconds that it took, since a part of it is not to count, as the
    making of a cache.

    Args:
        function: returns seconds.
        calls: how many are asked for.

    Returns:
        The sum of what the calls return.
    """
    return sum(function() for _ in range(calls))


def _host_seconds(function: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """Seconds of ``calls`` calls by the host's clock."""
    start = clock()
    for _ in range(calls):
        function()
    return clock() - start


def _sample(
    function: Callable[[], object],
    calls: int,
    elapsed: Callable[[Callable[[], Any], int], float],
    waited: Callable[[], float | None],
) -> tuple[float, float | None]:
    """Seconds of ``calls`` calls, and the share of them spent waiting for a core."""
    before = waited()
    seconds = elapsed(function, calls)
    after = waited()
    if before is None or after is None:
        return seconds, None
    return seconds, max(0.0, after - before) / seconds if seconds > 0 else 0.0  # a thread that ended takes its count


def _calibrate(
    function: Callable[[], object], min_sample: float | None, elapsed: Callable[[Callable[[], Any], int], float]
) -> int:
    """Calls that fill ``min_sample``; warms the function up on the way."""
    function()  # first call: allocations, thread pools, compiled code
    if min_sample is None:
        return 1
    calls = 1
    while True:
        seconds = elapsed(function, calls)
        if seconds >= 0.5 * min_sample:
            return max(1, math.ceil(calls * min_sample / seconds))
        # at most tenfold at a time, since a short measurement can be far off
        calls *= 10 if seconds <= 0.05 * min_sample else math.ceil(min_sample / seconds)


def _run_delay(task: Path) -> int:
    """Nanoseconds that a thread was ready to run and did not; 0 for one that ends while we look."""
    try:
        return int((task / "schedstat").read_text().split()[1])
    except FileNotFoundError:
        return 0
