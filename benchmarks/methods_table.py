"""Write docs/methods/figures.md, all methods against all figures, from the records of other scripts.

python benchmarks/methods_table.py

- quality, pairs, FLOPs and time: results/frontier/minilm.json and smollm2.json, by record_frontier.py
- arithmetic and bytes of attention: results/account-frontier.json, by account.py
- vision: results/pruning/dinov2-*.json by pruning.py, dynamicvit.json by dynamicvit.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frontier_table import emphasized, percent
from marked import difference, markdown, rewritten

from dynattn.account import Work
from dynattn.lab.figures import Interval
from dynattn.lab.frontier.methods import FAMILIES
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.store import load
from dynattn.lab.frontier.summary import Contender, contenders

PAGE = Path(__file__).parent.parent / "docs" / "methods" / "figures.md"
RESULTS = Path(__file__).parent / "results"
START, END = "<!-- {}: written by benchmarks/methods_table.py -->", "<!-- end of {} -->"
PAGES = {
    "N:M": "nm", "N:M, stride 16": "nm", "N:M, window": "nm", "top-k": "topk", "threshold": "threshold", "mass": "mass",
    "block top-k": "blocktopk", "block top-k, low rank": "blocktopk", "block mass": "blocktopk",
    "blocks with a proof": "blockbound", "skips": "blockskip", "clustered": "clustered",
    "vertical-slash": "verticalslash", "FlexPrefill": "verticalslash", "window": "window", "DSA": "dsa",
    "Scatterbrain": "scatterbrain", "random": "random", "fixed": "fixed", "SpAtten": "spatten", "LTP": "ltp",
    "random tokens": "spatten", "efficient": "efficient", "cache: window": "../decode", "cache: SpAtten": "../decode",
    "magnitude": "weights", "N:M weights": "weights", "random weights": "weights", "Wanda": "weights",
    "N:M weights, Wanda": "weights", "N:M weights, DSnoT": "weights",
    "N:M activations": "activations", "WINA": "activations", "TEAL": "activations", "CHESS": "activations",
    "cache: Quest": "../decode", "cache: SnapKV": "../decode", "cache: Ada-SnapKV": "../decode",
}  # fmt: skip
DYNAMICVIT = 0.7  # keep ratio of a stage that its predictors were trained for
DROPPED = ("spatten-0.7", "random-tokens-0.7", "spatten-0.5", "random-tokens-0.5", "ltp-0.0002", "first-tokens-0.5")


def with_tables(page: str) -> str:
    """The page with every table in its place.

    Raises:
        ValueError: the page has no place for one.
    """
    encoder, decoder = (load(RESULTS / "frontier" / f"{name}.json") for name in ("minilm", "smollm2"))
    account = json.loads((RESULTS / "account-frontier.json").read_text())["models"]["minilm"]["rows"]
    tables = {"minilm": of_encoder(encoder, account), "smollm2": of_decoder(decoder), "dinov2": of_vision()}
    for name, text in tables.items():
        page = rewritten(page, START.format(name), text, END.format(name), "methods_table")
    return page


def of_encoder(found: Frontier, account: Mapping[str, Mapping[str, Any]]) -> str:
    """Every family at every budget; the account is that of the longest texts."""
    columns = (
        "method", "budget", "pairs kept", "kept mass", "worst exam", "mean", "attention: multiply-adds", "DRAM bytes",
        "model: FLOPs", "time",
    )  # fmt: skip
    dense = Work(**account["dense"]["attention"])
    rows = []
    for one in _ordered(contenders(found, "prefill")):
        work = Work(**account[one.names[-1]]["attention"])
        rows.append(
            [
                _link(one), _budget(one), percent(one.density), _number(one.kept_mass), emphasized(one.worst.retained),
                emphasized(one.retained), percent(work.multiply_adds / dense.multiply_adds),
                percent(work.bytes / dense.bytes), percent(one.flops), percent(one.time),
            ]
        )  # fmt: skip
    return markdown(columns, rows)


def of_decoder(found: Frontier) -> str:
    """Reading and writing side by side: what is retained in each exam, and times."""
    phases = {phase: {one.label: one for one in contenders(found, phase)} for phase in ("prefill", "decode")}
    exams = [(phase, title) for phase, of in phases.items() for title in _titles(of.values())]
    columns = ["method", "budget", "kept mass", *(f"{phase}: {title}" for phase, title in exams)]
    columns += [f"{phase}: time" for phase in phases]
    every = {one.label: one for of in phases.values() for one in of.values()}
    rows = []
    for one in _ordered(list(every.values())):
        cells = [_of_exam(phases[phase].get(one.label), title) for phase, title in exams]
        reading = phases["prefill"].get(one.label)
        times = [percent(None if its is None else its.time) for its in (reading, phases["decode"].get(one.label))]
        rows.append([_link(one), _budget(one), _number(None if reading is None else reading.kept_mass), *cells, *times])
    return markdown(columns, rows)


def of_vision() -> str:
    """Methods that take tokens away from a vision transformer; DynamicViT with the pictures it was trained for."""
    columns = ("method", "tokens seen", "area under ROC, less dense", "times as fast")
    quality, speed = (
        json.loads((RESULTS / "pruning" / f"dinov2-{what}.json").read_text()) for what in ("quality", "speed")
    )
    scored = {s["method"]: s for s in quality["scored"] if s["implementation"] == "sdpa"}
    timed = {t["method"]: t for t in speed["timed"] if t["implementation"] == "sdpa"}
    rows = []
    for name in DROPPED:
        lost = Interval(**scored[name]["quality"]["difference"])
        rows.append([f"`{name}`", f"{scored[name]['keep_ratio']:.0%}", difference(lost), _times(timed.get(name))])
    record = json.loads((RESULTS / "pruning" / "dynamicvit.json").read_text())
    arm = f"trained {DYNAMICVIT:g} sdpa"
    for at in record["quality"]:
        found = next(a for a in at["arms"] if a["arm"] == arm)
        tokens = next(w["tokens"] for w in record["work"] if (w["pixels"], w["ratio"]) == (at["pixels"], DYNAMICVIT))
        times = next(t for t in record["times"] if t["pixels"] == at["pixels"])
        row = next(r for r in times["rows"] if r["method"] == arm)
        name = f"[DynamicViT](dynamicvit.md) {DYNAMICVIT:g}, {at['pixels']} pixels"
        seen = sum(tokens) / len(tokens) / tokens[0]
        rows.append([name, f"{seen:.0%}", difference(Interval(**found["saliency"]["difference"])), _times(row)])
    return markdown(columns, rows)


def _ordered(found: Sequence[Contender]) -> list[Contender]:
    """As the table of families has them, large budgets first."""
    places = list(FAMILIES)
    last = len(places)
    return sorted(
        found,
        key=lambda one: (
            places.index(one.entry.family) if one.entry.family in places else last,
            -(one.entry.budget or 0),
        ),
    )


def _titles(found: Any) -> list[str]:
    return list(dict.fromkeys(result.sheet.exam.title for one in found for result in one.results))


def _of_exam(one: Contender | None, title: str) -> str:
    found = None if one is None else next((r for r in one.results if r.sheet.exam.title == title), None)
    return "–" if found is None else emphasized(found.retained)


def _link(one: Contender) -> str:
    name = one.entry.name if one.entry.budget is None else one.entry.family
    return f"[{name}]({PAGES[name]}.md)"


def _budget(one: Contender) -> str:
    return "–" if one.entry.budget is None else f"1/{round(1 / one.entry.budget)}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _times(timed: Mapping[str, Any] | None) -> str:
    return "–" if timed is None else f"{timed['speedup']['median']:.2f}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
