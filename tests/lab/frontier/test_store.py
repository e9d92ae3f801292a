"""Addresses by content; the record as a file; merging."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from dynattn.lab.frontier import store
from dynattn.lab.frontier.cell import DENSE, Cell, Race
from dynattn.lab.frontier.results import Failure, address
from tests.lab.frontier.records import dense, entry, exam, grade, record, sheet, time

SOME = entry("N:M", 0.5, "nm-1-2")


def test_a_cell_is_addressed_by_what_decides_its_scores():
    cell = Cell(exam=exam(), entry=SOME)
    assert cell.key == Cell(exam=exam(), entry=entry("other family", 0.25, "nm-1-2")).key
    others = [
        Cell(exam=exam(), entry=entry("N:M", 0.5, "nm-2-4")),
        *(Cell(exam=other, entry=SOME) for other in (
            exam("manpages"), exam(tokens=128), exam(tokens=None), exam(phase="decode"), exam(items=4),
        )),
        Cell(exam=exam().model_copy(update={"texts": "0"}), entry=SOME),
        Cell(exam=exam().model_copy(update={"model": "n"}), entry=SOME),
    ]  # fmt: skip
    assert len({cell.key, *(other.key for other in others)}) == 1 + len(others)
    races = [Race(exam=exam(), entry=SOME, machine=machine) for machine in "ab"]
    assert races[0].key != races[1].key


def test_a_machine_is_addressed_without_date_and_load():
    facts = {"processor": "p", "threads": 2, "date": "today", "load": 1.0}
    assert address(facts) == address(facts | {"date": "tomorrow", "load": 2.0})
    assert address(facts) != address(facts | {"threads": 1})


def test_labels_tell_the_budget_as_a_fraction():
    assert entry("window", 0.125).label == "window 1/8"
    assert entry("window", 0.3).label == "window 0.3"
    assert entry("", None, "nm-1-2").label == "nm-1-2"


def test_what_is_added_is_on_the_disk_at_once_and_found_again(tmp_path: Path):
    path = tmp_path / "new folder" / "record.json"
    kept = store.Store(path, record([], []))
    cell = Cell(exam=exam(), entry=SOME)
    assert kept.lacks(cell)
    why = Failure(exam=exam(), entry=SOME, reason="no data")
    kept.add(cell, machines={"0": {}}, seconds=1.0, failures={cell.key: why})
    again = store.Store(path, record([], []))
    assert again.found.failures == {cell.key: why}
    assert again.lacks(cell)  # to be tried again
    found = grade(exam(), SOME, [1.0] * 8)
    again.add(cell, machines={"0": {}}, seconds=2.0, sheets={exam().key: sheet(exam())}, grades={cell.key: found})
    last = store.load(path)
    assert last.grades == {cell.key: found}
    assert last.failures == {}
    assert last.seconds == 63.0
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_a_record_whose_scores_are_not_those_of_its_items_is_refused(tmp_path: Path):
    """As one that another version wrote in part; means over them could not be taken."""
    path, cell = tmp_path / "record.json", Cell(exam=exam(), entry=SOME)
    found = record([], []).model_copy(
        update={"sheets": {exam().key: sheet(exam())}, "grades": {cell.key: grade(exam(), SOME, [1.0] * 3)}}
    )
    store.save(found, path)
    with pytest.raises(ValueError, match=r"a score for each item: nm-1-2 has 3 in .*, which has 8; another version"):
        store.load(path)


def test_a_half_written_file_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "record.json"
    store.save(record([], []), path)
    before = path.read_text()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(record([sheet(exam())], []), path)
    assert path.read_text() == before


def test_merging_puts_together_what_machines_measured():
    a = record([sheet(exam())], [dense(exam(), [1.0] * 8), grade(exam(), SOME, [0.9] * 8)], [time(exam(), SOME, 1.1)])
    other = exam(tokens=128)
    b = record([sheet(other)], [dense(other, [1.0] * 8)], [time(exam(), SOME, 1.2, "b")])
    failed = Cell(exam=exam(), entry=SOME)
    b.failures[failed.key] = Failure(exam=exam(), entry=SOME, reason="no data here")
    both = store.merge([b, a])
    assert both.grades == a.grades | b.grades
    assert both.sheets == a.sheets | b.sheets
    assert len(both.times) == 2  # of one method on two machines
    assert both.failures == {}  # a could
    assert both.seconds == 120.0
    assert store.merge([both, a]).grades == both.grades


def test_of_two_results_the_first_stands():
    a, b = (record([sheet(exam())], [grade(exam(), SOME, [score] * 8)]) for score in (0.5, 0.6))
    for speedup, one in ((2.0, a), (3.0, b)):
        timed = time(exam(), SOME, speedup)
        one.times[timed.race.key] = timed
    found = store.merge([b, a])
    assert [grade.scores[0] for grade in found.grades.values()] == [0.6]
    assert [timed.speedup.median for timed in found.times.values()] == [3.0]


def test_records_that_are_not_of_the_same_data_are_refused():
    a = record([sheet(exam())], [dense(exam(), [0.5] * 8)])
    with pytest.raises(ValueError, match="merge: records must not be empty"):
        store.merge([])
    with pytest.raises(ValueError, match="a record must be of one model"):
        store.merge([a, record([], [], model="n")])
    with pytest.raises(ValueError, match="an exam must ask the same items everywhere: retrieval 64"):
        store.merge([a, record([sheet(exam(), items=4)], [])])
    with pytest.raises(ValueError, match="dense attention must score alike"):
        store.merge([a, record([sheet(exam())], [dense(exam(), [0.5] * 7 + [0.6])])])
    assert DENSE.name == "sdpa"
    nearly = store.merge([a, record([sheet(exam())], [dense(exam(), [0.5] * 7 + [0.5001])])])
    assert nearly.grades == a.grades


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_records_of_before_there_were_dtypes_are_of_float32(name: str):
    """Nothing of them is measured again: everything stands under the address that it has today."""
    found = store.load(Path(__file__).parents[3] / "benchmarks" / "results" / "frontier" / f"{name}.json")
    assert found.dtype == "float32"
    assert {sheet.exam.dtype for sheet in found.sheets.values()} == {"float32"}
    assert all(key == grade.cell.key for key, grade in found.grades.items())
    assert all(key == sheet.exam.key for key, sheet in found.sheets.items())
    assert all(key == time.race.key for key, time in found.times.items())


def test_dtypes_are_not_mixed(tmp_path: Path):
    of = exam().model_copy(update={"dtype": "bfloat16"})
    a = record([sheet(exam())], [dense(exam(), [0.5] * 8)])
    b = record([sheet(of)], [dense(of, [0.5] * 8)]).model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="a record must be of one dtype: of m one is of bfloat16, another of float32"):
        store.merge([a, b])
    path = tmp_path / "record.json"
    store.save(b, path)
    assert store.load(path) == b
    with pytest.raises(ValueError, match="a record must be of one dtype"):
        store.Store(path, record([], []))
    assert store.merge([b, b]).dtype == "bfloat16"


@pytest.mark.parametrize(("dtype", "alike", "apart"), [("float32", 5e-4, 5e-3), ("bfloat16", 0.05, 0.5)])
def test_dense_scores_may_differ_by_the_rounding_of_the_dtype(dtype: str, alike: float, apart: float):
    of = exam().model_copy(update={"dtype": dtype})
    one, near, far = (
        record([sheet(of)], [dense(of, [0.5 + shift] * 8)]).model_copy(update={"dtype": dtype})
        for shift in (0.0, alike, apart)
    )
    assert store.merge([one, near]).grades == one.grades
    with pytest.raises(ValueError, match="dense attention must score alike"):
        store.merge([one, far])


def test_a_file_that_is_no_record_is_named(tmp_path: Path):
    path = tmp_path / "notes.json"
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"notes\.json must hold JSON.*name a record that dynattn frontier wrote"):
        store.load(path)
