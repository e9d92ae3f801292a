"""Run cases: check each result, then time all functions of one workload in alternation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dynattn import attention, explain
from dynattn.bench.cases import Case, Workload
from dynattn.bench.check import Checker
from dynattn.bench.peers import PEERS
from dynattn.bench.record import Result
from dynattn.bench.timing import interleaved
from dynattn.methods.nm import NM

_DENSE = NM(1, 1)


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
    backend: str = "auto",
    seconds: float = 2.0,
    rounds: int | None = None,
    on_round: Callable[[int], None] | None = None,
) -> list[Result]:
    """Check and time the peers and the methods on one workload.

    A function whose result is wrong is not timed.

    Args:
        workload: the problem.
        methods: what to time besides the peers; as a user calls it, through :func:`dynattn.attention`.
        backend: as :func:`dynattn.attention` takes it.
        seconds, rounds, on_round: as :func:`dynattn.bench.timing.interleaved` takes them.

    Returns:
        One result a function: the peers, then the methods.
    """
    query, key, value = workload.inputs()
    calls: dict[str, Callable[[], Tensor]] = {name: make(workload, query, key, value) for name, make in PEERS.items()}
    meant, routes = dict.fromkeys(PEERS, _DENSE), dict.fromkeys(PEERS, "torch")
    for method in methods:
        calls[method.name] = _call(query, key, value, method, workload.causal, backend)
        meant[method.name] = method
        routes[method.name] = explain(query, key, value, method, causal=workload.causal, backend=backend).backend
    with torch.inference_mode():
        checker = Checker(workload, query, key, value)
        checks = {name: checker.check(call(), meant[name]) for name, call in calls.items()}
        right = {name: call for name, call in calls.items() if checks[name].passed}
        timings = interleaved(right, seconds=seconds, rounds=rounds, on_round=on_round) if right else {}
    return [
        Result(
            workload, name, routes[name], Case(workload, meant[name]).flops, workload.dense_flops, workload.bytes,
            checks[name], timings.get(name),
        )
        for name in calls
    ]  # fmt: skip


def _call(query: Tensor, key: Tensor, value: Tensor, method: NM, causal: bool, backend: str) -> Callable[[], Tensor]:
    return lambda: attention(query, key, value, method, causal=causal, backend=backend)
