"""A method of a user's own, from a module that is no part of the package, goes wherever the package's methods go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The example of CONTRIBUTING.md.
MODULE = '''
from dataclasses import dataclass

import torch
from torch import Tensor

from dynattn.methods import PairMethod, Rows, register


@register
@dataclass(frozen=True)
class Nearest(PairMethod):
    """Keep the keys whose vectors are nearest to the query's: ``‖q_i - k_j‖`` among the ``count`` smallest of row i."""

    count: int

    @property
    def name(self) -> str:
        return f"nearest-{self.count}"

    @classmethod
    def from_name(cls, name: str) -> "Nearest | None":
        word, _, count = name.rpartition("-")
        return cls(int(count)) if word == "nearest" and count.isdigit() else None

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        distance = torch.cdist(rows.query.float(), rows.key.float()).masked_fill(scores == -torch.inf, torch.inf)
        nearest = distance.argsort(dim=-1, stable=True)[..., : self.count]
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, nearest, True)
'''

THROUGH_MODELS = """
import torch, transformers
import dynattn
from dynattn.integrations.transformers import observing, register
from dynattn.methods import parse

nearest = parse("nearest-3")
query, key, value = torch.randn(3, 2, 4, 9, 8)
out, aux = dynattn.attention(query, key, value, nearest, return_aux=True)
assert torch.allclose(aux.density, torch.tensor(3 / 9)), aux.density
near = torch.cdist(query, key)[1, 2, 5].argsort()[:3]
weights = (query[1, 2, 5] @ key[1, 2, near].T * 8**-0.5).softmax(0)
torch.testing.assert_close(out[1, 2, 5], weights @ value[1, 2, near])
assert parse("nearest-3+window-2").parts[0] == nearest

(name, *_) = register("perlayer(dense_1=nearest-3)")
config = transformers.BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
)
model = transformers.BertModel(config).eval()
model.set_attn_implementation(name)
seen = []
with observing(lambda call: seen.append(call.method.name)), torch.no_grad():
    model(torch.arange(9).unsqueeze(0))
assert seen == ["dense", "nearest-3"], seen
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of processes that find the module ``nearest_keys`` and know it by DYNATTN_METHODS."""
    (tmp_path / "nearest_keys.py").write_text(MODULE, encoding="utf-8")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "DYNATTN_METHODS": "nearest_keys"}


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
def test_in_attention_and_in_a_model(environment: dict[str, str]) -> None:
    pytest.importorskip("transformers", reason="needs dynattn[transformers]")
    done = python(environment, "-c", THROUGH_MODELS)
    assert done.returncode == 0, done.stderr


def test_the_example_is_the_one_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert MODULE.strip() in guide


def test_what_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from dynattn.methods import parse

    monkeypatch.setenv("DYNATTN_METHODS", "no_such_module")
    assert parse("topk-3").name == "topk-3"  # nothing is imported for a name that is known
    with pytest.raises(ImportError, match=r"DYNATTN_METHODS must name modules .*: got 'no_such_module'"):
        parse("nearest-3")
