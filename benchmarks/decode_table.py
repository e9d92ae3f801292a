"""Write the tables of docs/decode.md from the records of benchmarks/decode.py.

python benchmarks/decode_table.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from marked import rewritten

from dynattn.lab.decode.results import DecodeQuality, DecodeSpeed
from dynattn.lab.decode.ways import BASELINE
from dynattn.lab.statistics import interval

RESULTS = Path(__file__).parent / "results" / "decode"
PAGE = Path(__file__).parent.parent / "docs" / "decode.md"
START, END = "<!-- written by benchmarks/decode_table.py -->", "<!-- end -->"


def tables(speeds: Sequence[DecodeSpeed], qualities: Sequence[DecodeQuality]) -> str:
    """A table for each record, in Markdown, shorter prompts first."""
    return "\n\n".join([*map(_speed, speeds), *map(_quality, qualities)])


def _speed(found: DecodeSpeed) -> str:
    machine, baseline = found.machine, found.of(BASELINE)
    samples = sum(row.samples for row in found.rows)
    disturbed = sum(row.disturbed or 0 for row in found.rows)
    share = baseline.cache / (found.weights + baseline.cache)
    lines = [
        f"**Speed after {found.length} tokens** ({found.model}, {found.weights / 2**20:.0f} MiB of weights; "
        f"{machine['processor']}, {machine['threads']} thread; {disturbed} of {samples} samples disturbed by other "
        f"processes). The cache is {share:.0%} of the bytes that a dense step reads: were reading all that counts, "
        f"none of it to read would be {1 / (1 - share):.2f} times as fast.",
        "",
        "| way | tokens/s | ms a token | speed-up over dense | cache, MiB |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(found.rows, key=lambda row: (row.way != BASELINE, row.way == "bare", row.way)):
        step = f"{row.step.median:.0f} [{row.step.q1:.0f}, {row.step.q3:.0f}]"
        times = "1" if row is baseline else f"{row.speedup.median:.2f} [{row.speedup.q1:.2f}, {row.speedup.q3:.2f}]"
        lines.append(f"| `{row.way}` | {1e3 / row.step.median:.1f} | {step} | {times} | {row.cache / 2**20:.0f} |")
    return "\n".join(lines)


def _quality(found: DecodeQuality) -> str:
    tasks = list(dict.fromkeys(item.task for item in found.items))
    counts = [sum(item.task == task for item in found.items) for task in tasks]
    lines = [
        f"**Quality after {found.length} tokens** ({found.model}; NLL of the answer, nats per token; for the other "
        "ways the difference to dense, paired by context, 95% interval, bold where it is a loss that these contexts "
        "tell from noise)",
        "",
        "| way | " + " | ".join(f"{task} ({count})" for task, count in zip(tasks, counts, strict=True)) + " |",
        "|---|" + "---|" * len(tasks),
    ]
    for way in found.ways:
        lines.append(f"| `{way}` | " + " | ".join(_cell(found, task, way) for task in tasks) + " |")
    return "\n".join(lines)


def _cell(found: DecodeQuality, task: str, way: str) -> str:
    items = [item for item in found.items if item.task == task]
    if way == BASELINE:
        return f"{np.mean([item.nll[way] for item in items]):.3f}"
    change = interval(np.array([item.nll[way] - item.nll[BASELINE] for item in items]))
    if change.low is None or change.high is None:
        return f"{change.mean:+.3f}"
    text = f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
    return f"**{text}**" if change.low > 0 else text


def main() -> int:
    """Write the page."""
    speeds = [DecodeSpeed.model_validate_json(path.read_text()) for path in RESULTS.glob("speed-*.json")]
    qualities = [DecodeQuality.model_validate_json(path.read_text()) for path in RESULTS.glob("quality-*.json")]
    text = tables(sorted(speeds, key=lambda f: f.length), sorted(qualities, key=lambda f: f.length))
    PAGE.write_text(rewritten(PAGE.read_text(), START, text, END, "decode_table"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
