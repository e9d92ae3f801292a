"""Interleaved timing, on functions and a clock that are exact."""

from __future__ import annotations

import gc
import sys

import pytest

from dynattn.lab.timing import MIN_ROUNDS, Spread, Timing, interleaved, own_seconds, threads_waited


def _nothing_waited() -> float:
    return 0.0


def test_samples_are_seconds_of_one_call(clock):
    functions = {"fast": clock.function("fast", 0.003), "slow": clock.function("slow", 0.5)}
    timings = interleaved(functions, rounds=4, min_sample=0.02, clock=clock, waited=_nothing_waited)
    assert timings["fast"].samples == pytest.approx([0.003] * 4)
    assert timings["slow"].samples == pytest.approx([0.5] * 4)
    assert timings["fast"].calls == 7  # 7 · 3 ms is the first multiple above 20 ms
    assert timings["slow"].calls == 1


def test_first_call_is_not_a_sample(clock):
    timings = interleaved({"f": clock.function("f", 9.0, 0.1)}, rounds=3, clock=clock, waited=_nothing_waited)
    assert timings["f"].samples == pytest.approx([0.1] * 3)


def test_calibration_survives_a_clock_too_coarse_for_one_call(clock):
    def coarse() -> float:
        return clock.now // 0.004 * 0.004

    timings = interleaved({"f": clock.function("f", 1e-5)}, rounds=1, clock=coarse, waited=_nothing_waited)
    assert 0.5 * 2000 <= timings["f"].calls <= 2 * 2000


def test_every_round_calls_every_function_once_in_changing_order(clock):
    names = ["a", "b", "c"]
    functions = {name: clock.function(name, 1.0) for name in names}
    interleaved(functions, rounds=60, clock=clock, waited=_nothing_waited)
    calibration = 2 * len(names)
    called = clock.called[calibration:]
    rounds = [tuple(called[i : i + 3]) for i in range(0, len(called), 3)]
    assert len(rounds) == 60
    assert all(sorted(order) == names for order in rounds)
    assert len(set(rounds)) == 6  # each of the orders occurs, so no function always follows the same one


def test_another_clock_and_functions_of_several_calls(clock):
    """As for CUDA graphs: seconds come from ``elapsed``, and each function holds four calls."""
    asked = []

    def elapsed(function, calls: int) -> float:
        asked.append(calls)
        for _ in range(calls):
            function()
        return 0.4 * calls

    timing = interleaved(
        {"f": clock.function("f", 1.0)}, rounds=3, min_sample=1.0, clock=clock, waited=_nothing_waited, elapsed=elapsed,
        each=4,
    )["f"]  # fmt: skip
    assert timing.samples == pytest.approx((0.1,) * 3)
    assert timing.calls == 3 * 4  # three of 0.4 seconds last for at least one
    assert asked[-3:] == [3, 3, 3]


def test_a_function_that_times_itself_is_believed(clock):
    """Two seconds pass in a call, of which it counts one for two steps."""

    def steps() -> float:
        clock.now += 2.0
        return 1.0

    timing = interleaved(
        {"f": steps}, rounds=3, min_sample=None, clock=clock, waited=_nothing_waited, elapsed=own_seconds, each=2
    )["f"]
    assert timing.samples == pytest.approx((0.5,) * 3)
    assert own_seconds(steps, 3) == 3.0


def test_seconds_bound_the_rounds_but_not_below_the_least(clock):
    functions = {"f": clock.function("f", 1.0)}
    assert len(interleaved(functions, seconds=12.0, clock=clock, waited=_nothing_waited)["f"].samples) == 12
    assert len(interleaved(functions, seconds=0.1, clock=clock, waited=_nothing_waited)["f"].samples) == MIN_ROUNDS


def test_fewer_rounds_and_single_calls_where_asked_for(clock):
    functions = {"f": clock.function("f", 9.0, 0.25)}
    timing = interleaved(functions, seconds=25.0, least=2, min_sample=None, clock=clock, waited=_nothing_waited)["f"]
    assert timing.calls == 1
    assert len(clock.called) == 1 + 100  # one to warm up, then as many as fit
    functions = {"f": clock.function("f", 1.0)}
    timing = interleaved(functions, seconds=0.1, least=2, min_sample=None, clock=clock, waited=_nothing_waited)["f"]
    assert timing.samples == (1.0, 1.0)


def test_speedup_pairs_rounds():
    # the machine slows down threefold after the second round: medians of all samples see it, ratios do not
    base, own = Timing((1.0, 1.0, 3.0, 3.0, 3.0), 1), Timing((0.5, 0.5, 1.5, 1.5, 1.0), 1)
    assert own.speedup(base) == Spread(2.0, 2.0, 2.0)
    assert base.speedup(own).median == 0.5


def test_spread_is_median_and_quartiles():
    assert Spread.of((4.0, 1.0, 3.0, 2.0, 5.0)) == Spread(median=3.0, q1=2.0, q3=4.0)
    assert Spread.of((7.0,)) == Spread(7.0, 7.0, 7.0)
    timing = Timing((4.0, 1.0, 3.0, 2.0, 5.0), 1)
    assert (timing.median, timing.quartiles) == (3.0, (2.0, 4.0))


def test_waiting_for_a_core_is_reported_and_nothing_discarded(clock):
    waiting = 0.0

    def disturbed() -> None:
        nonlocal waiting
        clock.now += 1.0
        waiting += 0.5

    functions = {"quiet": clock.function("quiet", 1.0), "disturbed": disturbed}
    timings = interleaved(functions, rounds=5, clock=clock, waited=lambda: waiting)
    assert timings["disturbed"].waited == pytest.approx([0.5] * 5)
    assert timings["disturbed"].disturbed == 5
    assert timings["quiet"].disturbed == 0
    assert len(timings["disturbed"].samples) == 5


def test_unknown_waiting_is_empty(clock):
    timing = interleaved({"f": clock.function("f", 1.0)}, rounds=2, clock=clock, waited=lambda: None)["f"]
    assert timing.waited == ()


def test_rounds_are_reported(clock):
    seen = []
    interleaved({"f": clock.function("f", 1.0)}, rounds=3, clock=clock, waited=lambda: None, on_round=seen.append)
    assert seen == [1, 2, 3]


def test_garbage_collection_comes_back_after_a_failure(clock):
    calls = 0

    def fails_later() -> None:
        nonlocal calls
        calls += 1
        clock.now += 1.0
        if calls == 4:
            assert not gc.isenabled()
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        interleaved({"f": fails_later}, rounds=5, clock=clock, waited=lambda: None)
    assert gc.isenabled()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_threads_waited_never_falls():
    before = threads_waited()
    assert before is not None
    assert before >= 0
    after = threads_waited()
    assert after is not None
    assert after >= before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({field: value}, "positive")
        for field, value in {"rounds": 0, "least": 0, "seconds": 0.0, "min_sample": -1.0}.items()
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        interleaved({"f": lambda: None}, **arguments)


def test_no_functions():
    with pytest.raises(ValueError, match="functions must not be empty"):
        interleaved({})
