"""A cell's key is of what decides its scores, and of nothing else."""

from __future__ import annotations

import pytest

pytest.importorskip("pydantic")

from typing import Any

from dynattn.lab.frontier.cell import Cell, Entry, Exam, Race, Search, digest

EXAM = Exam(model="minilm", phase="prefill", task="retrieval", tokens=512, items=10, texts=None)
ENTRY = Entry(name="topk-0.25", family="topk", budget=0.25)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "x"}, {"phase": "decode"}, {"task": "manpages"}, {"tokens": 256}, {"items": None}, {"texts": "ab"},
        {"dtype": "bfloat16"},
    ],
)  # fmt: skip
def test_every_field_of_an_exam_changes_its_key(change: dict[str, Any]) -> None:
    other = EXAM.model_copy(update=change)
    assert other.key != EXAM.key
    assert Cell(exam=other, entry=ENTRY).key != Cell(exam=EXAM, entry=ENTRY).key
    assert Search(exam=other, family="topk", budget=0.25).key != Search(exam=EXAM, family="topk", budget=0.25).key
    assert Race(exam=other, entry=ENTRY, machine="a").key != Race(exam=EXAM, entry=ENTRY, machine="a").key


def test_addresses_of_float32_are_those_of_before_there_were_dtypes() -> None:
    before = {"model": "minilm", "phase": "prefill", "task": "retrieval", "tokens": 512, "items": 10, "texts": None}
    assert EXAM.key == digest(before)
    assert Exam.model_validate(before) == EXAM
    assert EXAM.dtype == "float32"


def test_family_and_budget_only_decide_how_a_cell_is_shown() -> None:
    named = ENTRY.model_copy(update={"family": "other", "budget": None})
    assert Cell(exam=EXAM, entry=named).key == Cell(exam=EXAM, entry=ENTRY).key
    assert Race(exam=EXAM, entry=named, machine="a").key != Race(exam=EXAM, entry=named, machine="b").key


@pytest.mark.parametrize(
    ("budget", "label"),
    [(0.25, "topk 1/4"), (1 / 3, "topk 1/3"), (0.3, "topk 0.3"), (1.0, "topk 1/1"), (None, "topk-0.25")],
)
def test_a_label_is_the_same_at_every_length(budget: float | None, label: str) -> None:
    assert ENTRY.model_copy(update={"budget": budget}).label == label


def test_titles_and_keys_are_stable() -> None:
    assert EXAM.title == "retrieval 512"
    assert EXAM.model_copy(update={"tokens": None}).title == "retrieval"
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len(digest([])) == 16
