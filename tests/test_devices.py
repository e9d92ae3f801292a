"""No tensor of ours is made where ``torch.set_default_device`` says, but beside those that it is computed with."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACTORIES = frozenset(
    [
        "arange",
        "as_tensor",
        "asarray",
        "complex",
        "empty",
        "empty_strided",
        "eye",
        "from_file",
        "full",
        "linspace",
        "logspace",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "range",
        "scalar_tensor",
        "sparse_coo_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    ]
)
# Weights of modules, which are made on the default device as those of torch.nn are.
WEIGHTS = {"predictor.py": 1, "model.py": 2, "learn.py": 1}

ELSEWHERE = """
import torch, dynattn
from dynattn.methods import parse
from tests.methods.every import NAMES, PLAIN

tensors = [torch.randn(1, 4, 20, 8, requires_grad=True) for _ in range(3)]
torch.set_default_device("meta")
for name in NAMES:
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype) for x in tensors]
        options = {} if name in PLAIN else {"dropout_p": 0.5, "seed": 3}
        for backend in ("auto", "reference"):
            out = dynattn.attention(*leaves, parse(name), causal=True, backend=backend, **options)
            assert out.device.type == "cpu", (name, out.device)
            torch.autograd.grad(out.sum(), tensors)
        if name not in PLAIN:
            out, aux = dynattn.attention(*leaves, parse(name), return_aux=True, dropout_p=0.5)
            assert {x.device.type for x in (out, *aux)} == {"cpu"}, name
"""


def without_device(path: Path) -> list[str]:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "torch"
        and call.func.attr in FACTORIES
        and not any(keyword.arg in ("device", None) for keyword in call.keywords)
    ]


def test_every_factory_names_a_device() -> None:
    found = {path: without_device(path) for path in (ROOT / "src" / "dynattn").rglob("*.py")}
    assert len(found) > 100
    assert not {path: calls for path, calls in found.items() if len(calls) > WEIGHTS.get(path.name, 0)}


@pytest.mark.usefixtures("forked_python")
def test_methods_compute_where_their_tensors_are() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-c", ELSEWHERE], check=True, env=environment)
