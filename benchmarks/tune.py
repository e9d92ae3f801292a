"""Record runs of ``dynattn tune``, with as many threads as cores, on an idle machine.

    python benchmarks/tune.py                    # benchmarks/results/tune/smollm2.json and its page, ten minutes
    python benchmarks/tune.py minilm dinov2      # these; all four: smollm2 minilm dinov2 whisper, eight minutes or ten
    python benchmarks/tune.py smollm2 --length 4096 --dtype bfloat16 --minutes 20      # smollm2-bfloat16-4096.json
    python benchmarks/tune.py table              # the table of docs/tune.md from the records of prefill
    python benchmarks/tune.py smollm2 --phase decode --length 2048                     # smollm2-decode.json
    python benchmarks/tune.py smollm2 --phase both --minutes 20                        # smollm2-both.json

Each record holds the assignment that was found, and beside it the best single method for all heads: how fast it makes
the model, and what it loses on the data of the proof, which neither has seen. Options go on to the command; a
phase, dtype or length among them is part of the record's name, and without a dtype it is float32. smollm2-default is
what ``dynattn tune smollm2`` wrote without options, in whose six minutes there is no time for that. A run that was
killed goes on in reports/ when the command is given again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from marked import markdown, rewritten

from dynattn.lab.machine import describe, machine
from dynattn.lab.tune.results import Rival
from dynattn.lab.tune.terminal import against
from dynattn.lab.words import label

RESULTS = Path(__file__).parent / "results" / "tune"
PAGE = Path(__file__).parent.parent / "docs" / "tune.md"
START, END = "<!-- written by benchmarks/tune.py -->", "<!-- end -->"
MINUTES = {"smollm2": 10, "minilm": 8, "dinov2": 8, "whisper": 8}
"""Where none are asked for: the command's six allow few items, and leave no time for the single method beside them."""
FILES = {"tune.json": "{}.json", "tune.html": "{}.html", "model.dynattn.json": "{}.dynattn.json"}


def with_table(page: str) -> str:
    """The page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")) if ".dynattn" not in path.name]
    found = [each for each in found if each.get("phase") == "prefill"]  # records of decoding have none
    on_machine: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        on_machine.setdefault(each["machine"]["processor"], []).append(each)
    return rewritten(page, START, "\n\n".join(map(_tables, on_machine.values())), END, "tune")


def _tables(found: list[dict[str, Any]]) -> str:
    """The records of one machine."""
    columns = ["", "whole model", "loss: measured, below", "best single method for all heads", "whole model", "loss"]
    table = markdown(columns, [_cells(each) for each in found])
    said = [line for each in found for line in _said(each)]
    return "\n".join([f"{describe(found[0]['machine'])}:", "", table, *said])


def _said(found: dict[str, Any]) -> list[str]:
    """Whether what was found beats the best single method, and why it does not where that is so."""
    if found["verdict"] != "faster" or found.get("exact"):
        return ["", f"{found['model']}: {found['reason']}."]
    if found["rival"] is None:
        return []
    rival = {"bound": None, "limit": found["settings"]["max_loss"], "proved": False, **found["rival"]}  # older ones
    return ["", f"{found['model']}: {against(Rival(**rival), found['speed']['speedup']['median'])}"]


def _cells(found: dict[str, Any]) -> list[str]:
    where = (
        f"{found['model']}, {found['time']['length']} tokens, {found['dtype']}, {found['settings']['minutes']:g} min"
    )
    if found["verdict"] != "faster":
        return [where, "keep dense attention", "", "", "", ""]
    if found.get("exact"):
        return [where, f"{found['speed']['speedup']['median']:.2f}×", "none: dense attention", "", "", ""]
    lost, rival = found["tries"][-1]["lost"], found["rival"]
    proved = "; ".join(f"{each['task']} {each['loss']:+.2%}, {each['bound']:.2%}" for each in lost)
    cells = [where, f"{found['speed']['speedup']['median']:.2f}×", proved]
    if rival is None:
        return [*cells, "", "", ""]
    return [*cells, label(rival["method"]), f"{rival['speedup']:.2f}×", f"{rival['loss']:+.2%}"]


def main(arguments: list[str]) -> int:
    """Record models; 0 where all runs ended, with a gain or without."""
    first = next((i for i, each in enumerate(arguments) if each.startswith("-")), len(arguments))
    models, options = arguments[:first] or ["smollm2"], arguments[first:]
    return max(_record(model, options) for model in models)


def _option(options: list[str], name: str) -> str | None:
    """The value of an option, given as ``--name value`` or ``--name=value``."""
    for i, each in enumerate(options):
        if each.startswith(f"--{name}="):
            return each.partition("=")[2]
        if each == f"--{name}" and i + 1 < len(options):
            return options[i + 1]
    return None


def _record(model: str, options: list[str]) -> int:
    command = [sys.executable, "-m", "dynattn", "tune", model, "--threads", str(machine()["cores"])]
    if _option(options, "dtype") is None:  # the command's own default depends on the machine
        command += ["--dtype", "float32"]
    if model in MINUTES and "--minutes" not in options:
        options = [*options, "--minutes", str(MINUTES[model])]
    code = subprocess.run([*command, *options, "--output", "reports"], check=False).returncode
    RESULTS.mkdir(parents=True, exist_ok=True)
    phase = _option(options, "phase")
    folder = f"tune-{model}" + (f"-{phase}" if phase in ("decode", "both") else "")
    named = "-".join(
        [folder.removeprefix("tune-"), *(x for x in map(partial(_option, options), ("dtype", "length")) if x)]
    )
    for name, kept in FILES.items():
        found, there = Path("reports") / folder / name, RESULTS / kept.format(named)
        if code == 0 and found.exists():
            shutil.copy(found, there)
        elif code == 0:  # of a run before, which found a gain
            there.unlink(missing_ok=True)
    return code


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        PAGE.write_text(with_table(PAGE.read_text()))
        sys.exit()
    sys.exit(main(sys.argv[1:]))
