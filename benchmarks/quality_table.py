"""Print the README's table of quality, in Markdown, from records of ``dynattn compare``.

python benchmarks/quality_table.py benchmarks/results/compare/*.json
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from dynattn.evals.compare.results import Comparison
from dynattn.report.compare import label


def main(paths: list[str]) -> None:
    """A row for each model, task and method; the difference is to dense attention, with its 95% interval."""
    print("| model | task | method | kept mass | score | difference to dense |")
    print("|---|---|---|---|---|---|")
    for path in paths:
        found = Comparison.model_validate_json(Path(path).read_text())
        masses = {kept.method: statistics.fmean(mass for layer in kept.mass for mass in layer) for kept in found.kept}
        for task in found.tasks:
            for result in task.results:
                if result.method == "dense":
                    continue
                mass = f"{masses[result.method]:.3f}" if result.method in masses else "1"
                change = result.difference
                cell = "" if change is None else f"{change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
                name = "dense (SDPA)" if change is None else label(result.method)
                print(f"| {found.model} | {task.metric} | {name} | {mass} | {result.score:.4f} | {cell} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
