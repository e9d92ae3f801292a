"""Modules in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dynattn.lab import children


def _planted(folder, *names: str) -> None:
    for name in names:
        (folder / f"{name}.py").write_text("raise SystemExit('code of the current directory was run')")


def test_the_current_directory_is_not_run(tmp_path):
    _planted(tmp_path, "pip", "random", "runpy", "json", "platform")
    done = subprocess.run(
        children.command("platform", "--terse"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        children.command("pip", "--version"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "current directory" not in done.stderr
    assert done.stdout.startswith("pip ") or "No module named pip" in done.stderr


def test_modules_of_the_path_are_found_and_get_their_arguments(tmp_path, monkeypatch):
    (tmp_path / "said.py").write_text("import sys; print(__name__, sys.argv[1:])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run(children.command("said", "a b", "-c"), capture_output=True, text=True, check=True)
    assert done.stdout == "__main__ ['a b', '-c']\n"


def test_workers_of_a_sweep_do_not_run_it_either(tmp_path):
    pytest.importorskip("transformers")
    _planted(tmp_path, "random", "multiprocessing", "typing")
    code = (
        "from dynattn.lab.frontier import workers\n"
        "if __name__ == '__main__':\n"
        "    try: print(list(workers.run(('no model', None), [None], 1, 1)))\n"
        "    except AttributeError as error: print('measured')\n"
    )
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "sweep.py").write_text(code)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "away" / "sweep.py")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "current directory was run" not in done.stderr
    assert done.stdout == "measured\n"
