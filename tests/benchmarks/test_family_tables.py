"""The pages of DSA, Scatterbrain and efficient attention show what was recorded."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("family_tables")


def test_the_documentation_shows_the_records(tables: Any) -> None:
    files = (FOLDER / "results" / "family").glob("features-*.json")
    records = {path.stem.removeprefix("features-"): json.loads(path.read_text()) for path in files}
    assert "minilm" in records
    for name, marked in tables.pages(records).items():
        page = (tables.PAGES / name).read_text()
        assert page == tables.with_tables(page, marked)
        assert f"{records['minilm']['methods']['topk-0.1']['error']:.2f}" in tables.pages(records)["dsa.md"]["errors"]


def test_what_is_not_measured_says_so(tables: Any) -> None:
    for marked in tables.pages({}).values():
        assert set(marked.values()) == {"Not measured yet."}
    with pytest.raises(ValueError, match="page must hold"):
        tables.with_tables("no place", {"errors": ""})
