"""Bounds beside those of another verifier, auto_LiRPA 0.3, which is told of the places that PyTorch has moved since.

It is installed beside the environment, without what it depends on: its own torch would be an old one.

    pip install --no-deps --target beside auto-LiRPA appdirs
    PYTHONPATH=beside pytest tests/verify/test_independent.py
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynattn.verify import Affine, Box

if importlib.util.find_spec("auto_LiRPA") is None:
    pytest.skip("auto_LiRPA is not installed; it stands beside the environment alone", allow_module_level=True)

RADII = (0.003, 0.05)


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The other verifier: the lower and the upper ends of what a model may give."""
    sets = types.ModuleType("numpy.lib.arraysetops")
    sets.isin = np.isin
    monkeypatch.setitem(sys.modules, "numpy.lib.arraysetops", sets)
    helper, utils = (importlib.import_module(f"torch.onnx.{name}") for name in ("symbolic_helper", "utils"))
    inner = "torch.onnx._internal.torchscript_exporter"
    settings = importlib.import_module(f"{inner}._globals").GLOBALS
    set_opset = lambda version: setattr(settings, "export_onnx_opset_version", version)  # noqa: E731
    monkeypatch.setattr(helper, "_set_opset_version", set_opset, raising=False)
    optimize = importlib.import_module(f"{inner}.utils")._optimize_graph
    monkeypatch.setattr(utils, "_optimize_graph", optimize, raising=False)
    of_kind = lambda node, name: getattr(node, node.kindOf(name))(name)  # noqa: E731
    monkeypatch.setattr(torch._C.Node, "__getitem__", of_kind, raising=False)
    other: Any = importlib.import_module("auto_LiRPA")
    members = other.BoundedModule._named_members

    def named(self: Any, *args: Any, remove_duplicate: bool = True, **kwargs: Any) -> Any:
        return members(self, *args, **kwargs)

    monkeypatch.setattr(other.BoundedModule, "_named_members", named)

    def found(model: nn.Module, x: Tensor, radius: float, method: str) -> tuple[Tensor, Tensor]:
        bounded = other.BoundedModule(model, torch.empty_like(x))
        moved = other.BoundedTensor(x, other.PerturbationLpNorm(norm=float("inf"), eps=radius))
        return tuple(end.detach().double() for end in bounded.compute_bounds(x=(moved,), method=method))

    return found


class Block(nn.Module):
    """Attention and a feed-forward part, the softmax spelled out, since the other verifier takes off a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.up, self.down, self.head = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(40, 3)

    def forward(self, x: Any) -> Any:
        e = torch.exp(torch.matmul(self.q(x), self.k(x).transpose(-1, -2)) / 8**0.5)
        return self.rest(x + torch.matmul(e / torch.sum(e, -1, keepdim=True), self.v(x)))

    def fused(self, x: Any) -> Any:
        """The same, by PyTorch's attention."""
        q, k, v = (part(x).unsqueeze(1) for part in (self.q, self.k, self.v))
        return self.rest(x + F.scaled_dot_product_attention(q, k, v).squeeze(1))

    def rest(self, x: Any) -> Any:
        return self.head((x + self.down(torch.relu(self.up(x)))).reshape(1, -1))


@pytest.mark.parametrize("radius", RADII)
@torch.no_grad()
def test_layers_without_attention_have_the_same_bounds(bounds: Any, radius: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(1, 6)
    theirs = {method: bounds(model, x, radius, method) for method in ("IBP", "forward")}
    model.double()
    for kind, method in ((Box, "IBP"), (Affine, "forward")):
        ours = model(kind.around(x.double(), radius))
        torch.testing.assert_close((ours.lower, ours.upper), theirs[method], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("radius", RADII)
@torch.no_grad()
def test_attention_has_the_same_intervals_and_lines_as_tight(bounds: Any, radius: float) -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(1, 5, 8)
    theirs = {method: bounds(model, x, radius, method) for method in ("IBP", "IBP+backward")}
    model.double()
    intervals = model(Box.around(x.double(), radius))
    torch.testing.assert_close((intervals.lower, intervals.upper), theirs["IBP"], rtol=1e-4, atol=1e-5)
    lower, upper = theirs["IBP+backward"]
    for function in (model.forward, model.fused):
        ours = function(Affine.around(x.double(), radius))
        assert bool(((ours.lower <= upper) & (lower <= ours.upper)).all())  # both hold the truth
        assert ours.radius.sum() < 1.15 * (upper - lower).sum() / 2
    fused = model.fused(Affine.around(x.double(), radius))
    assert fused.radius.sum() < 1.05 * (upper - lower).sum() / 2  # which goes back from the output
