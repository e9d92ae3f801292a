"""Methods and seeds together: what is paired with what, and that nothing is done twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from dynattn.lab.finetune.document import sentences
from dynattn.lab.training.results import Run, Study
from dynattn.lab.training.run import DivergedError
from dynattn.lab.training.statistics import contrast
from dynattn.lab.training.study import study
from tests.lab.training.tiny import ITEMS, JOB, Pretend, Tiny, silent

SEEDS = [0, 1, 2]


def _job(method: str, seed: int):
    return replace(JOB(method, seed), steps=3, save_every=10)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    folder = tmp_path_factory.mktemp("study")
    return folder, study(Pretend(), ["nm-1-2"], SEEDS, _job, folder, silent)


def _scores(found: Study, method: str, trained: bool) -> np.ndarray:
    arm = found.of(method, trained)
    assert arm is not None
    return np.array([run.scores for run in arm.runs])


def test_dense_is_added_and_every_arm_is_there(pretrained: tuple[Path, Study]):
    found = pretrained[1]
    assert found.methods == ["sdpa", "nm-1-2"]
    assert [(arm.method, arm.trained, len(arm.runs)) for arm in found.arms] == [
        ("sdpa", False, 1), ("nm-1-2", False, 1), ("sdpa", True, 3), ("nm-1-2", True, 3),
    ]  # fmt: skip
    assert [run.seed for run in found.dense.runs] == SEEDS
    assert found.job["steps"] == 3
    assert not {"method", "seed"} & set(found.job)
    assert (found.processes, len(found.items)) == (1, ITEMS)
    assert Study.model_validate_json(found.model_dump_json()) == found


def test_differences_are_paired_by_seed_and_item(pretrained: tuple[Path, Study]):
    found = pretrained[1]
    dense, sparse = _scores(found, "sdpa", True), _scores(found, "nm-1-2", True)
    assert dense.shape == (3, ITEMS)
    arm = found.of("nm-1-2", trained=True)
    assert arm is not None
    assert arm.difference == contrast(sparse - dense)
    assert arm.difference is not None
    assert arm.difference.by_seed == pytest.approx((sparse - dense).mean(1))
    assert arm.gain == contrast(sparse - _scores(found, "nm-1-2", False))
    assert found.dense.difference is None
    before = found.of("nm-1-2", trained=False)
    assert before is not None
    assert before.gain is None
    assert before.difference == contrast(_scores(found, "nm-1-2", False) - _scores(found, "sdpa", False))
    assert before.difference is not None
    assert before.difference.over == "items"


def test_what_is_there_is_not_repeated_and_a_new_seed_adds_to_it(pretrained: tuple[Path, Study]):
    folder, found = pretrained
    experiment = Pretend()
    again = study(experiment, ["nm-1-2"], SEEDS, _job, folder, silent)
    assert experiment.models == 0
    assert again.arms == found.arms
    more = study(experiment, ["nm-1-2"], [*SEEDS, 5], _job, folder, silent)
    assert experiment.models == 2
    assert more.dense.runs[:3] == found.dense.runs


def test_a_method_put_into_the_dense_model_is_paired_with_it_by_seed(tmp_path: Path):
    experiment = Tiny()
    found = study(experiment, ["nm-1-2"], SEEDS, _job, tmp_path, silent, swap=True)
    assert [(arm.method, arm.trained, arm.swapped) for arm in found.arms] == [
        ("nm-1-2", True, True), ("sdpa", True, False), ("nm-1-2", True, False),
    ]  # fmt: skip
    arm, sparse = found.of("nm-1-2", trained=True, swapped=True), found.of("nm-1-2", trained=True)
    assert arm is not None
    assert sparse is not None
    assert arm.runs == _by_hand(tmp_path)
    table = np.array([run.scores for run in arm.runs])
    assert arm.difference == contrast(table - _scores(found, "sdpa", True))
    assert sparse.recovered == contrast(_scores(found, "nm-1-2", True) - table)
    assert (found.dense.recovered, arm.recovered, arm.gain, arm.seconds) == (None, None, None, None)
    made = experiment.models
    again = study(experiment, ["nm-1-2"], SEEDS, _job, tmp_path, silent, swap=True)
    assert experiment.models == made
    assert again.arms == found.arms


def _by_hand(folder: Path) -> list[Run]:
    """1:2 with the weights of each dense run."""
    runs = []
    for seed in SEEDS:
        model = Tiny().model("sdpa")
        model.load_state_dict(torch.load(folder / f"sdpa-seed{seed}" / "weights.pt"))
        model.encoder.set_attn_implementation("dynattn:nm-1-2")  # type: ignore[union-attr, operator]
        scores = Tiny().evaluate(model.eval(), lambda: None).tolist()
        runs.append(Run(seed=seed, scores=scores, curve=[], losses=[]))
    return runs


def test_a_study_that_was_stopped_while_it_judged_a_swapped_model_ends_alike(tmp_path: Path):
    class Stopped(Tiny):
        calls = 0

        def evaluate(self, model, advance):
            self.calls += 1
            if self.calls == 3:  # after a dense and a sparse run
                raise KeyboardInterrupt
            return super().evaluate(model, advance)

    with pytest.raises(KeyboardInterrupt):
        study(Stopped(), ["nm-1-2"], [0], _job, tmp_path / "stopped", silent, swap=True)
    found = [study(Tiny(), ["nm-1-2"], [0], _job, tmp_path / name, silent, swap=True) for name in ("stopped", "not")]
    for first, second in zip(found[0].arms, found[1].arms, strict=True):
        assert first.runs == second.runs


def test_a_dense_run_without_its_weights_is_told_to_go(tmp_path: Path):
    study(Tiny(), ["nm-1-2"], [0], _job, tmp_path, silent)
    assert not list(tmp_path.glob("*/weights.pt"))
    with pytest.raises(ValueError, match=r"has no weights\.pt; delete the folder"):
        study(Tiny(), ["nm-1-2"], [0], _job, tmp_path, silent, swap=True)


def test_from_scratch_there_is_nothing_to_judge_before_training(tmp_path: Path):
    found = study(Tiny(), [], [0], _job, tmp_path, silent)
    assert [(arm.method, arm.trained, arm.gain) for arm in found.arms] == [("sdpa", True, None)]
    assert found.dense.score.over == "items"


def test_scores_without_training_are_taken_anew_for_another_experiment(tmp_path: Path):
    first = Pretend()
    study(first, [], [0], _job, tmp_path, silent)
    shutil.rmtree(tmp_path / "sdpa-seed0")
    other = Pretend(version=2)
    study(other, [], [0], _job, tmp_path, silent)
    assert other.models == 2  # without training, and trained


def test_a_folder_of_another_job_is_refused_before_anything_is_made(tmp_path: Path):
    study(Tiny(), ["nm-1-2"], [0], _job, tmp_path, silent)
    shutil.rmtree(tmp_path / "sdpa-seed0")  # what the study would begin with
    other = Tiny(version=2)
    with pytest.raises(ValueError, match=r"nm-1-2-seed0 has version 1, now it is 2; give another --output"):
        study(other, ["nm-1-2"], [0], _job, tmp_path, silent)
    with pytest.raises(ValueError, match=r"nm-1-2-seed0 has steps 3, now it is 12"):
        study(other, ["nm-1-2"], [0], JOB, tmp_path, silent)
    (tmp_path / "nm-1-2-seed0" / "result.json").write_text('{"seed": 0, "sco')
    with pytest.raises(ValueError, match=r"nm-1-2-seed0/result\.json must hold JSON: .*; delete the folder"):
        study(same := Tiny(), ["nm-1-2"], [0], _job, tmp_path, silent)
    assert (other.models, same.models) == (0, 0)
    assert not (tmp_path / "sdpa-seed0").exists()


class _Diverging(Tiny):
    """One method's models are not finite."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def model(self, method: str):
        model: Any = super().model(method)
        if method == self.method:
            torch.nn.init.constant_(model.head.weight, float("nan"))
        return model


