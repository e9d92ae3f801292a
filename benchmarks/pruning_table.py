"""Write the tables of docs/methods/spatten.md and docs/methods/ltp.md from the records of benchmarks/pruning.py.

python benchmarks/pruning_table.py
"""

from __future__ import annotations

from pathlib import Path

from marked import difference, markdown, rewritten
from pruning import PLANS, RESULTS, QualityRecord, Scored, SpeedRecord, TimedPoint
from pruning_learn import LearntRecord

from dynattn.lab.machine import describe

DOCS = Path(__file__).parent.parent / "docs" / "methods"
START, END = "<!-- written by benchmarks/pruning_table.py -->", "<!-- end -->"
LEARNT = "<!-- learnt thresholds, written by benchmarks/pruning_table.py -->"
_COSTS = {"fused": "fused", "importance": "importance alone", "both": "output and importance in one pass"}
_SHOWN = {
    "spatten.md": ("dense", "spatten", "random-tokens", "first-tokens"),
    "ltp.md": ("dense", "ltp", "random-tokens"),
}
_LEARNT_COLUMNS = (
    "λ", "thresholds learnt", "loss, first and last 5 steps", "soft mask, first and last step", "tokens seen, hard",
    "score", "difference to dense", "times as fast as dense",
)  # fmt: skip


def tables(kinds: tuple[str, ...]) -> str:
    """A table for each model that has a record, in Markdown."""
    parts = []
    for model in PLANS:
        path = RESULTS / f"{model}-quality.json"
        if not path.exists():
            parts.append(f"**{model}**: not measured yet.")
            continue
        scores = QualityRecord.model_validate_json(path.read_text())
        speed = RESULTS / f"{model}-speed.json"
        times = SpeedRecord.model_validate_json(speed.read_text()) if speed.exists() else None
        parts.append(_table(scores, times, kinds))
    return "\n\n".join(parts)


def _table(scores: QualityRecord, times: SpeedRecord | None, kinds: tuple[str, ...]) -> str:
    of = {} if times is None else {(point.implementation, point.method): point for point in times.timed}
    lines = [
        f"**{scores.model}** ({scores.data})", "",
        f"| method | attention inside | tokens seen | {scores.metric} | difference to dense | times as fast as dense |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for point in scores.scored:
        if point.method.startswith(kinds):
            lines.append(_row(point, of.get((point.implementation, point.method))))
    if times is not None:
        disturbed = sum(point.disturbed for point in times.timed)
        lines += [
            "",
            f"Speed: one item of {times.length} tokens, {times.rounds} interleaved rounds, median (quartiles); "
            f"{disturbed} of {times.rounds * len(times.timed)} samples were disturbed by other processes, load "
            f"{times.machine['load']} at the start. {describe(times.machine)}.",
            "",
            "One layer's attention at this length: "
            + ", ".join(f"{_COSTS[name]} {spread.median * 1e3:.1f} ms" for name, spread in times.importance.items())
            + ".",
        ]
    return "\n".join(lines)


def _row(point: Scored, timed: TimedPoint | None) -> str:
    speed = "not measured"
    if timed is not None:
        speed = f"{timed.speedup.median:.2f} ({timed.speedup.q1:.2f}–{timed.speedup.q3:.2f})"
    cells = [
        point.method, point.implementation.removeprefix("dynattn:"), f"{point.keep_ratio:.2f}",
        f"{point.quality.score:.3f}", difference(point.quality.difference), speed,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def learnt() -> str:
    """What learning the thresholds gave."""
    path = RESULTS / "minilm-learnt.json"
    if not path.exists():
        return "Not measured yet."
    record = LearntRecord.model_validate_json(path.read_text())
    timed = {point.method: point.speedup for point in record.timed}
    rows = []
    for found in record.learnt:
        method, quality = found.scored.method, found.scored.quality
        first, last = (sum(part) / len(part) for part in (found.losses[:5], found.losses[-5:]))
        thresholds = ", ".join(f"{float(part):.4f}" for part in method.removeprefix("ltp-").split("-")[:-1])
        times = f"{timed[method].median:.2f}" if method in timed else "not measured"
        rows.append(
            [
                f"{found.strength:g}", thresholds, f"{first:.3f}, {last:.3f}",
                f"{found.kept[0]:.2f}, {found.kept[-1]:.2f}", f"{found.scored.keep_ratio:.2f}", f"{quality.score:.3f}",
                difference(found.scored.quality.difference), times,
            ]
        )  # fmt: skip
    head = f"MiniLM, {record.steps} steps of {record.batch} passages, from {record.start}, T = {record.temperature:g}:"
    return f"{head}\n\n{markdown(_LEARNT_COLUMNS, rows)}"


def main() -> None:
    """Rewrite both pages."""
    for name, kinds in _SHOWN.items():
        page = DOCS / name
        text = rewritten(page.read_text(), START, tables(kinds), END, "pruning_table")
        if name == "ltp.md":
            text = rewritten(text, LEARNT, learnt(), END, "pruning_table")
        page.write_text(text)


if __name__ == "__main__":
    main()
