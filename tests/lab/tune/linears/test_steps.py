"""Linear layers of the decode phase: families by times that a test makes up, and settings with what they need."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("rich")

from dynattn.lab.models import load
from dynattn.lab.tune.linears import steps
from dynattn.lab.tune.linears.steps import Linears

DENSE = {"q": 1.0, "o": 1.0, "gate": 2.0, "down": 2.0, "mlp": 5.0}


@pytest.fixture
def linears(tiny_decoder, monkeypatch) -> Linears:
    for name, few in (
        ("_INPUTS", ("teal-0.8", "teal-0.5", "wina-0.5")), ("_NEURONS", ("chess-0.5",)), ("_STEPS", 2),
    ):  # fmt: skip
        monkeypatch.setattr(steps, name, few)
    draw = torch.Generator().manual_seed(0)
    return Linears(load(str(tiny_decoder)), [torch.randint(60, (1, 30), generator=draw) for _ in range(3)])


def _clock(found):
    def clock(model, contexts, run):
        assert set(contexts) == {"teal-0.8", "teal-0.5", "wina-0.5", "nmweight-2-4-wanda", "chess-0.5"}
        with contexts["nmweight-2-4-wanda"]():
            run()
        return found

    return clock


def test_families_hold_what_is_faster_and_settings_what_they_need(linears, monkeypatch):
    found = {
        "dense": DENSE, "teal-0.5": {**DENSE, "q": 0.6, "o": 0.7, "gate": 1.0, "down": 1.0},
        "nmweight-2-4-wanda": {**DENSE, "o": 0.6}, "chess-0.5": {**DENSE, "mlp": 3.0},
    }  # fmt: skip
    monkeypatch.setattr(steps, "clock", _clock(found))
    seconds = linears.costs()
    assert seconds == found
    families = linears.families(seconds)
    assert set(families) == {"inputs", "neurons"}
    inputs, neurons = families["inputs"][-1], families["neurons"][-1]
    assert len(inputs) == 2 * 7
    assert set(inputs.values()) == {"teal-0.5", "nmweight-2-4-wanda"}
    assert {inputs[f"{layer}.down"] for layer in (0, 1)} == {"teal-0.5"}
    assert {site for site, name in neurons.items() if name == "chess-0.5"} == {"0.down", "1.down"}
    assert {site.partition(".")[2] for site in neurons} == {"q", "k", "v", "o", "down"}
    for family in families.values():
        sizes = [len(methods) for methods in family]
        assert sizes == sorted(sizes)
    both = linears.setting({**inputs, **{site: name for site, name in neurons.items() if name == "chess-0.5"}})
    assert {len(both.thresholds[site]) for site in ("0.down", "1.down")} == {32}
    assert len(both.thresholds["0.q"]) == 1
    assert all(len(norms) == 32 for norms in both.norms.values())
    with linears.context(neurons)():
        pass


def test_a_model_that_is_not_for_chess_is_looked_at_without_it(linears, monkeypatch):
    monkeypatch.setattr(
        steps, "clock", lambda model, contexts, run: {"dense": DENSE} if "chess-0.5" not in contexts else None
    )
    real = steps.calibrate_thresholds

    def refusing(method, *given):
        if method.name.startswith("chess"):
            raise ValueError("an MLP with a gate must compute something else")
        return real(method, *given)

    monkeypatch.setattr(steps, "calibrate_thresholds", refusing)
    assert linears.costs() == {}


def test_where_layers_cannot_be_named_nothing_is_timed(tiny_decoder, monkeypatch):
    monkeypatch.setattr(steps, "units", lambda _: [])
    monkeypatch.setattr(steps, "clock", None)
    assert Linears(load(str(tiny_decoder)), [torch.ones(1, 4, dtype=torch.long)]).costs() == {}
