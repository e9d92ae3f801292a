"""Record ``dynattn compare`` on the models that packages carry, with as many threads as cores.

    python benchmarks/record_compare.py                     # all: benchmarks/results/compare/<name>.json
    python benchmarks/record_compare.py whisper dinov2      # these
    python benchmarks/record_compare.py smollm2-bfloat16 minilm-bfloat16

The machine has to be idle. Each model runs in a process of its own; how long it took is printed. Those in bfloat16 are
for machines that multiply it faster than float32.
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
RUNS = {  # the options of the command besides the model, which is the first word of a name
    "minilm": ["--methods", "dense,nm-2-4,nm-1-2,nm-2-4-x16,nm-1-2-x16"],
    "dinov2": [],
    "whisper": [],
    "smollm2": [],
    "smollm2-bfloat16": [
        "--dtype", "bfloat16", "--tokens", "4096", "--items", "6", "--tasks", "perplexity", "--methods",
        "dense,nm-1-2-x16-w64-s4,blocktopk-0.1-b64,blockskip-4.0-in(blockmass-0.98-b64-similar)",
    ],
    "minilm-bfloat16": ["--dtype", "bfloat16", "--methods", "dense,nm-2-4,nm-1-2,nm-1-2-x16"],
}  # fmt: skip


def main(names: Sequence[str]) -> int:
    """Record the runs named, or all; 0 where each has its record."""
    unknown = set(names) - set(RUNS)
    if unknown:
        print(f"record_compare: name must be one of {', '.join(RUNS)}: got {', '.join(sorted(unknown))}")
        return 2
    failed = []
    for name in names or RUNS:
        start = time.perf_counter()
        if not _record(name):
            failed.append(name)
        print(f"{name}: {(time.perf_counter() - start) / 60:.1f} minutes")
    if failed:
        print(f"record_compare: no record of {', '.join(failed)}; the reason is above")
    return int(bool(failed))


def _record(name: str) -> bool:
    model = name.partition("-")[0]
    command = [sys.executable, "-c", "from dynattn.cli import app; app()", "compare", "--model", model]
    command += [*RUNS[name], "--threads", str(machine()["cores"])]
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run([*command, "--output", folder], check=False).returncode != 0:
            return False
        RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder) / f"compare-{model}.json", RESULTS / f"{name}.json")
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
