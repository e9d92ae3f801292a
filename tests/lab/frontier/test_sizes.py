"""What the page and the terminal say of several sizes, and the command."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")

from rich.console import Console
from typer.testing import CliRunner

from dynattn.lab.frontier import store
from dynattn.lab.frontier.sizes import amount, answers, compared, page, show, titled
from tests.lab.frontier import test_isoflops
from tests.lab.frontier.running import APP
from tests.lab.frontier.test_isoflops import LARGE, SMALL, _record

RECORDS = _record("models/small", SMALL), _record("models/large", LARGE)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


@pytest.mark.parametrize(
    ("cost", "of", "text"),
    [
        (1.234e12, "FLOPs", "1.23 TFLOPs"),
        (45.6e6, "bytes", "45.6 MB"),
        (999.0, "bytes", "999 B"),
        (1e3, "bytes", "1 kB"),
    ],
)
def test_amounts(cost: float, of: str, text: str):
    assert amount(cost, of) == text


def test_it_is_said_what_the_cost_of_each_dense_model_buys():
    found = compared(RECORDS)
    (ground,) = found
    told = answers(ground, titled(found))
    assert [re.sub(r"\(.*?\)", "()", line) for line in told] == [
        "retrieval 64, prefill: 100 FLOPs, the cost of small, dense (), buy at best large, top-k 1/4 ().",
        "retrieval 64, prefill: 300 FLOPs, the cost of large, dense (), buy at best nothing better.",
    ]


def test_models_keep_whole_names_where_the_last_part_tells_none_apart():
    found = compared([_record("a/model", SMALL), _record("b/model", LARGE)])
    assert titled(found) == {"a/model": "a/model", "b/model": "b/model"}


def test_page_and_terminal_show_both_tables():
    out, found = io.StringIO(), compared(RECORDS)
    show(found, Console(file=out, width=200))
    html = page(found, RECORDS)
    for told in (_plain(out.getvalue()), _plain(html)):
        assert "what to take at which budget" in told
        assert "larger and sparse against smaller and dense, by FLOPs" in told
        row = r"retrieval 64 small, dense large, top-k 1/4 95% 25% 0\.[45]\d+ 0\.[67]\d+ \+0\.[12]\d+ \[.*?\] better"
        assert re.search(row, told)
    assert html.count("<svg") == 1


def test_a_larger_model_that_is_dearer_however_sparse_is_said_to_be():
    dear = {who: (cost + 100, kept, mean) for who, (cost, kept, mean) in LARGE.items()}
    found = compared([_record("small", SMALL), _record("large", dear)])
    told = _plain(page(found, RECORDS))
    assert re.search(r"small, dense large, top-k 1/8 160% 12% 0\.[45]\d+ 0\.[23]\d+ – dearer however sparse", told)


def test_few_items_say_nothing_of_a_larger_model_that_is_cheap_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(test_isoflops, "ITEMS", 3)
    monkeypatch.setattr(test_isoflops, "BASE", test_isoflops.BASE[:3])
    records = _record("small", SMALL), _record("large", LARGE)
    told = _plain(page(compared(records), records))
    assert re.search(
        r"small, dense large, top-k 1/4 95% 25% 0\.\d+ 0\.\d+ \+0\.\d+ \(too few items for an interval\) –", told
    )
    assert "dearer however sparse" not in told


def test_the_command_compares_records_and_measures_nothing(tmp_path: Path):
    files = []
    for number, one in enumerate(RECORDS):
        files.append(str(tmp_path / f"{number}.json"))
        store.save(one, Path(files[-1]))
    result = CliRunner().invoke(APP, ["--isoflops", *files, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (written,) = (tmp_path / "out").glob("*.html")
    assert written.name == "isoflops-large-small.html"
    assert "buy at best" in written.read_text()
    for wrong in (["--isoflops"], ["--isoflops", "--merge", *files], files):
        assert CliRunner().invoke(APP, wrong).exit_code == 2
    alone = CliRunner().invoke(APP, ["--isoflops", files[0], "--output", str(tmp_path)])
    assert alone.exit_code != 0
    assert "at least two models" in alone.output
