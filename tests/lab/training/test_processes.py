"""The command under torchrun: two processes share each step, one report is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from dynattn.lab.training.results import Study
from tests.covering import part

SIZES = ["--items", "6", "--steps", "4", "--batch", "16", "--tokens", "64", "--threads", "1"]


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
@pytest.mark.parametrize("task", part(["retrieval", "restore"], 2))
def test_two_processes_train_together_and_one_writes(tiny_encoder: Path, many_texts: Path, tmp_path: Path, task: str):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dynattn"]
    options = ["--model", str(tiny_encoder), "--text", str(many_texts), "--seeds", "1", "--methods", "nm-1-2"]
    command = [*launcher, "finetune", "--task", task, *options, *SIZES, "--output", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report  ") == 1
    (path,) = tmp_path.glob("*.json")
    found = Study.model_validate_json(path.read_text())
    assert found.processes == 2
    for method in ("sdpa", "nm-1-2"):
        (home,) = tmp_path.glob(f"*/{method}-seed0")
        kept = {"weights.pt", "swapped-nm-1-2.json"} if method == "sdpa" else set()
        assert {entry.name for entry in home.iterdir()} == {"job.json", "metrics.jsonl", "result.json"} | kept
        assert len((home / "metrics.jsonl").read_text().splitlines()) == 4  # by one process
