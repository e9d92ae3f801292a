"""One run: what it writes, and that killing it changes nothing."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from dynattn.lab.training import Job, checkpoints
from dynattn.lab.training.results import Run
from dynattn.lab.training.run import run, seconds_a_step
from tests.forking.python import forking
from tests.lab.training.tiny import EXAMPLES, ITEMS, JOB, Tiny, data, silent, train_and_die

METHOD = "nm-1-2"
NEVER = 10**6


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run(JOB(METHOD, 3), Tiny(), folder, silent)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, fork_server: str | None) -> Path:
    """A run that ended in its eleventh step of twelve, in the third epoch."""
    with forking(fork_server):
        return _killed(tmp_path_factory.mktemp("killed"), batches=11)


def _copy(home: Path, folder: Path) -> Path:
    return Path(shutil.copytree(home, folder / home.name))


def _killed(folder: Path, batches: int = NEVER, in_checkpoint: int = NEVER) -> Path:
    """The folder of a run that a SIGKILL ended."""
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=train_and_die, args=(folder, METHOD, batches, in_checkpoint))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    home = folder / JOB(METHOD, 3).name
    assert not (home / "result.json").exists()
    return home


def _resumed_as(undisturbed: tuple[Path, Run], folder: Path) -> None:
    """Going on in ``folder`` must give what the undisturbed run gave, to the last bit."""
    run(JOB(METHOD, 3), Tiny(), folder, silent)
    homes = [where / JOB(METHOD, 3).name for where in (undisturbed[0], folder)]
    first, second = ((home / "result.json").read_bytes() for home in homes)
    assert first == second
    lines = [[json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()] for home in homes]
    for line in (*lines[0], *lines[1]):
        line.pop("seconds")
    assert lines[0] == lines[1]


def test_a_run_writes_its_scores_its_curves_and_a_line_a_step(undisturbed: tuple[Path, Run]):
    folder, found = undisturbed
    home = folder / "nm-1-2-seed3"
    assert {path.name for path in home.iterdir()} == {"job.json", "metrics.jsonl", "result.json"}
    assert Run.model_validate_json((home / "result.json").read_text()) == found
    assert (found.seed, len(found.scores)) == (3, ITEMS)
    assert [point.step for point in found.curve] == [4, 8, 12]
    assert found.curve[-1].value == pytest.approx(found.score, abs=1e-12)
    assert [point.step for point in found.losses] == list(range(1, 13))
    assert np.mean([p.value for p in found.losses[-4:]]) < np.mean([p.value for p in found.losses[:4]])
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [point.value for point in found.losses]
    assert [line["score"] for line in lines if "score" in line] == [point.value for point in found.curve[:-1]]
    assert len(seconds_a_step(JOB(METHOD, 3), folder)) == 12
    assert json.loads((home / "job.json").read_text())["job"]["learning_rate"] == 3e-3


def test_the_same_job_gives_the_same_and_another_seed_or_method_does_not(undisturbed: tuple[Path, Run], tmp_path: Path):
    assert run(JOB(METHOD, 3), Tiny(), tmp_path, silent) == undisturbed[1]
    assert run(JOB(METHOD, 4), Tiny(), tmp_path, silent).scores != undisturbed[1].scores
    assert run(JOB("sdpa", 3), Tiny(), tmp_path, silent).scores != undisturbed[1].scores


def test_a_finished_run_is_read_and_not_repeated(undisturbed: tuple[Path, Run]):
    experiment = Tiny()
    assert run(JOB(METHOD, 3), experiment, undisturbed[0], silent) == undisturbed[1]
    assert experiment.models == 0


def test_a_killed_run_resumes_from_its_last_checkpoint_and_ends_alike(
    undisturbed: tuple[Path, Run], killed: Path, tmp_path: Path
):
    """That checkpoint is of the end of the second epoch."""
    assert checkpoints.last_complete(_copy(killed, tmp_path)) == tmp_path / "nm-1-2-seed3" / "checkpoint-10"
    _resumed_as(undisturbed, tmp_path)


def test_a_checkpoint_with_a_file_cut_short_is_passed_over(undisturbed: tuple[Path, Run], killed: Path, tmp_path: Path):
    """The one before is of the middle of an epoch."""
    home = _copy(killed, tmp_path)
    weights = home / "checkpoint-10" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert checkpoints.last_complete(home) == home / "checkpoint-8"
    _resumed_as(undisturbed, tmp_path)


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    undisturbed: tuple[Path, Run], killed: Path, tmp_path: Path
):
    home = _copy(killed, tmp_path)
    checkpoints.discard(home)
    assert (home / "metrics.jsonl").exists()
    _resumed_as(undisturbed, tmp_path)


@pytest.mark.usefixtures("forked_python")
def test_a_checkpoint_that_a_kill_left_half_written_is_passed_over(undisturbed: tuple[Path, Run], tmp_path: Path):
    home = _killed(tmp_path, in_checkpoint=6)
    assert (home / "checkpoint-6" / "optimizer.pt").exists()  # looks like one
    assert checkpoints.last_complete(home) == home / "checkpoint-4"
    _resumed_as(undisturbed, tmp_path)


@pytest.mark.parametrize(
    ("job", "experiment", "message"),
    [
        (replace(JOB(METHOD, 3), steps=13), Tiny(), "has steps 12, now it is 13"),
        (JOB(METHOD, 3), Tiny(version=2), "has version 1, now it is 2"),
    ],
)
def test_a_folder_of_another_job_is_refused(undisturbed: tuple[Path, Run], job: Job, experiment: Tiny, message: str):
    with pytest.raises(ValueError, match=message):
        run(job, experiment, undisturbed[0], silent)


def test_the_trained_model_is_kept_on_request(undisturbed: tuple[Path, Run], tmp_path: Path):
    experiment = Tiny()
    found = run(JOB(METHOD, 3), experiment, tmp_path, silent, keep_model=True)
    model = experiment.model(METHOD).eval()
    model.load_state_dict(torch.load(tmp_path / "nm-1-2-seed3" / "model" / "weights.pt"))
    assert experiment.evaluate(model, lambda: None).tolist() == found.scores


def test_a_model_that_was_not_kept_is_missed(undisturbed: tuple[Path, Run]):
    with pytest.raises(ValueError, match="has none; delete the folder"):
        run(JOB(METHOD, 3), Tiny(), undisturbed[0], silent, keep_model=True)


def test_a_run_is_resumed_by_as_many_processes(killed: Path, tmp_path: Path):
    home = _copy(killed, tmp_path)
    there = json.loads((home / "job.json").read_text())
    assert there["processes"] == 1
    (home / "job.json").write_text(json.dumps(there | {"processes": 2}))
    with pytest.raises(ValueError, match="was started with 2, now there are 1"):
        run(JOB(METHOD, 3), Tiny(), tmp_path, silent)


def test_weights_are_kept_on_request_before_the_result_is_there(tmp_path: Path):
    experiment = Tiny()
    found = run(JOB(METHOD, 3), experiment, tmp_path, silent, keep_weights=True)
    home = tmp_path / "nm-1-2-seed3"
    assert {path.name for path in home.iterdir()} == {"job.json", "metrics.jsonl", "result.json", "weights.pt"}
    assert (home / "weights.pt").stat().st_mtime_ns <= (home / "result.json").stat().st_mtime_ns
    model = experiment.model(METHOD).eval()
    model.load_state_dict(torch.load(home / "weights.pt"))
    assert experiment.evaluate(model, lambda: None).tolist() == found.scores


def test_data_that_does_not_fill_a_batch_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=rf"fill a batch of {EXAMPLES + 1}: tiny has {EXAMPLES} examples"):
        run(replace(JOB(METHOD, 0), batch=EXAMPLES + 1), Tiny(), tmp_path, silent)


def test_a_job_that_could_not_start_leaves_the_folder_to_other_numbers(tmp_path: Path):
    with pytest.raises(ValueError, match="fill a batch"):
        run(replace(JOB(METHOD, 0), batch=EXAMPLES + 1), Tiny(), tmp_path, silent)
    assert len(run(replace(JOB(METHOD, 0), steps=1), Tiny(), tmp_path, silent).scores) == ITEMS


def test_a_training_that_diverged_says_so(tmp_path: Path):
    class Broken(Tiny):
        def evaluate(self, model, advance):
            return super().evaluate(model, advance) * np.nan

    with pytest.raises(ValueError, match="the training diverged"):
        run(replace(JOB(METHOD, 0), steps=1), Broken(), tmp_path, silent)
    assert not (tmp_path / "nm-1-2-seed0" / "result.json").exists()


def test_a_run_that_ends_between_its_last_step_and_its_result_ends_alike(undisturbed: tuple[Path, Run], tmp_path: Path):
    class Stopped(Tiny):
        calls = 0

        def evaluate(self, model, advance):
            self.calls += 1
            if self.calls == 3:  # two on the way
                raise KeyboardInterrupt
            return super().evaluate(model, advance)

    with pytest.raises(KeyboardInterrupt):
        run(JOB(METHOD, 3), Stopped(), tmp_path, silent)
    assert checkpoints.last_complete(tmp_path / "nm-1-2-seed3") == tmp_path / "nm-1-2-seed3" / "checkpoint-10"
    _resumed_as(undisturbed, tmp_path)


def test_progress_is_told_once_a_step_and_from_where_it_resumes(killed: Path, tmp_path: Path):
    _copy(killed, tmp_path)
    told: dict[str, int] = {}

    def stage(title: str, steps: int):
        told[title] = -steps

        def advance() -> None:
            told[title] += 1

        return advance

    run(JOB(METHOD, 3), Tiny(), tmp_path, stage)
    assert told == {"nm-1-2-seed3: train": 0, "nm-1-2-seed3: evaluate": 0}


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"weight_decay": -1.0}]
)
def test_numbers_of_a_job_are_checked(change: dict):
    with pytest.raises(ValueError, match=f"Job: .*{next(iter(change))}"):
        replace(JOB(METHOD, 0), **change)
    with pytest.raises(ValueError, match="parse: name must be"):
        JOB("nonsense", 0)


def test_the_items_and_the_examples_differ():
    assert not torch.equal(data(ITEMS, 1)[0], data(EXAMPLES, 0)[0][:ITEMS])


def test_a_training_that_diverges_is_said_and_leaves_the_folder_to_other_numbers(tmp_path: Path):
    with pytest.raises(ValueError, match=r"must be finite: .* diverged with a learning rate of 1e\+30"):
        run(replace(JOB("sdpa", 0), learning_rate=1e30), Tiny(), tmp_path, silent)
    assert len(run(JOB("sdpa", 0), Tiny(), tmp_path, silent).scores) == ITEMS


@pytest.mark.parametrize("content", ["", "{", "[]", '{"job": 3}', '{"job": {}}'])
def test_a_damaged_job_is_named(tmp_path: Path, content: str):
    home = tmp_path / JOB("sdpa", 0).name
    home.mkdir()
    (home / "job.json").write_text(content)
    with pytest.raises(ValueError, match=r"job\.json must hold .*delete the folder, and it is trained again"):
        run(JOB("sdpa", 0), Tiny(), tmp_path, silent)
