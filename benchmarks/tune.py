"""Record runs of ``dynattn tune``, with as many threads as cores, on an idle machine.

    python benchmarks/tune.py                    # benchmarks/results/tune/smollm2.json and its page, six minutes
    python benchmarks/tune.py minilm dinov2      # these; all four: smollm2 minilm dinov2 whisper, eight minutes each
    python benchmarks/tune.py smollm2 --length 4096 --minutes 12                       # options go on to the command
    python benchmarks/tune.py smollm2 --phase decode --length 2048                     # smollm2-decode.json

Each record holds the assignment that was found, and beside it the best single method for all heads: how fast it makes
the model, and what it loses on the data of the proof, which neither has seen. A run that was killed goes on in reports/
when the command is given again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from dynattn.lab.machine import machine

RESULTS = Path(__file__).parent / "results" / "tune"
MINUTES = {"minilm": 8, "dinov2": 8, "whisper": 8}
"""Where none are asked for and the command's six allow few items."""
FILES = {"tune.json": "{}.json", "tune.html": "{}.html", "model.dynattn.json": "{}.dynattn.json"}


def main(arguments: list[str]) -> int:
    """Record models; 0 where all runs ended, with a gain or without."""
    first = next((i for i, each in enumerate(arguments) if each.startswith("-")), len(arguments))
    models, options = arguments[:first] or ["smollm2"], arguments[first:]
    return max(_record(model, options) for model in models)


def _record(model: str, options: list[str]) -> int:
    command = [sys.executable, "-m", "dynattn", "tune", model, "--threads", str(machine()["cores"])]
    if model in MINUTES and "--minutes" not in options:
        options = [*options, "--minutes", str(MINUTES[model])]
    code = subprocess.run([*command, *options, "--output", "reports"], check=False).returncode
    RESULTS.mkdir(parents=True, exist_ok=True)
    decoding = "decode" in options or "--phase=decode" in options
    named = f"{model}-decode" if decoding else model
    for name, kept in FILES.items():
        found = Path("reports") / f"tune-{named}" / name
        if code == 0 and found.exists():
            shutil.copy(found, RESULTS / kept.format(named))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
