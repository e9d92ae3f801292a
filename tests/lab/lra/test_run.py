"""The arena end to end on a toy task: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from dynattn.lab.lra import recipes
from dynattn.lab.lra import run as command
from dynattn.lab.lra.run import Settings, lra, runs_folder
from tests.lab.lra.toy import recipe, silent


def test_the_command_writes_the_study_the_floors_and_the_kept_mass(tmp_path, monkeypatch):
    monkeypatch.setitem(recipes._RECIPES, ("listops", "small"), recipe(steps=12))
    settings = Settings(task="listops", methods=("nm-1-2", "nm-2-4"), seeds=2)
    found = lra(settings, tmp_path, silent)
    assert found.methods == ["sdpa", "nm-1-2", "nm-2-4"]
    assert found.seeds == [0, 1]
    assert found.job["steps"] == 12
    assert all(len(arm.runs) == 2 and arm.trained for arm in found.arms)
    folder = runs_folder(tmp_path, "listops", "small")
    floors = json.loads((folder / "floors.json").read_text())
    assert floors["chance"] == 0.5
    assert floors["bag"] > 0.9
    assert "sequences with an 8 and without" in found.summary
    assert f"by a bag of tokens {floors['bag']:.1%}" in found.summary
    looked = {each["method"]: each for each in json.loads((folder / "kept.json").read_text())}
    assert set(looked) == {"nm-1-2", "nm-2-4"}
    for each in looked.values():
        assert 0.5 < each["trained_dense"] < 1
        assert 0.5 < each["trained_with_it"] < 1
    assert looked["nm-2-4"]["trained_dense"] > looked["nm-1-2"]["trained_dense"]  # the best 2 of 4, so never less
    monkeypatch.setattr(command, "study", lambda *args, **kwargs: found)  # nothing is trained again
    assert lra(settings, tmp_path, silent) is found


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"task must be one of listops.*: got 'pathfinder'"):
        Settings(task="pathfinder")
    with pytest.raises(ValueError, match="size must be one of small, published: got 'big'"):
        Settings(size="big")
    with pytest.raises(ValueError, match="seeds must be at least 1: got 0"):
        Settings(seeds=0)
    with pytest.raises(ValueError, match="nm-3-2x"):
        Settings(methods=("nm-3-2x",))


def test_another_recipe_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(recipes._RECIPES, ("image", "small"), recipe(steps=2))
    lra(Settings(task="image", methods=(), seeds=1), tmp_path, silent)
    monkeypatch.setitem(recipes._RECIPES, ("image", "small"), recipe(steps=2, width=32))
    with pytest.raises(ValueError, match="a folder holds one job"):
        lra(Settings(task="image", methods=(), seeds=1), Path(tmp_path), silent)


def test_methods_that_keep_no_pairs_are_trained_and_have_no_kept_mass(tmp_path, monkeypatch):
    monkeypatch.setitem(recipes._RECIPES, ("listops", "small"), recipe(steps=2))
    settings = Settings(task="listops", methods=("efficient", "ponet-4", "nm-1-2"), seeds=1)
    assert lra(settings, tmp_path, silent).methods == ["sdpa", "efficient", "ponet-4", "nm-1-2"]
    looked = json.loads((runs_folder(tmp_path, "listops", "small") / "kept.json").read_text())
    assert [each["method"] for each in looked] == ["nm-1-2"]
