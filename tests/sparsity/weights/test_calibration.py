"""Statistics of inputs, in one pass, are those of all tokens at once; padding has no part."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.sparsity import InputStatistics, NMWeights, calibrate
from dynattn.sparsity.linears import linears
from dynattn.sparsity.weights.calibration import required
from tests.pruning.structure.models import inputs, make


def _none(width: int) -> InputStatistics:
    return InputStatistics(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))


@pytest.mark.parametrize("cuts", [[11], [1, 4, 6], [0, 11, 0], [1] * 11])
def test_parts_give_what_the_whole_gives(cuts):
    torch.manual_seed(0)
    rows = torch.randn(11, 3, dtype=torch.float64) * 2 + 1e4  # far from 0, where sums of squares would cancel
    rows[:, 2] = 7.0
    found = _none(3)
    for part in rows.split(cuts):
        found = found.and_of(part)
    for j in range(3):
        values = rows[:, j].tolist()
        mean = sum(values) / 11
        assert found.mean[j].item() == pytest.approx(mean, rel=1e-13)
        assert found.variance[j].item() == pytest.approx(sum((x - mean) ** 2 for x in values) / 11, rel=1e-9, abs=1e-15)
        assert found.norm[j].item() == pytest.approx(sum(x * x for x in values) ** 0.5, rel=1e-13)
    assert found.count == 11


def test_half_precision_is_summed_in_float32():
    rows = torch.full((4096, 1), 1.0 + 2**-7, dtype=torch.bfloat16)
    found = _none(1).and_of(rows)
    assert found.mean.item() == 1 + 2**-7
    assert found.variance.item() == 0


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_layers_are_seen_as_they_read_and_padding_is_not(kind):
    model: Any = make(kind)
    batch = inputs(kind)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in linears(model)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].detach()))
        for name, layer in linears(model).items()
    ]
    more = {name: x.flip(0) for name, x in batch.items()}
    found = calibrate(model, iter([batch, more]))
    for hook in hooks:
        hook.remove()
    assert list(found) == list(seen)
    mask = torch.cat([batch["attention_mask"], more["attention_mask"]]).bool()
    for name, parts in seen.items():
        rows = torch.cat(parts)[mask].double()
        assert found[name].count == len(rows) == (24 if kind == "bert" else 28)
        torch.testing.assert_close(found[name].mean, rows.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[name].variance, rows.var(0, correction=0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[name].norm, rows.norm(dim=0), rtol=1e-5, atol=1e-6)
    assert not any(layer._forward_pre_hooks for layer in linears(model).values())


def test_what_cannot_be_is_refused():
    model = make("bert")
    with pytest.raises(ValueError, match="calibrate: batches must hold at least one"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="calibrate: the model must be in eval mode"):
        calibrate(model.train(), [inputs("bert")])
    with pytest.raises(
        ValueError, match="NMWeights: statistics must tell of the inputs of every layer: none were given"
    ):
        NMWeights(2, 4, "wanda").masks({"a": torch.ones(4, 4)})
    with pytest.raises(ValueError, match=r"Wanda: statistics .* those given lack 'b'"):
        required({"a": _none(4)}, "b", "Wanda")
