"""The page: it says which method to take, marks what fails the baselines, and works without a network."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("plotly")

from dynattn.lab.figures import Interval
from dynattn.lab.frontier.cell import Phase
from dynattn.lab.frontier.document import judged, page, share
from dynattn.lab.frontier.results import Failure, Frontier
from tests.lab.frontier.records import dense, entry, exam, grade, record, sheet, time

DRAW = np.random.default_rng(0)
SHARES = {"top-k": 0.97, "window": 0.6, "random": 0.65, "fixed": 0.6}


def _record(phase: Phase = "prefill") -> Frontier:
    sheets, grades, times = [], [], []
    for tokens in (64, 128):
        of = exam(tokens=tokens, phase=phase)
        full = DRAW.uniform(0.4, 0.6, 40)
        sheets.append(sheet(of, 40))
        grades.append(dense(of, full.tolist()))
        for family, share_ in SHARES.items():
            for budget in (0.5, 0.25):
                scores = full * (share_ - 0.1 * (budget == 0.25) + 0.01 * DRAW.standard_normal(40))
                who = entry(family, budget, f"{family}-{budget}-<{tokens}>")
                grades.append(grade(of, who, scores.tolist(), 100 * budget, 800 + 200 * budget))
                times.append(time(of, who, 1.2))
    return record(sheets, grades, times)


@pytest.fixture(scope="module")
def html() -> str:
    return page(_record())


def _text(html: str) -> str:
    without = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", without))


def test_the_page_says_which_method_to_take(html: str):
    text = _text(html)
    assert "To retain at least 99% of the quality in every exam: no method is sure to, as far as these items" in text
    assert "at least 95% of the quality in every exam: fastest top-k 1/2 (83% of dense)" in text


def test_the_page_marks_what_does_not_beat_the_baselines(html: str):
    text = _text(html)
    assert "Worse than looking at nothing, at the same budget: window 1/2, window 1/4." in text
    row = re.search(r"window 1/2.*?</tr>", html[html.index("Every method") :], flags=re.DOTALL)
    assert row is not None
    assert "worse than random" in row.group()


def test_methods_that_missed_exams_are_named(html: str):
    assert "Not measured in every exam" not in _text(html)
    whole = _record()
    missing = next(one for one in whole.grades.values() if one.cell.entry.label == "top-k 1/4")
    part = record(list(whole.sheets.values()), [one for one in whole.grades.values() if one is not missing])
    assert "left out of this choice where others took more: top-k 1/4 (1 of 2)." in _text(page(part))


def test_the_page_refers_to_nothing_outside_itself(html: str):
    without = re.sub(r"<script[^>]*>.*?</script>", "", html, flags=re.DOTALL)
    assert "http" not in without
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", without)
    assert not re.search(r"<script[^>]*src=", html)
    assert html.count("plotly.js v") == 1  # the script itself, once for both plots
    assert "&lt;64&gt;" in html  # names are escaped


def test_both_phases_stand_apart():
    found, other = _record(), _record("decode")
    both = found.model_copy(update={"sheets": found.sheets | other.sheets, "grades": found.grades | other.grades})
    text = _text(page(both))
    assert "Which method, prefill" in text
    assert "Which method, decode" in text
    assert "Which method, " not in _text(page(found))


def test_what_failed_is_told_and_a_page_of_nothing_is_refused():
    found = _record()
    found.failures["0"] = Failure(exam=exam("manpages"), entry=entry("top-k", 0.5), reason="no pages here")
    assert "no pages here" in _text(page(found))
    with pytest.raises(ValueError, match=r"page: methods must be measured.*no pages here"):
        page(found.model_copy(update={"grades": {}}))


def test_shares_are_read_by_their_bounds():
    known = Interval(mean=0.97, low=0.951, high=0.99)
    assert share(known) == "97.0% [95.1, 99.0]"
    assert share(Interval(mean=0.97, low=None, high=None)) == "97.0% (too few items for an interval)"
    words = [judged(Interval(mean=1, low=low, high=high)) for low, high in ((0.9, 0.99), (0.9, 1.1), (1.01, 1.1))]
    assert words == ["worse", "within noise", "better"]


def test_the_documentation_shows_the_records(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    script = importlib.import_module("frontier_table")
    text = script.PAGE.read_text()
    assert text == script.with_tables(text, script.records())
    shown = script.with_tables(text, [_record()])
    assert "| top-k 1/2 | `top-k-0.5-<64>`<br>`top-k-0.5-<128>` | 50% | 90% | 83% | **9" in shown
    assert "worse than random" in shown


def test_no_button_uploads_the_figures(html: str):
    given = re.findall(r'"showSendToCloud":\s*(\w+)', html)
    assert given == ["false"] * 2


def test_names_in_plots_are_no_markup():
    found = _record()
    for grade_ in found.grades.values():
        assert "<" in grade_.cell.entry.name or grade_.cell.entry.family == "dense"
    script = page(found).rpartition("Plotly.newPlot(")[2]
    assert "\\u003c64" not in script  # as plotly writes "<" in a script
    assert "&lt;64" in script or "\\u0026lt;64" in script


def test_on_a_narrow_screen_panels_stand_one_below_the_other():
    from dynattn.lab.frontier import plots

    figure = plots._subplots(2, 2, ["a", "b", "c"], titled=True)
    for axis in ("xaxis", "yaxis"):
        figure.layout[axis].update(title={"text": "t"})
    figure.update_layout(height=640, margin={"t": 90}, legend={"y": -0.16}, updatemenus=[{"y": 1.1}], dragmode="zoom")
    narrow = plots._stacked(figure, 3)
    across = [value for place, value in narrow.items() if re.fullmatch(r"xaxis\d*\.domain", place)]
    assert across == [[0, 1]] * 3
    down = [value for place, value in narrow.items() if re.fullmatch(r"yaxis\d*\.domain", place)]
    assert down[0][1] == 1
    assert abs(down[-1][0]) < 1e-9
    assert all(above[0] > below[1] for above, below in pairwise(down))
    drawn = plots._as_drawn(figure, narrow)
    assert drawn["yaxis.domain"] == list(figure.layout.yaxis.domain)
    assert drawn["height"] == 640
    assert drawn["annotations[1].x"] == figure.layout.annotations[1].x


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_without_a_network_draws_every_plot(html: str, tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--dump-dom", f"file://{path}"]
    done = subprocess.run([*browser, *offline], capture_output=True, text=True, timeout=120, check=False)
    drawn = done.stdout
    assert drawn.count('class="main-svg"') >= 2 * 2  # plotly lays two sheets for each plot
    assert {"top-k", "window", "random", "fixed"} <= set(re.findall(r'data-unformatted="([\w-]+)"', drawn))
    assert "Download plot as a PNG" in drawn
    assert 'data-title="Share' not in drawn
