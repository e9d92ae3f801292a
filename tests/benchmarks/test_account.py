"""The page's tables are the record's, and the record is plausible."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("account")


@pytest.fixture
def record(script: Any) -> Any:
    return json.loads(script.RECORD.read_text())


def test_the_page_shows_the_record(script: Any, record: Any) -> None:
    page = script.PAGE.read_text()
    assert page == script.with_tables(page, record)
    with pytest.raises(ValueError, match="page must hold"):
        script.with_tables("no place", record)


def test_methods_save_what_they_must(record: Any) -> None:
    for name, model in record["models"].items():
        rows = {method: row["attention"] for method, row in model["rows"].items()}
        dense = rows["dense"]
        assert rows["nm-1-2"]["values"] == pytest.approx(dense["values"] / 2, rel=0.01)
        assert rows["nm-1-2"]["scores"] == dense["scores"]
        assert rows["topk-0.25"]["exponentials"] == pytest.approx(dense["exponentials"] / 4, rel=0.01)
        for method, row in rows.items():
            if method != "unfused":
                assert row["read"] <= 1.01 * dense["read"], (name, method)
