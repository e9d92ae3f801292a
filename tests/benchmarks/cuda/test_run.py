"""The device run's dry mode: every step is called where there is no device, and none fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynattn.kernels.cuda import loader
from dynattn.lab.bench.record import load
from tests.signals import default_signals

_SCRIPT = Path(__file__).parents[3] / "benchmarks" / "cuda" / "run.py"


@pytest.mark.usefixtures("forked_python")
@pytest.mark.skipif(loader.missing() is not None, reason=f"needs NVRTC: {loader.missing()}")
def test_dry_run(tmp_path: Path) -> None:
    environment = os.environ | {"DYNATTN_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(_SCRIPT), "--dry-run", "--output", str(tmp_path / "results")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["dry_run"]
    assert results["tests"]["exit_code"] == 0
    assert results["warm"] == {"kernels": 2, "compiled": 2}
    assert {record["function"] for record in results["attention"]} == {"sdpa", "unfused", "nm-1-2", "nm-2-4"}
    assert all(record["right"] for record in results["attention"])
    trained = {"sdpa", "nm-1-2", "nm-2-4", "nm-1-2-w64-s4", "nm-1-2 dropout 0.1", "nm-2-4 dropout 0.1"}
    assert {record["function"] for record in results["training"]} == trained
    assert all(record["right"] for record in results["training"])
    assert load(tmp_path / "results" / "tiny.json").suite == "tiny"
    assert not any(record["serialised"] for record in results["rates"])


_STUCK = """
import time
print("started", flush=True)
try:
    time.sleep(100)
except KeyboardInterrupt:
    print("what failed so far")
"""


@pytest.mark.usefixtures("forked_python")
def test_a_command_that_takes_too_long_may_say_what_it_found(tmp_path: Path) -> None:
    code = "import json, pathlib, run, sys; print(json.dumps(run._run(sys.argv[1:], 1.0, pathlib.Path('log'))))"
    command = [sys.executable, "-c", code, sys.executable, "-c", _STUCK]
    environment = os.environ | {"PYTHONPATH": str(_SCRIPT.parent)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, preexec_fn=default_signals
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == "stopped after 1 s"
    assert found["last_line"] == "what failed so far"
