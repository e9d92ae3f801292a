"""Removes layers, heads and neurons of real models by accuracy, holds that against chance, and times what is left.

    python benchmarks/greedy.py search minilm       # on two cores: a quarter of an hour; smollm2 half an hour
    python benchmarks/greedy.py depth minilm        # whole layers by harm, by gradient flow, by chance; likewise
    python benchmarks/greedy.py speed minilm        # a minute, on an idle machine, after search
    python benchmarks/greedy.py table               # the tables of docs/methods/removed.md

Writes benchmarks/results/removed/<model>-<what>.json after every result: a run that was killed goes on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from marked import markdown, rewritten, time, times

from dynattn.lab.figures import Interval
from dynattn.lab.machine import describe, machine
from dynattn.lab.models import load
from dynattn.lab.prune.depth import by_chance, least_harmful, whole
from dynattn.lab.prune.draws import Draw, counts, random_search
from dynattn.lab.prune.losses import differentiable
from dynattn.lab.prune.results import Pruning
from dynattn.lab.prune.run import Exam, examine, held_out, prune
from dynattn.lab.prune.search import State
from dynattn.lab.prune.settings import Settings
from dynattn.lab.records import read_record, write_json
from dynattn.lab.timing import interleaved
from dynattn.lab.words import percent
from dynattn.pruning import Element, Removed
from dynattn.pruning.structure import gradient_flow, lottery

RESULTS = Path(__file__).parent / "results" / "removed"
PAGE = Path(__file__).parent.parent / "docs" / "methods" / "removed.md"
SEARCH, DEPTH, SPEED = (f"<!-- {what}, written by benchmarks/greedy.py -->" for what in ("search", "depth", "speed"))
END = "<!-- end -->"
MODELS = ("minilm", "smollm2")
TOLERANCES = {"minilm": (0.02, 0.05), "smollm2": (0.05,)}
DEPTHS = {"minilm": (1, 2), "smollm2": (1, 2, 3)}
DRAWS = 8  # of random search, and of layers by chance
SECONDS = 10.0


def _silent(title: str, steps: int) -> Callable[[], None]:
    print(title, flush=True)
    return lambda: None


def _settings(model: str, tolerance: float) -> Settings:
    return Settings(model=model, tolerance=tolerance)


def _path(model: str, what: str) -> Path:
    return RESULTS / f"{model}-{what}.json"


def _there(path: Path, empty: dict[str, Any]) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else empty


def search(model: str) -> None:
    """Search at each tolerance, then draw as many parts by chance."""
    for tolerance in TOLERANCES[model]:
        with tempfile.TemporaryDirectory() as folder:
            found = prune(_settings(model, tolerance), _path(model, f"search-{tolerance}"), Path(folder), _silent)
        path = _path(model, f"random-{tolerance}")
        if found.removed and not path.exists():
            _draw(model, tolerance, found.setting, path)


def _draw(model: str, tolerance: float, like: Removed, path: Path) -> None:
    exam = examine(_settings(model, tolerance))
    drawn: list[Draw] = []
    best = random_search(exam, counts(exam.pretrained.model, like), DRAWS, drawn.append)
    shares = {str(one.seed): one.held_out.model_dump() for one in drawn}
    write_json(path, {"machine": machine(), "best": best.seed, "held_out": shares})


def depth(model: str) -> None:
    """Whole layers, chosen in three ways."""
    path, exam = _path(model, "depth"), examine(_settings(model, 0.0))
    found = _there(path, {"machine": machine(), "flow": {}, "harm": [], "held_out": {}})
    if not found["flow"]:
        loss = differentiable(exam.task, exam.data, exam.pretrained)
        values = gradient_flow(exam.pretrained.model, loss)
        found["flow"] = {element.name: value for element, value in values.items()}
        write_json(path, found)

    def gone(layer: int) -> None:
        found["harm"].append(layer)
        write_json(path, found)

    least_harmful(exam, max(DEPTHS[model]), gone, tuple(found["harm"]))
    for layers in DEPTHS[model]:
        chosen = {"harm": whole(exam, found["harm"][:layers]), "flow": _least_flow(found["flow"], layers)}
        chosen |= {f"chance {seed}": whole(exam, by_chance(exam, layers, seed)) for seed in range(DRAWS)}
        for way, removed in chosen.items():
            if f"{layers} {way}" not in found["held_out"]:
                found["held_out"][f"{layers} {way}"] = _share(exam, removed)
                write_json(path, found)


def _least_flow(flow: dict[str, float], layers: int) -> Removed:
    return Removed(lottery({Element.from_name(name): value for name, value in flow.items()}, layers))


def _share(exam: Exam, removed: Removed) -> dict[str, Any]:
    return held_out(exam, exam.scores(State(removed))).model_dump()


@torch.inference_mode()
def speed(model: str) -> None:
    """The forward of the whole model against that of what is left, on the first item."""
    torch.set_num_threads(int(machine()["cores"]))
    inputs = examine(_settings(model, 0.0)).data.examples[0]
    whole_model = load(model).model
    functions: dict[str, Callable[[], Any]] = {"whole": partial(whole_model, **inputs)}
    for tolerance in TOLERANCES[model]:
        found = read_record(Pruning, _path(model, f"search-{tolerance}"), "run greedy.py search first")
        left = load(model).model
        found.setting.cut(left)
        functions[f"{tolerance:.0%}"] = partial(left, **inputs)
    timings = interleaved(functions, seconds=SECONDS, min_sample=None)
    write_json(_path(model, "speed"), {"machine": machine(), "rows": times(timings, "whole")})


def searched() -> str:
    """The table of the searches."""
    columns = ["model", "tolerance", "tried", "removed", "parameters", "held-out items retain", "best random draw",
               "all random draws, mean"]  # fmt: skip
    rows = []
    for model in MODELS:
        for tolerance in TOLERANCES[model]:
            if not (path := _path(model, f"search-{tolerance}")).exists():
                continue
            found = read_record(Pruning, path, "record it anew")
            drawn = _there(_path(model, f"random-{tolerance}"), {})
            shares = drawn.get("held_out", {})
            before, after = found.parameters or (1, 1)
            rows.append([
                model, f"{tolerance:.0%}", str(len(found.trials)), _kinds(found), f"{after / before:.0%}",
                "–" if found.held_out is None else percent(found.held_out),
                percent(Interval(**shares[str(drawn["best"])])) if shares else "–",
                f"{sum(one['mean'] for one in shares.values()) / len(shares):.1%}" if shares else "–",
            ])  # fmt: skip
    return markdown(columns, rows) if rows else "Not measured yet."


def _kinds(found: Pruning) -> str:
    kinds = [element.kind for element in found.setting.elements]
    words = {"attention": "attention", "mlp": "MLP", "heads": "heads", "neurons": "neurons"}
    return ", ".join(f"{kinds.count(kind)} {word}" for kind, word in words.items() if kind in kinds) or "nothing"


def deep() -> str:
    """The table of whole layers."""
    columns = ["model", "layers removed", "least harmful", "least gradient flow", "by chance, mean"]
    rows = []
    for model in MODELS:
        shares = _there(_path(model, "depth"), {}).get("held_out", {})
        for layers in DEPTHS[model]:
            drawn = [share["mean"] for way, share in shares.items() if way.startswith(f"{layers} chance")]
            if drawn:
                chosen = [percent(Interval(**shares[f"{layers} {way}"])) for way in ("harm", "flow")]
                rows.append([model, str(layers), *chosen, f"{sum(drawn) / len(drawn):.1%}"])
    return markdown(columns, rows) if rows else "Not measured yet."


def quick() -> str:
    """The table of times."""
    parts = []
    for model in MODELS:
        found = _there(_path(model, "speed"), {})
        if found:
            rows = [[name, time(row)] for name, row in found["rows"].items()]
            parts.append(f"{model}, {describe(found['machine'])}:\n\n{markdown(['tolerance', 'a forward'], rows)}")
    return "\n\n".join(parts) or "Not measured yet."


def with_tables(page: str) -> str:
    """The page with its three tables."""
    for start, text in ((SEARCH, searched()), (DEPTH, deep()), (SPEED, quick())):
        page = rewritten(page, start, text, END, "greedy")
    return page


def main(arguments: list[str]) -> None:
    """Run one of the commands above."""
    commands = {"search": search, "depth": depth, "speed": speed}
    if arguments == ["table"]:
        PAGE.write_text(with_tables(PAGE.read_text()))
    elif len(arguments) == 2 and arguments[0] in commands and arguments[1] in MODELS:
        commands[arguments[0]](arguments[1])
    else:
        raise SystemExit(f"greedy: usage: greedy.py {'|'.join(commands)} {'|'.join(MODELS)}, or greedy.py table")


if __name__ == "__main__":
    main(sys.argv[1:])
