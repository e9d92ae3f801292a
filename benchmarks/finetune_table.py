"""Print tables of what fine-tuning gives, in Markdown, from records of ``dynattn finetune``: one a record.

python benchmarks/finetune_table.py benchmarks/results/finetune/*.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from dynattn.lab.training.results import Study
from dynattn.lab.words import interval, label

STATES = (("without training", False, False), ("dense fine-tuned, swapped in", True, True), ("fine-tuned", True, False))


def table(found: Study) -> list[str]:
    """A row for each method: its score and its difference to dense, in each state that the record has."""
    states = [state for state in STATES if any((arm.trained, arm.swapped) == state[1:] for arm in found.arms)]
    columns = ["method", *(cell for name, _, _ in states for cell in (name, "less dense"))]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for method in found.methods:
        cells = [label(method)]
        for _, trained, swapped in states:
            arm = found.of(method, trained, swapped)
            cells += ["–", "–"] if arm is None else [f"{arm.score.mean:.4f}", interval(arm.difference)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(paths: list[str]) -> None:
    """The tables, each under what it is of."""
    for path in paths:
        found = Study.model_validate_json(Path(path).read_text(encoding="utf-8"))
        seeds = f"{len(found.seeds)} seeds, {len(found.items)} items"
        print(f"{found.name}: {found.metric}, {seeds}, 95% intervals\n", *table(found), "", sep="\n")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
