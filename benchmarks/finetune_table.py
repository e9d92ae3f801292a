"""Print the table of what fine-tuning gives, in Markdown, from records of ``dynattn finetune``.

python benchmarks/finetune_table.py benchmarks/results/finetune/*.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from dynattn.evals.training.results import Study
from dynattn.report.compare import interval, label


def main(paths: list[str]) -> None:
    """A row for each study and method: scores without and with training, and differences to dense with intervals."""
    print("| model and task | method | without training | less dense | fine-tuned | less dense, fine-tuned |")
    print("|---|---|---|---|---|---|")
    for path in paths:
        found = Study.model_validate_json(Path(path).read_text())
        for method in found.methods:
            cells = [found.name, label(method)]
            for trained in (False, True):
                arm = found.of(method, trained)
                cells += ["", ""] if arm is None else [f"{arm.score.mean:.4f}", interval(arm.difference)]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
