"""The report's page: whole, alone, and without words of what was not done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")


from dynattn.lab.finetune import page
from dynattn.lab.training.results import Study
from dynattn.lab.words import label


def test_the_page_refers_to_nothing_outside_and_names_everything(written: tuple[str, Path], found: Study):
    (path,) = written[1].glob("*.html")
    text = path.read_text()
    assert "http" not in text
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", text)
    assert "<script" not in text
    assert not re.search(r"url\((?!#)", text)
    assert text.count("<svg") == 2
    for method in found.methods:
        assert label(method) in text
    assert "dense fine-tuned, swapped in" in text
    for title in ("Summary", "Learning curves", "Every run", "Time of a step", "Conditions"):
        assert title in text
    for arm in found.arms:
        assert f"{arm.score.mean:.4f}" in text
        for run in arm.runs:
            assert f"{run.score:.4f}" in text


def test_the_page_of_a_study_from_scratch_has_no_word_of_pretraining(found: Study):
    trained = [arm for arm in found.arms if arm.trained and not arm.swapped]
    arms = [arm.model_copy(update={"gain": None, "recovered": None}) for arm in trained]
    text = page(found.model_copy(update={"arms": arms}))
    summary = text.split("Summary")[1].split("Learning curves")[0].split("</figure>")[1]
    assert "without training" not in summary
    assert "swapped in" not in summary.lower()
    assert "fine-tuned" not in text
