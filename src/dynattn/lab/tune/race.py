"""The whole model against itself with SDPA, in the same dtype, in alternation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.timing import interleaved
from dynattn.lab.tune.assignment import Assignment
from dynattn.lab.tune.results import Raced
from dynattn.lab.tune.search import set_assignment
from dynattn.lab.tune.whole import applied


@contextmanager
def _dense(pretrained: Pretrained) -> Iterator[None]:
    pretrained.model.set_attn_implementation(BASELINE)
    yield


@contextmanager
def _tuned(pretrained: Pretrained, assignment: Assignment, whole: str | None) -> Iterator[None]:
    set_assignment(pretrained, assignment)
    with applied(pretrained, whole):
        yield


@torch.inference_mode()
def race(
    pretrained: Pretrained, assignment: Assignment, inputs: Inputs, rounds: int, whole: str | None = None
) -> Raced:
    """Time forwards.

    Args:
        pretrained: the model; it is left with PyTorch's attention.
        assignment: the assignment of methods.
        inputs: the inputs of a forward.
        rounds: how many rounds of alternation to take, exactly.
        whole: the name of a method of the whole model besides, see :mod:`dynattn.lab.tune.whole`; None for none.
    """

    ways = {"dense": partial(_dense, pretrained), "tuned": partial(_tuned, pretrained, assignment, whole)}

    def forwards(way: Callable[[], Any], calls: int) -> float:
        with way():  # not timed: a model is set once, and an assignment takes a tenth of a small model's forward to set
            start = time.perf_counter()
            for _ in range(calls):
                pretrained.model(**inputs)
            return time.perf_counter() - start

    for way in ways.values():
        forwards(way, 1)  # allocations, thread pools
    timings = interleaved(ways, rounds=rounds, min_sample=None, elapsed=forwards)
    pretrained.model.set_attn_implementation(BASELINE)
    return Raced.of(timings["dense"], timings["tuned"])
