"""Record runs of ``dynattn frontier``, with as many threads as cores, on an idle machine.

    python benchmarks/record_frontier.py             # benchmarks/results/frontier/minilm.json, within ten minutes
    python benchmarks/record_frontier.py smollm2     # reading and writing, 512 tokens, two budgets: half an hour

A run that was killed goes on in reports/ when the command is given again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from dynattn.lab.machine import machine

RESULTS = Path(__file__).parent / "results" / "frontier"
OPTIONS = {
    "minilm": [],
    "smollm2": ["--phases", "prefill,decode", "--tokens", "512", "--budgets", "0.5,0.25"],
}


def main(model: str) -> int:
    """Record a model; 0 where everything could be measured."""
    command = [sys.executable, "-m", "dynattn", "frontier", "--model", model, "--threads", str(machine()["cores"])]
    code = subprocess.run([*command, *OPTIONS[model], "--output", "reports"], check=False).returncode
    found = Path("reports") / f"frontier-{model}.json"
    if found.exists():
        RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copy(found, RESULTS / f"{model}.json")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "minilm"))
