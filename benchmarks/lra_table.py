"""Print the table of what training from scratch gives, in Markdown, from records of ``dynattn lra``.

python benchmarks/lra_table.py benchmarks/results/lra/*.json

Beside each record lies the folder of its name, as the command writes it, with ``floors.json`` and ``kept.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dynattn.lab.figures import BASELINE
from dynattn.lab.training.results import Study
from dynattn.lab.words import interval, label


def main(paths: list[Path]) -> None:
    """A row for each study and method; kept mass in models trained dense (before) and with the method (after)."""
    print("| task | seeds | best floor | method | accuracy [95%] | less dense [95%] | kept mass, before / after |")
    print("|---|---|---|---|---|---|---|")
    for path in paths:
        found = Study.model_validate_json(path.read_text(encoding="utf-8"))
        folder = path.with_suffix("")
        floor = max(json.loads((folder / "floors.json").read_text(encoding="utf-8")).values())
        kept = {each["method"]: each for each in json.loads((folder / "kept.json").read_text(encoding="utf-8"))}
        for method in found.methods:
            arm = found.of(method, trained=True)
            if arm is None:
                continue
            mass = kept.get(method)
            shares = (
                f"{mass['trained_dense']:.3f} / {mass['trained_with_it']:.3f}"
                if mass
                else "1"
                if method == BASELINE
                else "–"
            )
            score = f"{arm.score.mean:.3f} [{arm.score.low:.3f}, {arm.score.high:.3f}]"
            cells = [found.name, str(len(found.seeds)), f"{floor:.3f}", label(method), score, interval(arm.difference)]
            print(f"| {' | '.join([*cells, shares])} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(path) for path in sys.argv[1:]])
