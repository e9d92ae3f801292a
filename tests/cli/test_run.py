"""``dynattn run`` in processes of their own: the program finds the methods, its options, and its own files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("transformers")

from typer.testing import CliRunner

from dynattn.cli import app
from tests.covering import part

PROGRAM = """
import multiprocessing, pickle, sys
import beside

def embed(data):
    model = pickle.loads(data)
    return model.config._attn_implementation, float(beside.embed(model).sum())

if __name__ == "__main__":
    model = beside.model(sys.argv[2])
    if "--worker" in sys.argv:
        with multiprocessing.get_context("spawn").Pool(1) as workers:
            name, total = workers.apply(embed, (pickle.dumps(model),))
        assert name == sys.argv[2]
        assert abs(total - float(beside.embed(model).sum())) < 1e-4
    print(model.config._attn_implementation, sys.argv[1:])
    sys.exit(3)
"""
BESIDE = """
import torch
from transformers import AutoConfig, AutoModel

def model(name):
    sizes = {"vocab_size": 60, "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4}
    config = AutoConfig.for_model("bert", intermediate_size=8, **sizes)
    return AutoModel.from_config(config, attn_implementation=name).eval()

def embed(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(12).unsqueeze(0)).last_hidden_state
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dynattn", "run", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
@pytest.mark.parametrize(("program", "option"), part([("program", "--worker"), ("program.py", "--help")], 2))
def test_a_program_and_its_workers_know_the_methods(program: str, option: str, tmp_path: Path) -> None:
    """The worker is spawned, and gets the model pickled, as sentence-transformers hands it over."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text(BESIDE)
    done = run(tmp_path, program, "--attn", "dynattn:topk-3", option)
    assert done.returncode == 3, done.stderr
    assert done.stdout.strip() == f"dynattn:topk-3 ['--attn', 'dynattn:topk-3', '{option}']"


@pytest.mark.parametrize("name", ["no_such_module", "no.such.module", "..x", "gone.py"])
def test_a_program_that_is_not_there_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    done = CliRunner().invoke(app, ["run", name])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: run: program must be a module or a script that is there: got {name}; ")
