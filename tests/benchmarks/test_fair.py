"""benchmarks/fair.py: dense attention decides which tasks are told, a wrong baseline fails, and the page is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")

from dynattn.lab.frontier import Settings
from dynattn.lab.frontier.methods import check, taking_part
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.store import save
from dynattn.lab.statistics import FEWEST
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


TASKS = (
    "multi-needle", "ruler-needles", "ruler-variables", "ruler-common-words", "ruler-frequent-words", "story-filtering",
    "story-multi-hop", "variables", "needle", "story-retrieval", "perplexity",
)  # fmt: skip
SCORES = {"story-retrieval": 0.8, "perplexity": 2.0}


def _found(gain: float = 0.0) -> Frontier:
    """Dense attention does well in two tasks, chooses badly in others or guesses; one method in one exam a phase."""
    sheets, grades = [], []
    for phase in ("prefill", "decode"):
        for task in TASKS if phase == "prefill" else ("story-retrieval",):
            of = exam(task, 2048, phase).model_copy(update={"dtype": "bfloat16"})  # type: ignore[arg-type]
            chosen = find(task).least is not None
            score = SCORES.get(task, 0.3 if chosen else 4.0)
            full = [score - 0.1, score + 0.1] * 6
            about = {"chance": 0.125, "least": 0.5} if chosen else {"chance": 3.0}
            sheets.append(sheet(of, 12, higher_is_better=chosen).model_copy(update=about))
            grades.append(dense(of, full))
            if task == "story-retrieval":
                small = [0.01, -0.01, 0.02, -0.02] * 3
                scores = [a + b + gain for a, b in zip(full, small, strict=True)]
                grades.append(grade(of, entry("block top-k", 0.2), scores, 20.0))
    about = {"machines": {"0": MACHINE}, "measured": True, "dtype": "bfloat16"}
    return record(sheets, grades).model_copy(update=about)


MACHINE = {
    "processor": "a processor", "cores": 2, "threads": 2, "isa": "avx2", "torch": "2", "dynattn": "0", "os": "an os",
    "python": "3", "date": "today",
}  # fmt: skip


def test_only_tasks_in_which_dense_attention_does_enough_are_measured(fair: Any):
    fair.answer = _found()
    assert fair.main(["record", "2048"]) == 0
    size = fair.SIZES[2048]
    chosen = tuple(task for task in fair.TASKS if task != "perplexity")
    assert [(one.phases, one.tasks, one.items, one.budgets) for one in fair.swept] == [
        (("prefill",), chosen, size.items, ()), (("prefill",), ("perplexity",), size.texts, ()),
        (("prefill",), ("story-retrieval",), size.items, fair.BUDGETS),
        (("prefill",), ("perplexity",), size.texts, fair.BUDGETS),
        (("decode",), ("story-retrieval",), size.items, fair.BUDGETS),
    ]  # fmt: skip
    assert all(one.measured and one.tokens == (2048,) and one.seconds == 0 for one in fair.swept)
    assert {one.dtype for one in fair.swept} == {"bfloat16"}
    fair.swept.clear()
    assert fair.main(["record", "2048", "decode"]) == 0
    assert [one.phases for one in fair.swept] == [("decode",)]


def test_longer_texts_are_asked_what_2048_tokens_show_to_be_more_than_guesses(fair: Any):
    fair.answer = _found()
    with pytest.raises(SystemExit, match=r"2048\.json has 0 tasks; run python benchmarks/fair\.py record 2048 dense"):
        fair.main(["record", "4096"])
    with pytest.raises(SystemExit, match=r"4096\.json has 0 tasks"):
        fair.main(["record", "4096", "decode"])
    fair.RESULTS.mkdir(parents=True, exist_ok=True)
    half = [sheet for sheet in fair.answer.sheets.values() if sheet.exam.task != "needle"]
    save(record(half, list(fair.answer.grades.values())), fair.RESULTS / "2048.json")
    with pytest.raises(SystemExit, match=r"2048\.json has 10 tasks"):
        fair.main(["record", "4096"])
    assert fair.swept == []
    save(fair.answer, fair.RESULTS / "2048.json")
    assert fair.main(["record", "4096", "dense"]) == 0
    assert [(one.tasks, one.tokens, one.budgets) for one in fair.swept] == [
        (("story-retrieval",), (4096,), ()), (("perplexity",), (4096,), ()),
    ]  # fmt: skip


def test_only_so_many_tasks_are_asked_of_methods_as_there_is_time_for(fair: Any):
    given = [exam(task, 2048) for task in fair.TASKS]
    found = record([sheet(of, 8) for of in given], [dense(of, [0.7, 0.9] * 4) for of in given])
    fair.RESULTS.mkdir(parents=True, exist_ok=True)
    save(found, fair.RESULTS / "2048.json")
    for tokens, count in ((2048, 3), (4096, 2), (8192, 1)):
        assert fair.told(2048, tokens) == (*fair.TASKS[:count], "perplexity")
    first = grade(given[0], entry("block top-k", 0.2), [0.7, 0.9] * 4)
    compared = record([sheet(of, 8) for of in given[:3]], [*(dense(of, [0.7, 0.9] * 4) for of in given[:3]), first])
    alone = "Asked of dense attention alone: ruler-needles 2048, ruler-variables 2048."
    assert fair.dense_alone(compared, "prefill") == [alone]
    assert fair.dense_alone(compared, "decode") == []


def test_a_plan_fits_into_an_hour_a_length_and_follows_what_is_recorded(fair: Any):
    rows = [line.split(" | ") for line in fair.plan().splitlines()[2:]]
    for tokens in fair.SIZES:
        minutes = [float(row[-1].strip(" |")) for row in rows if row[0] == f"| {tokens}"]
        assert len(minutes) == 3
        assert sum(minutes) <= 60
    fair.RESULTS.mkdir(parents=True, exist_ok=True)
    save(_found(), fair.RESULTS / "2048.json")
    assert "| 8192 | prefill | story-retrieval, perplexity |" in fair.plan()


@pytest.mark.parametrize("items", [4, 6, 8, 12, 16, 24])
def test_so_many_items_must_come_off_worse_for_a_loss_to_be_significant(fair: Any, items: int):
    """Resamples without any of the worse items are a fortieth of all, but for the bootstrap's own chance."""
    worse = fair.fewest(items)
    assert (1 - worse / items) ** items < 0.027
    assert (1 - (worse - 1) / items) ** items > 0.023


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
    assert "**2048 tokens, decode, in bfloat16**" in text
    assert "| block top-k | at least 80%: 100.0% [" in text
    assert "story-filtering 2048 (0.300)" in text
    assert "a processor, 2 cores" in text
    assert "**2048 tokens, prefill, in bfloat16**" in text
    assert "A loss is significant, in the median over the cells, from about this on: story-retrieval 2048 1." in text
    assert "(12 items, of which 4 or more must come off worse)" in text


def test_what_is_to_be_recorded_can_be(fair: Any, capsys: pytest.CaptureFixture):
    check(fair.BUDGETS)
    for phase, families in fair.FAMILIES.items():
        assert set(families) <= set(taking_part("decoder", phase))
        for tokens in fair.SIZES:
            asked = fair.settings(tokens, phase, fair.TASKS, fair.BUDGETS)
            assert sum(len(one.tasks) for one in asked) == len(fair.TASKS)
            assert all(one.items >= FEWEST for one in asked if one.tasks != ("perplexity",))
            assert all(one.items * tokens // 128 >= 32 for one in asked if one.tasks == ("perplexity",))
    assert fair.TASKS == TASKS
    assert {find(task).least for task in TASKS} == {None, 0.5}
    assert fair.main(["plan"]) == 0
    assert capsys.readouterr().out.count("\n| ") == 3 * len(fair.SIZES) + 1
    assert fair.main(["record", "100"]) == fair.main(["record", "2048", "sleep"]) == fair.main([]) == 2
