"""A fork does what Python does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.signals import default_signals

PYTHON = sys.executable
IMPORTED = "import sys; print('torch' in sys.modules)"
SAID = "import os, sys; print(__name__, sys.argv[1:], sys.path[0], os.getcwd(), os.environ['ASKED'], sys.stdin.read())"
COMMANDS = [
    ["-c", SAID, "a b", "-c"],
    ["-m", "said", "x"],
    ["said.py", "--x"],
    ["-c", "import sys; sys.exit('a reason')"],
    ["-c", "raise SystemExit(300)"],
    ["-c", "import atexit; atexit.register(print, 'at last'); 1 / 0"],
    ["-c", "raise KeyboardInterrupt"],
    ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
    ["-c", "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import sys; sys.exit(7)']))"],
    ["-u", "-B", "-c", "import os; print('at once'); os._exit(0)"],
    ["no_such_file.py"],
]


def _started(program: str, arguments: list[str], folder: Path, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [program, *arguments], cwd=folder, env=os.environ | environment, input="given", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def fork(fork_server: str | None) -> str:
    if fork_server is None:
        pytest.skip("needs Linux, with children that are waited for by files")
    return fork_server


@pytest.mark.parametrize(
    ("arguments", "safe"), [*((each, "") for each in COMMANDS), *((each, "1") for each in COMMANDS[:3])]
)
def test_it_says_the_same_and_ends_alike(fork: str, arguments: list[str], safe: str, tmp_path: Path):
    (tmp_path / "said.py").write_text(SAID)
    given = {"ASKED": "this", "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": safe}
    forked, real = (_started(program, arguments, tmp_path, **given) for program in (fork, PYTHON))
    assert forked[:2] == real[:2]
    assert forked[2].splitlines()[-1:] == real[2].splitlines()[-1:]
    assert forked[2].count("Traceback") == real[2].count("Traceback")


def test_it_has_imported_libraries_unless_they_would_have_read_other_variables(fork: str, tmp_path: Path):
    assert _started(fork, ["-c", IMPORTED], tmp_path)[1] == "True\n"
    assert _started(fork, ["-B", "-c", IMPORTED], tmp_path)[1] == "True\n"
    assert _started(fork, ["-c", IMPORTED], tmp_path, HF_HOME="/elsewhere")[1] == "False\n"
    assert _started(fork, ["-I", "-c", IMPORTED], tmp_path)[1] == "False\n"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_it_and_its_end_is_theirs(fork: str, end: signal.Signals):
    code = "import time\nprint('there', flush=True)\ntime.sleep(600)"
    with subprocess.Popen(
        [fork, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        other.send_signal(end)
        _, said = other.communicate(timeout=60)
    assert other.returncode == -end
    assert said.rstrip().endswith("KeyboardInterrupt") == (end == signal.SIGINT)
