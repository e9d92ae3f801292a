"""Runs cases: it checks each result, then times all functions of one workload in alternation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynattn import attention, explain
from dynattn.kernels.cuda import kernel_name
from dynattn.kernels.pattern import Pattern
from dynattn.lab.bench import cuda
from dynattn.lab.bench.cases import Case, Workload
from dynattn.lab.bench.check import Check, Checker
from dynattn.lab.bench.gradients import check_gradients, with_backward
from dynattn.lab.bench.peers import SDPA, peers
from dynattn.lab.bench.record import Result
from dynattn.lab.timing import Timing, interleaved
from dynattn.methods.nm import NM

_DENSE = NM(1, 1)
_CALL_COUNTS = 1 << 22  # below so many query rows times keys, the cost of a call from Python is measured too

_Inputs = tuple[Tensor, Tensor, Tensor]


class _Function(NamedTuple):
    """A function to time. ``make`` gives a call without arguments for given inputs."""

    make: Callable[[Tensor, Tensor, Tensor], Callable[[], Any]]
    meant: NM
    route: str

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold it. None can hold the reference, which looks at values on the way."""
        return self.route != "reference"


def by_workload(cases: Iterable[Case]) -> dict[Workload, list[NM]]:
    """The methods to run on each workload, in the order given."""
    groups: dict[Workload, list[NM]] = {}
    for case in cases:
        groups.setdefault(case.workload, []).append(case.method)
    return groups


def measure(
    workload: Workload,
    methods: Iterable[NM],
    *,
    device: str = "cpu",
    backend: str = "auto",
    seconds: float = 2.0,
    rounds: int | None = None,
    on_round: Callable[[int], None] | None = None,
) -> list[Result]:
    """Check and time the peers and the methods on one workload.

    A function whose result is wrong is not timed, nor is a peer that does not take the workload.

    Args:
        workload: the problem.
        methods: what to time besides the peers; as a user calls it, through :func:`dynattn.attention`.
        device: ``cpu`` or ``cuda``.
        backend: as :func:`dynattn.attention` takes it.
        seconds, rounds, on_round: as :func:`dynattn.lab.timing.interleaved` takes them.

    Returns:
        One result a function: the peers, then the methods.
    """
    on_gpu = device == "cuda"
    grad = torch.enable_grad() if workload.training else torch.inference_mode()
    with grad, cuda.precision(workload) if on_gpu else nullcontext():
        sets = cuda.input_sets(workload) if on_gpu else [workload.inputs()]
        functions = _functions(workload, methods, sets[0], device, backend)
        if workload.training:
            functions = {name: x._replace(make=with_backward(x.make)) for name, x in functions.items()}
        checks, failed = _check(workload, sets[0], functions)
        right = {name: functions[name] for name, check in checks.items() if check.passed}
        time = partial(interleaved, seconds=seconds, rounds=rounds, on_round=on_round)
        timings, calls = (_on_gpu if on_gpu else _on_cpu)(workload, sets, right, time) if right else ({}, {})
    return [
        Result(
            workload, name, function.route, Case(workload, function.meant).flops, workload.dense_flops,
            workload.bytes, checks.get(name, Check(0.0, 0.0, 0)), timings.get(name), calls.get(name),
            failed.get(name, ""),
        )
        for name, function in functions.items()
    ]  # fmt: skip


def _functions(
    workload: Workload, methods: Iterable[NM], inputs: _Inputs, device: str, backend: str
) -> dict[str, _Function]:
    """The functions to time, by name."""
    found = {
        name: _Function(partial(peer, workload), _DENSE, "torch") for name, peer in peers(workload, device).items()
    }
    for method in methods:
        route = explain(*inputs, method, causal=workload.causal, backend=backend).backend or "by head"
        if route == "cuda":
            pattern = Pattern.of(method, workload.causal, workload.head_dim**-0.5)
            route += " " + kernel_name(*inputs, pattern, workload.training)
        found[method.name] = _Function(partial(_attend, workload, method, backend), method, route)
    return found


def _attend(
    workload: Workload, method: NM, backend: str, query: Tensor, key: Tensor, value: Tensor
) -> Callable[[], Tensor]:
    return lambda: attention(query, key, value, method, causal=workload.causal, backend=backend)


def _check(
    workload: Workload, inputs: _Inputs, functions: dict[str, _Function]
) -> tuple[dict[str, Check], dict[str, str]]:
    """Check whether each result is right, and note why a peer gives none."""
    judge = partial(check_gradients, workload, *inputs) if workload.training else Checker(workload, *inputs).check
    checks, failed = {}, {}
    for name, function in functions.items():
        try:
            checks[name] = judge(function.make(*inputs)(), function.meant)
        except (RuntimeError, ValueError, TypeError) as error:
            if function.route != "torch" or name == SDPA:  # only a peer that is asked for by name may refuse
                raise
            failed[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return checks, failed


_Timings = tuple[dict[str, Timing], dict[str, float]]  # and, on a GPU, seconds of a call from Python


def _on_cpu(
    workload: Workload, sets: list[_Inputs], functions: dict[str, _Function], time: Callable[..., dict[str, Timing]]
) -> _Timings:
    return time({name: function.make(*sets[0]) for name, function in functions.items()}), {}


def _on_gpu(
    workload: Workload, sets: list[_Inputs], functions: dict[str, _Function], time: Callable[..., dict[str, Timing]]
) -> _Timings:
    calls = {name: [function.make(*inputs) for inputs in sets] for name, function in functions.items()}
    runs = {
        name: (cuda.captured if function.capturable else cuda.in_turn)(calls[name])
        for name, function in functions.items()
    }
    timings = time(runs, min_sample=cuda.MIN_SAMPLE, waited=lambda: None, elapsed=cuda.elapsed, each=len(sets))
    small = workload.q_len * workload.kv_len <= _CALL_COUNTS
    return timings, {name: cuda.from_python(each) for name, each in calls.items()} if small else {}
