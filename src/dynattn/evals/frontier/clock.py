"""Time, apart from quality: when the workers have ended, one method after another, each in alternation with dense.

A method's ratio to dense attention is taken within each round, so it holds even where the machine changes its pace
between two methods. Times of several machines stay apart: each belongs to its own.
"""

from __future__ import annotations

from collections.abc import Callable

from dynattn.evals.compare import speed
from dynattn.evals.compare.results import BASELINE
from dynattn.evals.frontier.cell import Race
from dynattn.evals.frontier.measure import Job, implementation, prepare
from dynattn.evals.frontier.results import Time


def race(job: Job, wanted: Race, seconds: float, on_round: Callable[[int], None] = lambda _: None) -> Time:
    """Time a method against dense attention: the model's forward on one input.

    Args:
        job: of the sweep.
        wanted: which method and exam.
        seconds: to spend; three rounds at least.
        on_round: told how many rounds are done.

    Returns:
        Seconds and the speed-up over dense.
    """
    pretrained, _, data = prepare(job, wanted.exam)
    functions = {BASELINE: BASELINE, wanted.entry.name: implementation(wanted.entry.name)}
    timed, _ = speed.end_to_end(pretrained, functions, data.examples[0], data.length, seconds, on_round)
    dense, own = timed.rows
    return Time(
        race=wanted, length=data.length, dense=dense.seconds, seconds=own.seconds, speedup=own.speedup,
        samples=own.samples, disturbed=own.disturbed,
    )  # fmt: skip
