"""The page refers to nothing outside and names everything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")


from dynattn.lab.compare import Comparison
from dynattn.lab.words import label
from tests.lab.compare.running import METHODS


def test_the_page_refers_to_nothing_outside_and_names_everything(written: tuple[str, Path], found: Comparison):
    (path,) = written[1].glob("*.html")
    text = path.read_text()
    assert "http" not in text
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", text)
    assert "@import" not in text
    assert "<script" not in text
    assert not re.search(r"url\((?!#)", text)
    for method in METHODS:
        assert label(method) in text
    for task in found.tasks:
        assert f"Quality: {task.name}" in text
    assert text.count("<svg") == 3
