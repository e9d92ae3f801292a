"""Times methods when the workers have ended: one method after another, each in alternation with dense attention.

A method's ratio to dense attention is taken within each round, so it holds even where the machine changes its pace
between two methods. Times of several machines stay apart: each belongs to its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from dynattn.lab.figures import BASELINE, spread
from dynattn.lab.frontier import decode
from dynattn.lab.frontier.apply import applied
from dynattn.lab.frontier.cell import Race
from dynattn.lab.frontier.measure import SweepJob, prepare
from dynattn.lab.frontier.results import Time
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks import Prepared
from dynattn.lab.timing import LEAST_ROUNDS, Timing, interleaved


@torch.inference_mode()
def race(job: SweepJob, wanted: Race, seconds: float) -> Time:
    """Time a method against dense attention: the model's forward on one input, or a step of decoding after it.

    Args:
        job: the job of the sweep.
        wanted: which method and exam.
        seconds: how long to go on; three rounds are taken at least.

    Returns:
        Seconds and the speed-up over dense.
    """
    pretrained, _, data = prepare(job, wanted.exam)
    timed = decode.race if wanted.exam.phase == "decode" else _forward
    dense, own = timed(pretrained, wanted.entry.name, data, seconds)
    return Time(
        race=wanted, length=data.length, dense=spread(dense.seconds), seconds=spread(own.seconds),
        speedup=spread(own.speedup(dense)), samples=len(own.samples), disturbed=own.disturbed if own.waited else None,
    )  # fmt: skip


def _forward(pretrained: Pretrained, name: str, data: Prepared, seconds: float) -> tuple[Timing, Timing]:
    """The model's forward on the first example, with dense attention and with a method."""

    def forwards(way: Callable[[], Any], calls: int) -> float:
        with way():  # not timed: a model is set once, and to set a small one takes a tenth of its forward
            start = time.perf_counter()
            for _ in range(calls):
                pretrained.model(**data.examples[0])
            return time.perf_counter() - start

    ways = {each: partial(applied, pretrained, each) for each in (BASELINE, name)}
    for way in ways.values():
        forwards(way, 1)  # allocations, thread pools
    timings = interleaved(ways, seconds=seconds, least=LEAST_ROUNDS, min_sample=None, elapsed=forwards)
    return timings[BASELINE], timings[name]
