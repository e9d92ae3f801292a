"""The command: defaults, refusals, merging, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")

from typer.testing import CliRunner

from dynattn.lab.frontier import Settings, command, store, sweep, workers
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.sweep import plan
from tests.forking.python import forking
from tests.lab.frontier.running import APP, settings_for, silent


def test_by_default_every_family_runs_at_every_budget_on_several_tasks_and_lengths():
    cells, timed = plan(Settings(), "encoder")
    assert {cell.exam.task for cell in cells} == {"retrieval", "manpages"}
    assert len({cell.key for cell in cells}) == len(cells)
    for length in {cell.exam.tokens for cell in cells}:
        entries = {cell.entry.label for cell in cells if cell.exam.tokens == length}
        assert {"sdpa", "N:M 1/4", "N:M 1/8", "SpAtten 1/4", "efficient"} <= entries
        assert len([who for exam, who in timed if exam.tokens == length]) == len(entries) - 1
    assert cells[0].exam.tokens == max(cell.exam.tokens or 0 for cell in cells)  # the longest first


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"items": 0}, "items must be at least 1"), ({"tokens": (0,)}, "tokens must be at least 1"),
        ({"seconds": -1.0}, "seconds must not be negative"), ({"phases": ("sleep",)}, "phase must be one of"),
        ({"methods": ("nm-2",)}, "nm-2"), ({"tasks": ("riddles",)}, "riddles"),
        ({"budgets": (0.3,)}, "a budget must be 1 over a whole number"),
        ({"dtype": "float64"}, "dtype must be one of float32, bfloat16, float16: got 'float64'"),
    ],
)  # fmt: skip
def test_what_is_asked_for_wrongly_is_refused_before_anything_is_measured(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Settings(**fields)


def test_the_command_takes_a_dtype(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[Settings] = []

    def run(settings: Settings, *_: object) -> bool:
        asked.append(settings)
        return True

    monkeypatch.setattr(command, "run", run)
    for options in ([], ["--dtype", "bfloat16"]):
        assert CliRunner().invoke(APP, [*options, "--output", str(tmp_path)]).exit_code == 0
    assert [settings.dtype for settings in asked] == ["float32", "bfloat16"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(APP, ["--dtype", "float64"])
    assert result.exit_code != 0
    assert "dtype must be one of float32, bfloat16, float16: got 'float64'" in result.output


def test_merging_by_the_command_writes_the_record_and_its_page(measured: tuple[Frontier, Path], tmp_path: Path):
    found, path = measured
    half = list(found.grades)[:3]
    parts = [{key: found.grades[key] for key in found.grades if (key in half) == first} for first in (True, False)]
    for number, grades in enumerate(parts):
        part = found.model_copy(update={"grades": grades, "times": found.times if number else {}})
        store.save(part, tmp_path / f"{number}.json")
    files = [str(tmp_path / f"{number}.json") for number in range(2)]
    result = CliRunner().invoke(APP, ["--merge", *files, "--output", str(tmp_path / "both")])
    assert result.exit_code == 0, result.output
    (merged,), (html,) = (list((tmp_path / "both").glob(f"*.{kind}")) for kind in ("json", "html"))
    assert store.load(merged).grades == found.grades
    assert html.name in result.output.replace("\n", "")
    assert CliRunner().invoke(APP, ["--merge"]).exit_code == 2
    assert CliRunner().invoke(APP, [str(path)]).exit_code == 2


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_where_it_was(
    tiny_encoder: Path, texts: Path, tmp_path: Path, fork_server: str | None
):
    """SIGKILL as soon as something is written; the workers end, too; then the same command again."""
    settings = settings_for(tiny_encoder, texts)
    options = ["--methods", "nm-1-2,nm-1-4", "--tasks", "retrieval", "--items", "6", "--tokens", "32,64"]
    arguments = ["--model", str(tiny_encoder), "--text", str(texts), *options, "--output", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "dynattn", "frontier", *arguments, "--workers", "1", "--threads", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (records := list(tmp_path.glob("*.json"))):
        assert process.poll() is None, "the sweep ended before it wrote anything"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = _children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (path,) = records
    before = json.loads(path.read_text())
    assert before["grades"]
    while any(map(_lives, started)):
        assert time.monotonic() < deadline, "a worker outlived its sweep"
        time.sleep(0.05)
    assert before["grades"].keys() < {cell.key for cell in plan(settings, "encoder")[0]}
    with forking(fork_server):
        again = sweep(settings, path, silent, lambda job, cells: workers.run(job, cells, 1, 1)).model_dump(mode="json")
    assert again["grades"].items() >= before["grades"].items()  # their seconds, too: nothing was done again
    assert again["grades"].keys() == {cell.key for cell in plan(settings, "encoder")[0]}
    assert len(again["times"]) == 4


def _children(parent: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(parent).children(recursive=True)]


def _lives(process: int) -> bool:
    import psutil

    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
