"""benchmarks/fair.py: dense attention decides which tasks are told, a wrong baseline fails, and the page is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")

from dynattn.lab.frontier import Settings
from dynattn.lab.frontier.methods import FAMILIES, check
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.store import save
from dynattn.lab.tasks import find
from tests.lab.frontier.records import dense, entry, exam, grade, record, sheet


@pytest.fixture
def fair(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with a folder of its own, in which nothing is measured: sweeps are noted, and answered."""
    module = script("fair")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "fair")
    module.swept = []

    def swept(settings: Settings, path: Path, stage: Any, runner: Any) -> Frontier:
        module.swept.append(settings)
        save(module.answer, path)
        return module.answer

    monkeypatch.setattr(module, "sweep", swept)
    return module


def _found(gain: float = 0.0) -> Frontier:
    sheets, grades = [], []
    for phase in ("prefill", "decode"):
        for task, score in (("story-retrieval", 0.8), ("story-filtering", 0.3)):
            of = exam(task, 2048, phase)  # type: ignore[arg-type]
            full = [score - 0.1, score + 0.1] * 6
            sheets.append(sheet(of, 12).model_copy(update={"chance": 0.125, "least": 0.5}))
            grades.append(dense(of, full))
            if score > 0.5:
                small = [0.01, -0.01, 0.02, -0.02] * 3
                scores = [a + b + gain for a, b in zip(full, small, strict=True)]
                grades.append(grade(of, entry("block top-k", 0.2), scores, 20.0))
    return record(sheets, grades).model_copy(update={"machines": {"0": MACHINE}, "measured": True})


MACHINE = {
    "processor": "a processor", "cores": 2, "threads": 2, "isa": "avx2", "torch": "2", "dynattn": "0", "os": "an os",
    "python": "3", "date": "today",
}  # fmt: skip


def test_only_tasks_in_which_dense_attention_does_enough_are_measured(fair: Any):
    fair.answer = _found()
    assert fair.main(["record", "2048"]) == 0
    assert [(one.phases, one.tasks, one.budgets != ()) for one in fair.swept] == [
        (("prefill",), fair.TASKS, False), (("decode",), fair.TASKS, False),
        (("prefill",), ("story-retrieval",), True), (("decode",), ("story-retrieval",), True),
    ]  # fmt: skip
    assert all(one.measured and one.tokens == (2048,) and one.seconds == 0 for one in fair.swept)
    fair.swept.clear()
    assert fair.main(["record", "2048", "decode"]) == 0
    assert [one.phases for one in fair.swept] == [("decode",)]


def test_a_wrong_baseline_fails_the_run(fair: Any, capsys: pytest.CaptureFixture):
    fair.answer = _found(gain=0.2)
    fair.RESULTS.mkdir(parents=True, exist_ok=True)
    save(fair.answer, fair.RESULTS / "2048.json")
    assert fair.main(["record", "2048", "prefill"]) == 1
    assert "block top-k-0.2 beats dense attention in story-retrieval 2048" in capsys.readouterr().out


def test_the_page_has_a_place_for_the_tables(fair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "frontier.md"
    page.write_text(fair.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(fair, "PAGE", page)
    assert fair.main(["table"]) == 0
    assert f"{fair.START}\n\nNot recorded yet.\n\n{fair.END}" in page.read_text(encoding="utf-8")
    fair.RESULTS.mkdir(parents=True, exist_ok=True)
    save(_found(), fair.RESULTS / "2048.json")
    assert fair.main(["table"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "**2048 tokens, decode**" in text
    assert "| block top-k | at least 80%: 100.0% [" in text
    assert "story-filtering 2048 (0.300)" in text
    assert "a processor, 2 cores" in text


def test_what_is_to_be_recorded_can_be(fair: Any, capsys: pytest.CaptureFixture):
    check(fair.BUDGETS)
    assert set(fair.PREFILL) <= set(FAMILIES)
    assert [find(task).least for task in fair.TASKS] == [0.5] * 7 + [None] * 2
    for tokens in fair.SIZES:
        for phase in fair.ALL:
            assert fair.settings(tokens, phase, fair.TASKS, fair.BUDGETS).items >= 8
            assert fair.families(phase)
    assert fair.main(["plan"]) == 0
    assert capsys.readouterr().out.count("\n| ") == 3 * len(fair.SIZES) + 1
    assert fair.main(["record", "100"]) == fair.main(["record", "2048", "sleep"]) == fair.main([]) == 2
