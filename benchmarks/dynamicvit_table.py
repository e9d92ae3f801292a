"""Write the tables of docs/methods/dynamicvit.md from the record of benchmarks/dynamicvit.py.

python benchmarks/dynamicvit_table.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from dynamicvit import RESULT, DynamicViTRecord, Judged, Times, Work
from marked import difference, markdown, rewritten

from dynattn.lab.compare.results import Speed
from dynattn.lab.machine import describe

PAGE = Path(__file__).parent.parent / "docs" / "methods" / "dynamicvit.md"
START, END = "<!-- written by benchmarks/dynamicvit_table.py -->", "<!-- end -->"


def tables(found: DynamicViTRecord) -> str:
    """Quality, arithmetic and time, in Markdown."""
    parts = [*(_quality(judged) for judged in found.quality), _work(found.work)]
    parts += [_times(times) for times in found.times]
    return "\n\n".join(part for part in parts if part)


def _quality(found: Judged) -> str:
    head = ["tokens chosen by", "ρ", "attention", "area under ROC", "less dense [95%]", "map's correlation to dense"]
    columns, rows = [*head, "class token's cosine", "all features' cosine"], []
    for arm in found.arms:
        chooser, ratio, attention = arm.arm.split(" ")
        quality = arm.saliency
        agreement = "" if quality.agreement is None else f"{quality.agreement:.3f}"
        cells = [chooser, ratio, attention, f"{quality.score:.3f}", difference(quality.difference), agreement]
        rows.append([*cells, f"{mean(arm.class_token):.4f}", f"{mean(arm.features):.3f}"])
    return f"Quality, on {found.data}:\n\n{markdown(columns, rows)}"


def _work(found: Sequence[Work]) -> str:
    if not found:
        return ""
    rows = []
    for row in found:
        dense = next(other for other in found if other.pixels == row.pixels and other.ratio == 1)
        tokens = ", ".join(str(row.tokens[layer]) for layer in (0, 3, 6, 9))
        saved = 1 - row.flops / dense.flops
        cells = [str(row.pixels), "dense" if row.ratio == 1 else f"{row.ratio:g}", tokens, f"{row.flops / 1e9:.1f} G"]
        rows.append([*cells, f"{saved:.0%}"])
    columns = ["pixels", "ρ", "tokens in layers 1, 4, 7, 10", "operations", "saved"]
    return f"Arithmetic, predictors included, with dense attention:\n\n{markdown(columns, rows)}"


def _times(times: Times) -> str:
    shape = f"{times.pixels} pixels, {times.batch} {'pictures' if times.batch > 1 else 'picture'} at once"
    kind = {"wall": "Time", "cpu": "CPU time"}[times.clock]
    head = f"{kind} of a forward, {shape} ({describe(times.machine)}; load {times.machine['load']} as it ended):"
    columns = ["model", "attention", "ms [quartiles]", "times as fast [quartiles]", "rounds, disturbed"]
    return f"{head}\n\n{markdown(columns, [_timed(row) for row in times.rows])}"


def _timed(row: Speed) -> list[str]:
    chooser, ratio, attention = row.method.split(" ")
    s, x = row.seconds, row.speedup
    name = "dense" if chooser == "dense" else f"DynamicViT, ρ = {ratio}"
    spent = f"{1e3 * s.median:.0f} [{1e3 * s.q1:.0f}, {1e3 * s.q3:.0f}]"
    return [name, attention, spent, f"{x.median:.2f} [{x.q1:.2f}, {x.q3:.2f}]", f"{row.samples}, {row.disturbed}"]


if __name__ == "__main__":
    record = DynamicViTRecord.model_validate_json(RESULT.read_text(encoding="utf-8"))
    page = rewritten(PAGE.read_text(encoding="utf-8"), START, tables(record), END, "dynamicvit_table")
    PAGE.write_text(page, encoding="utf-8")
