"""Tables of docs/methods/{dsa,scatterbrain,efficient}.md from the records of family_features.py, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marked import markdown, rewritten

PAGES = Path(__file__).parent.parent / "docs" / "methods"
END = "<!-- end -->"
MODELS = ("minilm", "smollm2", "dinov2")
_WAITING = "Not measured yet."
_ALONE = {
    "both": "both", "features_alone": "these features alone", "pairs_alone": "these pairs alone",
    "features_same_budget": "features alone, same budget", "pairs_same_budget": "pairs alone, same budget",
}  # fmt: skip
_GUESSES = {
    "true": "true scores", "trained": "trained", "untrained": "untrained", "dsa k=1.0 int8": "per head, k 1, int8",
    "dsa k=0.25 int4": "per head, k 0.25, int4", "random": "random",
}  # fmt: skip


def write_tables(records: Mapping[str, Any]) -> None:
    """Write every table in its place. A record that is not there leaves a line that says so."""
    for page, tables in pages(records).items():
        path = PAGES / page
        path.write_text(with_tables(path.read_text(), tables))


def pages(records: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The tables of each page, by the name of their mark."""
    mixing = ("scatterbrain", "efficient", "mean of values")
    quality, speed = _quality(records), _speed(records)
    return {
        "dsa.md": {"errors": _errors(records, ("topk", "dsa", "random")), "predictor": _predictor(records),
                   "quality": quality(("topk", "dsa")), "time": speed(("dsa", "topk"))},
        "scatterbrain.md": {"errors": _errors(records, ("topk", *mixing)), "budget": _budget(records),
                            "quality": quality(("topk", "scatterbrain")), "time": speed(("scatterbrain",))},
        "efficient.md": {"errors": _errors(records, mixing), "quality": quality(("efficient", "scatterbrain")),
                         "time": speed(("efficient",))},
    }  # fmt: skip


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with the tables in their places.

    Raises:
        ValueError: the page has no place for one.
    """
    for mark, table in tables.items():
        page = rewritten(
            page, f"<!-- {mark}: written by benchmarks/family_features.py -->", table, END, "family_tables"
        )
    return page


def _errors(records: Mapping[str, Any], kinds: tuple[str, ...]) -> str:
    found = {model: records[model]["methods"] for model in MODELS if model in records}
    names = [name for name in next(iter(found.values())) if name.startswith(kinds)] if found else []
    rows = [[f"`{name}`" if "-" in name or name == "efficient" else name,
             *(_error(methods.get(name)) for methods in found.values())] for name in names]  # fmt: skip
    return markdown(["method", *found], rows) if rows else _WAITING


def _error(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['error']:.2f}" + (f" ({row['kept_mass']:.2f})" if "kept_mass" in row else "")


def _quality(records: Mapping[str, Any]) -> Any:
    def table(kinds: tuple[str, ...]) -> str:
        tasks = records.get("retrieval", {}).get("methods", {})
        text = records.get("smollm2", {}).get("methods", {})
        names = dict.fromkeys([*tasks, *(name for name, row in text.items() if "nll" in row)])
        rows = [
            [f"`{name}`" if name != "sdpa" else "SDPA (dense)", *_score(tasks.get(name)),
             f"{text[name]['nll']:.2f}" if "nll" in text.get(name, {}) else ""]
            for name in names if name == "sdpa" or name.startswith(kinds)
        ]  # fmt: skip
        columns = ["method", "MiniLM: MRR@10", "difference to dense", "cosine", "SmolLM2: nats a token"]
        return markdown(columns, rows) if rows else _WAITING

    return table


def _score(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["", "", ""]
    change = row["difference"]
    told = "" if change is None else f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
    cosine = "" if row["agreement"] is None else f"{row['agreement']:.3f}"
    return [f"{row['score']:.3f}", told, cosine]


def _budget(records: Mapping[str, Any]) -> str:
    rows = [
        [model, f"{row['features']} + {row['pairs']['mean']:.0f}", f"{row['buckets']}, {row['rounds']}",
         *(f"{row[key]['mean']:.3f} ± {row[key]['deviation']:.3f}" for key in _ALONE)]
        for model in MODELS for row in records.get(f"budget-{model}", {"rows": []})["rows"]
    ]  # fmt: skip
    return markdown(["", "features + pairs", "buckets, rounds", *_ALONE.values()], rows) if rows else _WAITING


def _predictor(records: Mapping[str, Any]) -> str:
    record = records.get("predictor")
    if record is None:
        return _WAITING
    rows = []
    for before, after in zip(record["untrained"], record["trained"], strict=True):
        values = after | {"untrained": before["predictor"], "trained": after["predictor"]}
        rows.append([f"{after['ratio']}", f"{after['together']}", *(f"{values[key]:.3f}" for key in _GUESSES)])
    return markdown(["ratio", "queries together", *_GUESSES.values()], rows)


def _speed(records: Mapping[str, Any]) -> Any:
    def table(kinds: tuple[str, ...]) -> str:
        found = records.get("time", {}).get("rows", [])
        rows = [
            [f"`{row['method']}`", str(row["length"]), "causal" if row["causal"] else "", f"{1e3 * row['seconds']:.1f}",
             f"{row['speedup'][1]:.3f} ({row['speedup'][0]:.3f} to {row['speedup'][2]:.3f})"]
            for row in found if row["method"].startswith(kinds)
        ]  # fmt: skip
        return markdown(["method", "length", "", "ms", "speed-up over SDPA"], rows) if rows else _WAITING

    return table
