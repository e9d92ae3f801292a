"""Print the README's table of speed-ups, in Markdown, from a record of the suite "targets".

python benchmarks/speed_table.py benchmarks/results/NAME-targets.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from dynattn.lab.bench.peers import SDPA, UNFUSED
from dynattn.lab.bench.record import load

COLUMNS = {"nm-1-2": "1:2", "nm-2-4": "2:4", "dense": "own dense"}


def main(path: str) -> None:
    """Medians of the ratios within a round; the last column is the ratio of 1:2 to unfused attention."""
    record = load(Path(path))
    print("| batch · heads, length, head_dim | " + " | ".join(COLUMNS.values()) + " | 1:2 over unfused |")
    print("|---|" + "---|" * (len(COLUMNS) + 1))
    for workload, results in record.by_workload().items():
        timings = {name: result.timing for name, result in results.items() if result.timing is not None}
        cells = [f"{timings[name].speedup(timings[SDPA]).median:.2f}×" for name in COLUMNS]
        unfused = f"{timings['nm-1-2'].speedup(timings[UNFUSED]).median:.1f}×"
        shape = f"{workload.batch * workload.heads}, {workload.q_len}, {workload.head_dim}"
        print(f"| {shape}{', causal' if workload.causal else ''} | " + " | ".join([*cells, unfused]) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
