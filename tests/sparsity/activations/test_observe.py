"""What is seen is what was chosen."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.sparsity import CHESS, WINA, Calibrated, Chosen, NMActivations, observing, watching
from dynattn.sparsity.activations.observe import counts
from tests.pruning.structure.models import LAYERS, inputs, make, output


def test_density_share_and_bound_of_every_site():
    model, given = make("llama"), inputs("llama")
    runs: list[Chosen] = []
    with NMActivations(2, 4, norm=True).apply(model), watching() as seen, observing(runs.append):
        output(model, given)
        output(model, given)
    assert len(seen) == 7 * LAYERS
    assert {one.density for one in seen.values()} == {0.5}
    for run in runs:
        whole = run.module.weight.detach()
        error = (run.x @ whole.T - run.x.where(run.keep, 0) @ whole.T).norm(dim=1)
        sizes = run.x.abs() * whole.norm(dim=0)  # its own weights', also where the choice was by those of three
        dropped = sizes.masked_fill(run.keep, 0).sum(1)
        found = seen[run.site.name]
        assert (error <= dropped * (1 + 1e-5)).all()
        assert found.bound == pytest.approx(float(dropped.max()))
        assert found.kept_share == pytest.approx(float((1 - dropped / sizes.sum(1)).mean()))
        assert (found.tokens, found.entries) == (28, 28 * whole.shape[1])


def test_where_something_is_not_computed_there_is_no_certificate():
    model = make("llama")
    limits = {f"{layer}.down": (0.3,) for layer in range(LAYERS)}
    with Calibrated(CHESS(0.5), limits).apply(model), watching() as seen:
        output(model, inputs("llama"))
    assert seen.keys() == {f"{layer}.{name}" for layer in range(LAYERS) for name in ("up", "down")}
    assert all((one.kept_share, one.bound) == (None, None) for one in seen.values())
    assert all(seen[f"{layer}.up"].kept == seen[f"{layer}.down"].kept > 0 for layer in range(LAYERS))


def test_what_is_spared_is_counted():
    layer = torch.nn.Linear(4, 3)
    keep = torch.tensor([[True, False, False, True], [True, False, True, True]])
    site = None
    found = counts(Chosen(layer, site, keep, torch.ones(2, 4), None, False, True))  # pyright: ignore[reportArgumentType]
    assert found == (3 * 3, 1 * 3)
    keep = torch.tensor([[True, False, False]])
    found = counts(Chosen(layer, site, keep, torch.ones(1, 4), None, True, True))  # pyright: ignore[reportArgumentType]
    assert found == (2 * 4, 2 * 4)


def test_nobody_is_told_afterwards():
    model = make("bert")
    with WINA(0.5).apply(model):
        with watching() as seen:
            pass
        output(model, inputs("bert"))
    assert seen == {}
