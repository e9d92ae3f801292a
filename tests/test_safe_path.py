"""``python -m dynattn`` runs nothing of the current directory, and no other program's paths are touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dynattn import safe_path

_PLANTED = ("random", "typing", "json", "dataclasses", "torch", "numpy", "typer", "rich", "sitecustomize", "pip")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    for name in _PLANTED:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code of the current directory was run')")
    return tmp_path


@pytest.mark.parametrize("options", [["-m", "dynattn"], ["-Bmdynattn"], ["-u", "-X", "utf8", "-m", "dynattn.__main__"]])
def test_the_command_runs_nothing_of_the_current_directory(planted: Path, options: list[str]):
    pytest.importorskip("typer")
    done = subprocess.run(
        [sys.executable, *options, "bench", "--suite", "none"], cwd=planted, capture_output=True, text=True, check=False
    )
    assert "current directory was run" not in done.stdout + done.stderr
    assert "suite: name must be one of" in done.stderr
    assert done.returncode == 2


def test_other_programs_keep_their_current_directory(tmp_path: Path):
    (tmp_path / "dynattn_user").mkdir()
    (tmp_path / "dynattn_user" / "__init__.py").write_text("import dynattn")
    (tmp_path / "dynattn_user" / "__main__.py").write_text("import beside; print(beside.__file__)")
    (tmp_path / "beside.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "dynattn_user", "-m", "dynattn"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == tmp_path / "beside.py"


@pytest.mark.parametrize(
    ("argv", "command", "ours"),
    [
        (["-m", "bench"], ["python", "-m", "dynattn", "bench"], True),
        (["-m"], ["python", "-B", "-mdynattn.cli"], True),
        (["-m", "x"], ["python", "-Bmdynattn", "x"], True),
        (["-m", "dynattn"], ["python", "-m", "pytest", "dynattn"], False),
        (["-m"], ["python", "-m", "dynattn_user"], False),
        (["/usr/bin/dynattn", "-m"], ["python", "/usr/bin/dynattn", "-m"], False),
        (["-c", "-m", "dynattn"], ["python", "-c", "pass", "-m", "dynattn"], False),
        ([], [], False),
    ],
)
def test_whose_process_it_is(argv: list[str], command: list[str], ours: bool):
    assert safe_path._started_for_us(argv, command) == ours
