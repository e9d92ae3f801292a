"""Record ``dynattn compare`` on the models that packages carry, with as many threads as cores.

    python benchmarks/record_compare.py                     # all four: benchmarks/results/compare/<model>.json
    python benchmarks/record_compare.py whisper dinov2

The machine has to be idle. Each model runs in a process of its own; how long it took is printed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dynattn.lab.machine import machine

RESULTS = Path(__file__).parent / "results" / "compare"
METHODS = {  # empty: the command's own choice
    "minilm": "dense,nm-2-4,nm-1-2,nm-2-4-x16,nm-1-2-x16",
    "dinov2": "",
    "whisper": "",
    "smollm2": "",
}


def main(models: Sequence[str]) -> int:
    """Record the models named, or all; 0 where each has its record."""
    unknown = set(models) - set(METHODS)
    if unknown:
        print(f"record_compare: model must be one of {', '.join(METHODS)}: got {', '.join(sorted(unknown))}")
        return 2
    failed = []
    for model in models or METHODS:
        start = time.perf_counter()
        if not _record(model):
            failed.append(model)
        print(f"{model}: {(time.perf_counter() - start) / 60:.1f} minutes")
    if failed:
        print(f"record_compare: no record of {', '.join(failed)}; the reason is above")
    return int(bool(failed))


def _record(model: str) -> bool:
    command = [sys.executable, "-c", "from dynattn.cli import app; app()", "compare", "--model", model]
    command += ["--methods", METHODS[model], "--threads", str(machine()["cores"])]
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run([*command, "--output", folder], check=False).returncode != 0:
            return False
        RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder) / f"compare-{model}.json", RESULTS / f"{model}.json")
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
