"""The arena end to end on a toy task: what is learnt, what is written, and what the floors are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from dynattn.lab.lra import recipes
from dynattn.lab.lra import run as command
from dynattn.lab.lra.baselines import baselines
from dynattn.lab.lra.data import Data, Split
from dynattn.lab.lra.experiment import Arena, load
from dynattn.lab.lra.kept import kept
from dynattn.lab.lra.recipes import SIZES, TASKS, Recipe, find
from dynattn.lab.lra.run import Settings, lra, runs_folder
from dynattn.lab.training import Job
from dynattn.lab.training.run import run


def silent(title, steps):
    return lambda: None


def toy(train=256, test=48, seed=0) -> Data:
    """Sequences of 5 to 20 tokens from 1 to 8; the class is whether the 8 occurs, which attention finds at once."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(train + test) % 2)
    tokens = []
    for label in labels:
        each = draw.integers(1, 8, draw.integers(5, 21)).astype(np.uint16)
        each[draw.integers(len(each))] = 8 if label else 7
        tokens.append(each)
    parts = Split(tokens[:train], labels[:train]), Split(tokens[train:], labels[train:])
    return Data(*parts, vocabulary=9, classes=2, length=24, ragged=True, source="sequences with an 8 and without")


def recipe(**changes) -> Recipe:
    return Recipe(**{"data": toy, "width": 16, "layers": 1, "heads": 2, "mlp": 32, "pool": "mean", "dropout": 0.0,
                     "steps": 60, "batch": 16, "learning_rate": 1e-2} | changes)  # fmt: skip


@pytest.fixture
def arena() -> Arena:
    return Arena("toy", toy(), recipe())


@pytest.mark.parametrize("method", ["sdpa", "nm-1-2"])
def test_a_toy_is_learnt(arena, tmp_path, method):
    found = run(Job(method, 0, steps=60, batch=16, learning_rate=1e-2, evaluate_every=30, save_every=60),
                arena, tmp_path, silent, keep_model=True)  # fmt: skip
    losses = [point.value for point in found.losses]
    assert np.mean(losses[:5]) > 0.6
    assert np.mean(losses[-5:]) < 0.2
    assert found.score > 0.95
    assert [point.step for point in found.curve] == [30, 60]
    again = arena.evaluate(load(tmp_path / f"{method}-seed0" / "model", method), lambda: None)
    assert list(again) == found.scores


class ByFirstToken(torch.nn.Module):
    """Says class 1 where the first token is above 4. Its scores show which item a batch's row belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, labels, attention_mask=None):
        one = (input_ids[:, :1] > 4).float()
        return {"logits": torch.cat([1 - one, one], 1)}


def test_scores_stand_in_the_order_of_the_items(arena):
    test, calls = arena.data.test, []
    scores = arena.evaluate(ByFirstToken(), lambda: calls.append(1))
    expected = [float((tokens[0] > 4) == label) for tokens, label in zip(test.tokens, test.labels, strict=True)]
    assert list(scores) == expected
    assert 0 < sum(expected) < len(expected)
    assert len(calls) == arena.steps() == 3


def test_a_batch_is_padded_to_its_longest_and_masked(arena):
    examples = [arena.dataset()[index] for index in range(4)]
    batch = arena.collate(examples)
    assert batch["input_ids"].shape[1] == max(len(tokens) for tokens, _ in examples)
    for row, (tokens, label) in enumerate(examples):
        assert batch["input_ids"][row, : len(tokens)].tolist() == tokens.tolist()
        assert batch["attention_mask"][row].sum() == len(tokens)
        assert batch["attention_mask"][row, : len(tokens)].all()
        assert batch["labels"][row] == label


def test_without_ragged_lengths_there_is_no_mask():
    tokens = [np.full(6, 3, np.uint16)] * 20
    part = Split(tokens, np.arange(20) % 2)
    data = Data(part, part, 9, 2, 6, False, "all alike")
    assert set(Arena("even", data, recipe()).held_out(np.arange(3))) == {"input_ids", "labels"}


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


def test_kept_mass_leaves_padding_out(tmp_path, monkeypatch):
    """A batch's short sequence must weigh as alone: the mean over tokens, whatever stands behind them."""
    arena = Arena("toy", toy(), recipe())
    torch.manual_seed(0)
    for method in ("sdpa", "nm-1-4"):
        arena.save(arena.model(method), tmp_path / f"{method}-seed0" / "model")
    found = kept(arena, ["sdpa", "nm-1-4"], [0], tmp_path)[0].trained_with_it
    original = arena.held_out
    monkeypatch.setattr(arena, "held_out", lambda indices: _padded(original(indices)))
    assert kept(arena, ["nm-1-4"], [0], tmp_path)[0].trained_with_it == pytest.approx(found, rel=1e-5)


def _padded(batch):
    more = 24 - batch["input_ids"].shape[1]  # as many columns as the model has positions
    return batch | {name: torch.nn.functional.pad(batch[name], (0, more)) for name in ("input_ids", "attention_mask")}


def test_floors_are_what_they_say():
    """Class by the first token for three quarters, so that floor is known; a bag sees nothing of the order."""
    draw = np.random.default_rng(0)
    first, label = draw.integers(1, 3, 4000), draw.integers(0, 2, 4000)
    label = np.where(draw.random(4000) < 0.5, first - 1, label)
    tokens = [np.array([a, 3 - a, 3], np.uint16) for a in first]  # every bag holds 1, 2 and 3
    data = Data(Split(tokens[:3000], label[:3000]), Split(tokens[3000:], label[3000:]), 4, 2, 3, False, "")
    found = baselines(data)
    assert found.chance == 0.5
    assert found.first_token == pytest.approx(0.75, abs=0.04)
    assert found.bag == found.majority == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_recipe_in_every_size(task, size):
    found = find(task, size)
    assert found.width % found.heads == 0
    Job("nm-2-4", 0, found.steps, found.batch, found.learning_rate, found.warmup, found.weight_decay)


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
    lra(Settings(task="listops", methods=("efficient", "nm-1-2"), seeds=1), tmp_path, silent)
    looked = json.loads((runs_folder(tmp_path, "listops", "small") / "kept.json").read_text())
    assert [each["method"] for each in looked] == ["nm-1-2"]
