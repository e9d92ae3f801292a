"""Measures how fast a model runs with each attention, and how much of its time attention takes.

Everything is interleaved: each round runs every implementation once, and ratios are taken within rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynattn.lab.compare.results import Share, Speed, Timed
from dynattn.lab.figures import BASELINE, spread
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs, first_tensor
from dynattn.lab.timing import LEAST_ROUNDS, Timing, interleaved

_PROBE = "probe-"
_MOST_CALLS = 8  # so many attention calls are kept and timed alone: a model's calls are alike, and they hold memory


def batched(inputs: Inputs, batch: int) -> Inputs:
    """Inputs of one item, ``batch`` times over."""
    return {
        name: value.repeat(batch, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


@torch.inference_mode()
def end_to_end(
    pretrained: Pretrained, implementations: Mapping[str, str], inputs: Inputs, length: int, seconds: float,
    on_round: Callable[[int], None],
) -> tuple[Timed, list[Share]]:  # fmt: skip
    """Time the model's forward with each implementation, and the time inside attention on the way.

    Args:
        pretrained: the model; it is left with the last implementation.
        implementations: Transformers' name of each method.
        inputs: the inputs of the forward.
        length: tokens of each item.
        seconds: how long to go on.
        on_round: called after each round with the number of rounds taken.

    Returns:
        Timings of the forward, and of attention within the forwards.
    """
    model = pretrained.model
    inside: dict[str, list[tuple[float, float]]] = {method: [] for method in implementations}
    probes = {method: _Probe(implementation) for method, implementation in implementations.items()}

    def begin(method: str) -> str:
        model.set_attn_implementation(probes[method].name)
        probes[method].seconds = 0.0
        return method

    def forward(begin: Callable[[], Any], _: int) -> float:
        method = begin()  # not timed: a model is set once, and to set a small one takes a tenth of its forward
        start = time.perf_counter()
        model(**inputs)
        seconds = time.perf_counter() - start
        inside[method].append((probes[method].seconds, seconds))
        return seconds

    ways = {method: partial(begin, method) for method in implementations}
    for way in ways.values():
        forward(way, 1)  # allocations, thread pools
    for runs in inside.values():
        runs.clear()
    timings = interleaved(
        ways, seconds=seconds, least=LEAST_ROUNDS, min_sample=None, elapsed=forward, on_round=on_round
    )  # fmt: skip
    shares = [
        Share(method=method, attention=statistics.median(a), forward=statistics.median(f))
        for method, (a, f) in ((method, zip(*runs, strict=True)) for method, runs in inside.items())
        if probes[method].called
    ]
    return _timed(timings, len(first_tensor(inputs)), length, None), shares


@torch.inference_mode()
def attention_alone(
    pretrained: Pretrained, implementations: Mapping[str, str], inputs: Inputs, length: int, seconds: float,
    on_round: Callable[[int], None],
) -> Timed:  # fmt: skip
    """Time the attention functions alone, on the queries, keys and values that the model gives them.

    Args:
        As :func:`end_to_end`.

    Returns:
        Timings of up to 8 calls, spread evenly over the layers, one after another.
    """
    probe = _Probe(implementations[BASELINE], record=True)
    pretrained.model.set_attn_implementation(probe.name)
    pretrained.model(**inputs)
    calls = probe.calls[:: -(-len(probe.calls) // _MOST_CALLS)]

    def run(function: Callable[..., Any]) -> None:
        for args, kwargs in calls:
            function(*args, **kwargs)

    functions = {method: _function(name) for method, name in implementations.items()}
    timings = interleaved(
        {method: lambda function=function: run(function) for method, function in functions.items()},
        seconds=seconds, on_round=on_round,
    )  # fmt: skip
    return _timed(timings, len(first_tensor(inputs)), length, len(calls))


class _Probe:
    """An attention implementation that measures the time of another one, and may record the arguments of its calls.

    Attributes:
        name: the name that ``set_attn_implementation`` takes.
        seconds: the seconds spent in calls since this was last set to 0.
        called: whether it ran at all; a model's own eager attention cannot be wrapped.
        calls: the arguments of the calls, if they are recorded.
    """

    def __init__(self, implementation: str, record: bool = False) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        self.seconds = 0.0
        self.called = False
        self.calls: list[tuple[Sequence[Any], dict[str, Any]]] = []
        self._record = record
        self._inner = _function(implementation)
        if self._inner is None:
            self.name = implementation
            return
        self.name = _PROBE + implementation.replace(":", "-")  # with a colon it would be taken for a name of dynattn
        AttentionInterface.register(self.name, self._run)
        AttentionMaskInterface.register(self.name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        self.called = True
        if self._record:
            self.calls.append((args, kwargs))
        start = time.perf_counter()
        out = self._inner(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return out


def _function(implementation: str) -> Any:
    """Transformers' attention function of that name; None for eager, of which each model has its own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS.get(implementation)


def _timed(timings: Mapping[str, Timing], batch: int, length: int, calls: int | None) -> Timed:
    baseline = timings[BASELINE]
    rows = []
    for method, timing in timings.items():
        rows.append(
            Speed(
                method=method,
                seconds=spread(timing.seconds),
                speedup=spread(timing.speedup(baseline)),
                samples=len(timing.samples),
                disturbed=timing.disturbed if timing.waited else None,
            )
        )
    return Timed(batch=batch, length=length, calls=calls, rows=rows)
