"""What a model loses where inputs of its linear layers are left out: N:M, WINA, TEAL, CHESS, by projection and for all.

    python benchmarks/activations.py quality smollm2    # a few minutes on two cores, likewise minilm
    python benchmarks/activations.py table              # the tables of docs/methods/activations.md

Writes benchmarks/results/activations/<model>.json after every point: a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marked import difference, markdown, rewritten

from dynattn.lab import calibration, thresholds
from dynattn.lab.figures import BASELINE, Interval
from dynattn.lab.machine import machine
from dynattn.lab.prune.run import Exam, examine, scores
from dynattn.lab.prune.settings import Settings
from dynattn.lab.records import write_json
from dynattn.lab.scoring import evaluate
from dynattn.lab.statistics import interval
from dynattn.sparsity import ActivationSparsity, NMActivations, Sparsity, parse, watching
from dynattn.sparsity.sites import PARTS, places

RESULTS = Path(__file__).parent / "results" / "activations"
PAGE = Path(__file__).parent.parent / "docs" / "methods" / "activations.md"
START, END = "<!-- written by benchmarks/activations.py -->", "<!-- end -->"
SETTINGS = {"smollm2": Settings(model="smollm2", items=4, tokens=512), "minilm": Settings(model="minilm")}
PATTERNS = ((1, 2), (2, 4), (4, 8), (8, 16))
KEPT = (0.7, 0.5, 0.3)
EVERYWHERE = "all"
FAMILIES = {
    "N:M": [NMActivations(n, m).name for n, m in PATTERNS],
    "N:M, by norm": [NMActivations(n, m, norm=True).name for n, m in PATTERNS],
    "WINA": [f"wina-{keep}" for keep in KEPT],
    "TEAL": [f"teal-{keep}" for keep in KEPT],
    "CHESS": [f"chess-{keep}" for keep in KEPT],
}
"""The methods; those of N:M are tried in each projection by itself as well."""


def at(method: str, projection: str) -> str:
    """The name of a method at one projection of every layer, or of the method where it is for all."""
    if projection == EVERYWHERE:
        return method
    part = next(part for part, names in PARTS.items() if projection in names)
    chosen = parse(method)
    if not isinstance(chosen, ActivationSparsity):
        raise ValueError(f"activations: method must be one that chooses inputs: got {method!r}; try 'nmact-8-16'")
    others = tuple(name for name in PARTS[part] if name != projection)
    fields: dict[str, Any] = {part: chosen, "skip": others}
    return Sparsity(**fields).name


def plans(projections: Sequence[str]) -> list[str]:
    """Everything that is measured, by name."""
    everywhere = [name for names in FAMILIES.values() for name in names]
    alone = [at(name, one) for one in projections for name in (*FAMILIES["N:M"], *FAMILIES["N:M, by norm"])]
    return [*everywhere, *alone]


def point(exam: Exam, name: str) -> dict[str, Any]:
    """The score with a method, less the dense model's, and what the sites kept on the first input."""
    method, model = parse(name), exam.pretrained.model
    setting = thresholds.fitted(exam.pretrained, method)  # pyright: ignore[reportArgumentType]
    with setting.apply(model):
        outcome = evaluate(exam.task, exam.data, exam.pretrained, BASELINE, lambda: None)
        with watching() as seen:
            model(**exam.data.examples[0])
    shares = [one.kept_share for one in seen.values() if one.kept_share is not None]
    return {
        "difference": interval(scores(outcome, exam.whole) - scores(exam.whole, exam.whole)).model_dump(),
        "density": sum(one.kept for one in seen.values()) / sum(one.entries for one in seen.values()) if seen else 1.0,
        "kept_share": sum(shares) / len(shares) if shares else None,
        "least_kept_share": min(shares, default=None),
    }


def measure(model: str) -> None:
    """Score what the record lacks."""
    path, exam = RESULTS / f"{model}.json", examine(SETTINGS[model])
    projections = list(dict.fromkeys(place.projection for place in places(exam.pretrained.model)))
    found: dict[str, Any] = (
        json.loads(path.read_text())
        if path.exists()
        else {
            "machine": machine(), "metric": exam.task.metric, "data": exam.data.summary,
            "dense": float(scores(exam.whole, exam.whole).mean()), "projections": projections,
            "calibrated_on": f"{thresholds.TEXTS} Wikipedia articles, up to {calibration.TOKENS} tokens each",
            "points": {},
        }
    )  # fmt: skip
    for name in plans(projections):
        if name not in found["points"]:
            found["points"][name] = point(exam, name)
            write_json(path, found)
            print(name, found["points"][name]["difference"]["mean"], flush=True)


def table() -> str:
    """Every point in Markdown."""
    return "\n\n".join(_of_model(model) for model in SETTINGS if (RESULTS / f"{model}.json").exists()) or (
        "Not measured yet."
    )


def _of_model(model: str) -> str:
    found = json.loads((RESULTS / f"{model}.json").read_text())
    points, projections = found["points"], found["projections"]
    said = f"**{model}**: {found['metric']}, dense {found['dense']:.3f}; {found['data']}."
    rows = [
        [
            family,
            f"`{name}`",
            _percent(points[name]["density"]),
            _number(points[name]["kept_share"]),
            _lost(points, name),
        ]
        for family, names in FAMILIES.items()
        for name in names
        if name in points
    ]
    whole = markdown(["in all layers", "", "density, as measured", "mean kept share", "change"], rows)
    columns = [*projections, EVERYWHERE]
    methods = [*FAMILIES["N:M"], *FAMILIES["N:M, by norm"]]
    rows = [[f"`{name}`", *(_lost(points, at(name, one), brief=True) for one in columns)] for name in methods]
    alone = markdown(["", *columns], rows)
    where = "In one projection of every layer, the others dense:"
    return f"{said} Thresholds: {found['calibrated_on']}.\n\n{whole}\n\n{where}\n\n{alone}"


def _lost(points: Mapping[str, Any], name: str, brief: bool = False) -> str:
    if name not in points:
        return "–"
    found = Interval(**points[name]["difference"])
    return f"{found.mean:+.3f}" if brief else difference(found)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _number(share: float | None) -> str:
    return "–" if share is None else f"{share:.3f}"


def main(arguments: list[str]) -> None:
    """Measure a model, or write the tables."""
    if arguments == ["table"]:
        PAGE.write_text(rewritten(PAGE.read_text(), START, table(), END, "activations"))
    elif len(arguments) == 2 and arguments[0] == "quality" and arguments[1] in SETTINGS:
        measure(arguments[1])
    else:
        raise SystemExit(f"activations: usage: activations.py quality {'|'.join(SETTINGS)}, or activations.py table")


if __name__ == "__main__":
    main(sys.argv[1:])
