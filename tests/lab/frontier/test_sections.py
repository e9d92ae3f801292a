"""What the page and the terminal say of limits, of what was left out, and of a wrong baseline."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("plotly")

from rich.console import Console

from dynattn.lab.frontier.cell import Search
from dynattn.lab.frontier.command import _present
from dynattn.lab.frontier.document import page
from dynattn.lab.frontier.results import Frontier, Solved
from dynattn.lab.frontier.sections import left_out, limit_rows, unreached
from dynattn.lab.frontier.terminal import show
from tests.lab.frontier.records import dense, entry, exam, grade, record, sheet

FULL = np.random.default_rng(0).uniform(0.6, 0.9, 24)


def _record(gain: float = 0.0) -> Frontier:
    """An exam that is reported, and one in which dense attention scores a third."""
    told, hard = exam("story-retrieval"), exam("story-filtering")
    noise = 0.002 * np.random.default_rng(1).standard_normal(24)
    grades = [
        dense(told, FULL.tolist()), grade(told, entry("top-k", 0.5), (FULL + noise + gain).tolist(), 50.0),
        grade(told, entry("top-k", 0.2), (FULL * 0.8 + noise).tolist(), 20.0), dense(hard, [0.3, 0.35] * 12),
        grade(hard, entry("top-k", 0.5), [0.3] * 24, 50.0),
    ]  # fmt: skip
    sheets = [sheet(told, 24), sheet(hard, 24)]
    found = record([one.model_copy(update={"chance": 0.125, "least": 0.5}) for one in sheets], grades)
    missed = Solved(search=Search(exam=told, family="skips", budget=0.1), name="blockskip-1.0", kept=0.31)
    kept = Solved(search=Search(exam=told, family="skips", budget=0.5), name="blockskip-6.0", kept=0.49)
    return found.model_copy(update={"solved": {one.search.key: one for one in (missed, kept)}})


def _printed(found: Frontier) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=200))
    return out.getvalue()


def _text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)))


def test_limits_stand_by_family_and_exam_and_what_is_not_reported_is_named():
    found = _record()
    columns, rows = limit_rows(found, "prefill")
    assert columns == ["method", "story-retrieval 64"]  # not the one in which dense attention scores a third
    ((family, limit),) = rows
    assert family == "top-k"
    assert limit.startswith("50%: 100.0% [")
    assert left_out(found, "prefill") == [
        "Left out, since dense attention guesses there or does less than the task demands: story-filtering 64 (0.325)."
    ]
    assert unreached(found, "prefill") == [
        "Out of reach, with the nearest that can be kept: skips 1/10 in story-retrieval 64 (31%)."
    ]
    assert (left_out(found, "decode"), unreached(found, "decode")) == ([], [])


def test_page_and_terminal_show_them():
    found = _record()
    for told in (_text(page(found)), _printed(found)):
        assert "50%: 100.0%" in told
        assert "skips 1/10 in story-retrieval 64 (31%)" in told
        assert "story-filtering 64" in told
        assert "Better than dense attention" not in told
    assert "Largest sparsity without significant loss" in _text(page(found))
    assert re.search(r"story-filtering 64 MRR@10 0\.325 0\.125 0\.500", _text(page(found)))


def test_a_wrong_baseline_is_said_and_fails_the_run(tmp_path: Path):
    right, wrong = _record(), _record(gain=0.1)
    assert "Better than dense attention: something is wrong" in _text(page(wrong))
    assert "top-k-0.5 beats dense attention in story-retrieval 64, prefill, by 0.1" in _printed(wrong)
    assert "beats dense attention" not in _printed(right)
    console = Console(file=io.StringIO())
    passed = [_present(one, tmp_path / "page.html", tmp_path / "record.json", console) for one in (right, wrong)]
    assert passed == [True, False]
