"""Checks which of the promised speeds the recorded results meet.

    python benchmarks/check_targets.py [record.json ...]

Reads records of one machine (by default those under benchmarks/results) and prints, for every target of targets.py,
what was measured. Exits with 1 when one is missed or was not measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from targets import Target, targets

from dynattn.lab.bench.record import Record, load
from dynattn.lab.timing import Spread

RESULTS = Path(__file__).parent / "results"


class Outcome(NamedTuple):
    target: Target
    measured: Spread | None
    disturbed: float  # share of the two functions' samples

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        return "met" if self.measured.median >= self.target.least else "MISSED"


def judge(records: Sequence[Record]) -> list[Outcome]:
    """What was measured for each target; of several records of a suite the last one counts."""
    by_suite = {record.suite: record for record in records}
    return [_judge(target, by_suite.get(target.suite)) for target in targets()]


def main(paths: Sequence[str]) -> int:
    """Print the outcomes; 0 where all targets are met."""
    files = [Path(path) for path in paths] or sorted(RESULTS.glob("*.json"))
    records = [load(file) for file in files]
    machines = {(r.machine["processor"], r.machine["threads"], r.machine["isa"]) for r in records}
    if len(machines) != 1:
        print(f"check_targets: pass records of one machine: got {sorted(map(str, machines)) or 'none'}")
        return 2
    print(*machines.pop(), sep=", ")
    outcomes = judge(records)
    for promise in dict.fromkeys(outcome.target.promise for outcome in outcomes):
        print(f"\n{promise}")
        for outcome in outcomes:
            if outcome.target.promise == promise:
                print("  " + _line(outcome))
    met = sum(outcome.verdict == "met" for outcome in outcomes)
    print(f"\n{met} of {len(outcomes)} met")
    return int(met < len(outcomes))


def _judge(target: Target, record: Record | None) -> Outcome:
    if record is None:
        return Outcome(target, None, 0.0)
    for workload, results in record.by_workload().items():
        shape = (workload.batch * workload.heads, workload.q_len, workload.head_dim)
        if shape != target.shape or workload.causal != target.causal:
            continue
        timings = [results[name].timing for name in (target.function, target.baseline) if name in results]
        samples = sum(len(timing.samples) for timing in timings if timing)
        disturbed = sum(timing.disturbed for timing in timings if timing)
        measured = record.speedup(workload, target.function, target.baseline)
        return Outcome(target, measured, disturbed / samples if samples else 0.0)
    return Outcome(target, None, 0.0)


def _line(outcome: Outcome) -> str:
    target, measured = outcome.target, outcome.measured
    name = "×".join(map(str, target.shape)) + (" causal" if target.causal else "")
    figure = f"{measured.median:.3f} [{measured.q1:.3f}–{measured.q3:.3f}]" if measured else "-"
    disturbed = f"  ({outcome.disturbed:.0%} of samples disturbed)" if outcome.disturbed else ""
    return f"{outcome.verdict:12} {name:20} {target.function:14} {figure:22} at least {target.least:.3f}{disturbed}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