def test_a_method_that_diverges_is_left_out_and_said_to_be(tmp_path: Path):
    experiment = _Diverging("nm-1-2")
    found = study(experiment, ["nm-1-2", "nm-2-4"], [0, 1], _job, tmp_path, silent, swap=True)
    assert found.methods == ["sdpa", "nm-2-4"]
    assert {(arm.method, len(arm.runs)) for arm in found.arms} == {("sdpa", 2), ("nm-2-4", 2)}
    assert list(found.diverged) == ["nm-1-2"]
    assert "nm-1-2-seed0 gave a loss of nan at step 1: the training diverged" in found.diverged["nm-1-2"]
    assert experiment.models == 2 + 1 + 2 + 2  # dense, one of 1:2, 2:4 swapped in, and trained
    assert any(line.startswith("1:2 is left out: run: losses and scores must be finite") for line in sentences(found))
    assert Study.model_validate_json(found.model_dump_json()) == found


def test_dense_attention_that_diverges_ends_the_study(tmp_path: Path):
    with pytest.raises(DivergedError, match=r"sdpa-seed0 gave a loss of nan .* use a smaller --learning-rate"):
        study(_Diverging("sdpa"), ["nm-1-2"], [0], _job, tmp_path, silent)


def test_a_study_needs_a_seed(tmp_path: Path):
    with pytest.raises(ValueError, match="there must be a seed"):
        study(Tiny(), [], [], _job, tmp_path, silent)


def test_a_folder_that_another_command_trains_in_is_refused_until_it_ends(tmp_path: Path):
    """Each would delete the checkpoints that the other one writes."""
    waiting = []

    class Nested(Tiny):
        def evaluate(self, model, advance):
            if not waiting:
                waiting.append(True)
                with pytest.raises(ValueError, match="another is at work in"):
                    study(Tiny(), [], [0], _job, tmp_path, silent)
            return super().evaluate(model, advance)

    study(Nested(), [], [0], _job, tmp_path, silent)
    assert study(Tiny(), [], [0], _job, tmp_path, silent).seeds == [0]
    assert waiting
