"""benchmarks/density.py and what is drawn and written from its records: on a tiny model."""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")

from rich.progress import Progress

from dynattn.lab.models import load
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.texts import read

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ["nm-1-4", "nm-1-2", "nm-1-2-x16", "nm-1-4-w8-s1", "nm-1-2-w8-s1", "nm-1-2-x16-w8-s1", "dense"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; the scripts beside it import it under the same name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("density")


@pytest.fixture
def tiny(script: Any, tiny_encoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with a tiny model, three patterns and four passages."""
    monkeypatch.setattr(script, "load", lambda _: load(str(tiny_encoder)))
    monkeypatch.setattr(script, "find", lambda _: partial(Retrieval, tokens=64, queries=2, texts=read(texts)))
    monkeypatch.setattr(script, "PATTERNS", ((1, 4), (1, 2)))
    monkeypatch.setattr(script, "STRIDED", ((1, 2),))
    return script


def _run(script: Any, path: Path, items: int = 4) -> Any:
    return script.record("tiny", path, Progress(disable=True), script.Plan(8, 1, {"retrieval": {"items": items}}))


def test_every_method_has_its_quality_and_its_masses(tiny: Any, tmp_path: Path):
    found = _run(tiny, tmp_path / "tiny.json")
    assert [mass.method for mass in found.masses] == NAMES
    (task,) = found.tasks
    assert [result.method for result in task.results] == ["sdpa", *NAMES]
    assert all(len(result.scores) == 4 for result in task.results)
    assert len(found.sigma) == 2  # layers
    assert all(len(heads) == 2 and min(heads) > 0 for heads in found.sigma)
    assert found.mass("nm-1-2").density == pytest.approx(0.5)
    assert found.mass("nm-1-4").density == pytest.approx(0.25)
    window = sum(min(8, i + 1) + min(8, 64 - i) - 1 + (i >= 8) for i in range(64)) / 64**2  # and the first key
    share = 1 - (1 - window) / 2  # of the others, half: but for groups that the window cuts
    assert found.mass("nm-1-2-w8-s1").density == pytest.approx(share, abs=0.01)
    for nm, least in (("nm-1-4", 0.25), ("nm-1-2", 0.5), ("nm-1-2-x16", 0.5)):
        mass, windowed = found.mass(nm), found.mass(f"{nm}-w8-s1")
        assert least <= mass.lowest_head <= mass.kept < 1
        assert mass.kept < windowed.kept
        assert least < mass.expected < windowed.expected < 1
        assert mass.kept == pytest.approx(mass.expected, abs=0.1)  # random weights: nearly Gaussian scores
    assert found.mass("dense").kept == pytest.approx(1)
    assert task.of("dense").scores == pytest.approx(task.of("sdpa").scores)


def test_a_run_that_was_killed_goes_on(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = _run(tiny, tmp_path / "whole.json")
    evaluate, calls = tiny.evaluate, []

    def dies(task: Any, data: Any, pretrained: Any, implementation: str, advance: Any) -> Any:
        calls.append(implementation)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return evaluate(task, data, pretrained, implementation, advance)

    monkeypatch.setattr(tiny, "evaluate", dies)
    path = tmp_path / "cut.json"
    with pytest.raises(KeyboardInterrupt):
        _run(tiny, path)
    assert len(json.loads(path.read_text())["tasks"][0]["results"]) == 3
    resumed = _run(tiny, path)
    assert calls[4:] == ["sdpa", *(f"dynattn:{name}" for name in NAMES[2:])]
    assert resumed.masses == whole.masses
    assert resumed.tasks[0].results == whole.tasks[0].results
    assert tiny.Density.model_validate_json(path.read_text()) == resumed
    assert _run(tiny, path) == resumed
    assert len(calls) == 4 + 1 + len(NAMES[2:])  # nothing was left to do


def test_a_record_of_something_else_is_not_continued(tiny: Any, tmp_path: Path):
    path = tmp_path / "tiny.json"
    _run(tiny, path)
    with pytest.raises(ValueError, match="plan's methods and sizes"):
        _run(tiny, path, items=3)
    record = json.loads(path.read_text())
    record["tasks"][0]["results"] = record["tasks"][0]["results"][:2]
    record["tasks"][0]["results"][0]["scores"][1] += 0.01
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="must score as it did"):
        _run(tiny, path)


def test_pictures_and_tables_show_every_method(script: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plot, table = importlib.import_module("plot_density"), importlib.import_module("density_table")
    found = _run(tiny, tmp_path / "tiny.json")
    monkeypatch.setattr(plot, "IMAGES", tmp_path)
    monkeypatch.setattr(plot, "records", lambda: [found])
    assert plot.main() == 0
    for stem in ("density", "density-mass"):
        light, dark = ((tmp_path / f"{stem}{suffix}.svg").read_text() for suffix in ("", "-dark"))
        assert light.count("#1f2328") == dark.count("#e6edf3") > 0
        assert "#1f2328" not in dark
    text = table.with_tables(f"before\n{table.START}\nold\n{table.END}\nafter", [found])
    assert text.startswith("before")
    assert text.endswith("after")
    assert "old" not in text
    for name in NAMES:
        result = found.tasks[0].of(name)
        mass = found.mass(name)
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {table.label(name)} |"))
        assert f"| {mass.density:.3f} | {mass.kept:.3f} | {mass.expected:.3f} | {result.score:.3f} |" in line
        assert f"{result.difference.mean:+.3f} [" in line
        assert line.endswith(f"| {result.agreement:.4f} |")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    cut = found.tasks[0].model_copy(update={"results": found.tasks[0].results[:2]})
    text = table.tables([found.model_copy(update={"tasks": [cut]})])
    assert text.count("not measured") == len(NAMES) - 1
    finished = [found.model_copy(update={"model": model}) for model in script.PLANS]
    assert "in part" not in table.tables(finished)
    finished[1] = finished[1].model_copy(update={"tasks": [cut]})
    assert f"Not measured yet, or in part: {list(script.PLANS)[1]}." in table.tables(finished)
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    with pytest.raises(ValueError, match="page must hold"):
        table.with_tables("no place", [found])


def test_the_documentation_shows_the_records(script: Any):
    table, scores = importlib.import_module("density_table"), importlib.import_module("real_scores")
    page = table.PAGE.read_text()
    assert page == table.with_tables(page, table.records())
    page = scores.PAGE.read_text()
    assert page == scores.with_table(page, json.loads(scores.RECORD.read_text()))
