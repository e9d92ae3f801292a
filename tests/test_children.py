"""Modules in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from dynattn import children
from tests.signals import default_signals


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


_WAIT = """
import sys, time
from concurrent.futures import as_completed
from dynattn.children import Pool
if __name__ == "__main__":
    with Pool(2) as pool:
        calls = pool.submit([(time.sleep, 0), (time.sleep, 300), (time.sleep, 300)])
        for each in as_completed(calls):
            print("ready", flush=True)
            if sys.argv[1] == "error":
                raise ValueError("in the midst of it")
"""


@pytest.mark.usefixtures("forked_python")
@pytest.mark.parametrize("ends", ["interrupt", "error"])
def test_workers_end_at_once_with_what_they_were_started_by(tmp_path, ends: str):
    (tmp_path / "wait.py").write_text(_WAIT)
    started = subprocess.Popen(
        [sys.executable, str(tmp_path / "wait.py"), ends], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=default_signals,
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    began = time.monotonic()
    if ends == "interrupt":
        started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=100)
    assert time.monotonic() - began < 60  # the calls take 300 s
    assert started.returncode != 0
    assert said.count("Traceback") == 1  # the workers have nothing to say
    assert ("KeyboardInterrupt" if ends == "interrupt" else "in the midst of it") in said


@pytest.mark.parametrize("honoured", [True, False])
def test_workers_run_nothing_of_the_current_directory_and_work_in_it(tmp_path, honoured: bool):
    _planted(tmp_path, "random", "pickle", "socket", "selectors", "queue")
    code = (
        "import os\n"
        "from dynattn import children\n"
        "if __name__ == '__main__':\n"
        f"    if not {honoured}: children._SAFE_PATH = 'NO_SUCH_VARIABLE'  # as Python 3.10 knows none\n"
        "    before = children.safe_start\n"
        f"    children.safe_start = lambda: before(elsewhere=not {honoured})\n"
        "    with children.Pool(1) as pool:\n"
        "        print(pool.submit([(os.getcwd,)])[0].result())\n"
    )
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "code_of_ours.py").write_text(code)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "away" / "code_of_ours.py")], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "current directory was run" not in done.stderr
    assert done.stdout == f"{tmp_path}\n", done.stderr


def test_the_environment_and_the_directory_are_put_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    here = os.getcwd()
    with children.safe_start(elsewhere=True):
        assert os.environ["PYTHONSAFEPATH"] == "1"
        assert os.getcwd() == os.path.abspath(os.sep)
    assert os.getcwd() == here
    assert "PYTHONSAFEPATH" not in os.environ
