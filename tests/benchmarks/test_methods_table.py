"""The tables of all methods, of real models and of dropout show the records, and leave no method out."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("markupsafe")

ROOT = Path(__file__).parents[2]
NOT_MEASURED_YET = {"mass", "blockbound", "blockskip", "clustered", "verticalslash"}
NO_FIGURES_OF_THEIR_OWN = {"README", "figures", "combinations", *NOT_MEASURED_YET}
# On their pages, by their own scripts.
OTHER_FIGURES = {"activations", "factors", "ftp", "gated", "ponet", "removed", "sparse-training", "weights"}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("methods_table", "with_tables"), ("dropout", "with_table"), ("varlen", "with_table"), ("tune", "with_table"),
        ("paged", "with_table"), ("vllm_tokens", "with_table"),
    ],
)  # fmt: skip
def test_the_page_shows_the_records(name: str, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module(name)
    page = script.PAGE.read_text()
    if name in ("paged", "vllm_tokens") and not script.RECORD.exists():  # nothing is shown that was not recorded
        assert re.search(rf"{re.escape(script.START)}\s*{re.escape(script.END)}", page)
        return
    assert getattr(script, written)(page) == page
    with pytest.raises(ValueError, match=f"{name}: the page must hold"):
        getattr(script, written)("# Nothing")


def test_the_pages_of_quality_show_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("quality_table")
    for name, methods in script.PAGES.items():
        page = (ROOT / name).read_text(encoding="utf-8")
        assert script.with_table(page, methods) == page
    with pytest.raises(ValueError, match="quality_table: the page must hold"):
        script.with_table("# Nothing", ("nm-1-2",))


def test_every_family_of_the_frontier_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("methods_table")
    assert script.PAGES.keys() >= script.FAMILIES.keys()
    for page in script.PAGES.values():
        assert (ROOT / "docs" / "methods" / f"{page}.md").exists()


def test_every_method_has_figures() -> None:
    folder = ROOT / "docs" / "methods"
    linked = set(re.findall(r"\]\((\w+)\.md\)", (folder / "figures.md").read_text()))
    assert {path.stem for path in folder.glob("*.md")} - NO_FIGURES_OF_THEIR_OWN - OTHER_FIGURES <= linked
