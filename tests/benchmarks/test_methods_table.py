"""The page of all methods and figures shows the records, and leaves no method out."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("markupsafe")

ROOT = Path(__file__).parents[2]
NO_FIGURES_OF_THEIR_OWN = {"README", "figures", "combinations"}


def test_the_page_shows_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("methods_table")
    page = script.PAGE.read_text()
    assert script.with_tables(page) == page
    with pytest.raises(ValueError, match="methods_table: the page must hold"):
        script.with_tables("# Nothing")


def test_every_method_has_figures() -> None:
    folder = ROOT / "docs" / "methods"
    linked = set(re.findall(r"\]\((\w+)\.md\)", (folder / "figures.md").read_text()))
    assert {path.stem for path in folder.glob("*.md")} - NO_FIGURES_OF_THEIR_OWN <= linked
