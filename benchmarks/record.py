"""Take the recorded results on this machine, with as many threads as cores.

    python benchmarks/record.py NAME          # writes benchmarks/results/NAME-<suite>.json

The machine has to be idle. Takes about ten minutes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from dynattn.lab.machine import machine

RESULTS = Path(__file__).parent / "results"
ROUNDS = {"targets": 21, "small": 31, "paper": 9, "dtypes": 9, "layout": 9, "decode": 15, "training": 11, "call": 51}


def main(name: str) -> int:
    """Run each suite in a process of its own; 0 where every result was right."""
    failed = 0
    for suite, rounds in ROUNDS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-c", "from dynattn.cli import app; app()", "bench", "--suite", suite,
                "--threads", str(machine()["cores"]), "--rounds", str(rounds),
                "--output", str(RESULTS / f"{name}-{suite}.json"), "--report", str(Path(folder) / "page.html"),
            ]  # fmt: skip
            failed += subprocess.run(command, check=False).returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
