"""Seconds of linear layers: who is timed, and who is not looked at twice."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest

pytest.importorskip("transformers")
pytest.importorskip("rich")

from dynattn.lab.tune.linears.clock import clock, faster
from tests.pruning.structure.models import inputs, make

TICK = 0.002
DENSE = {"o_proj": 4 * TICK, "gate_proj": 2 * TICK, "up_proj": 2 * TICK, "down_proj": TICK}


def test_methods_that_are_faster_nowhere_are_left_out_after_the_first_look():
    model, given, entered, waits = make("llama"), inputs("llama"), [], dict(DENSE)
    for name, module in model.named_modules():
        end, forward = name.rpartition(".")[2], module.forward
        if end in DENSE:
            module.forward = lambda x, end=end, forward=forward: (time.sleep(waits[end]), forward(x))[1]

    @contextmanager
    def by(name, times):
        entered.append(name)
        waits.update({end: times * seconds for end, seconds in DENSE.items()})
        yield
        waits.update(DENSE)

    found = clock(model, {"half": lambda: by("half", 0.5), "slow": lambda: by("slow", 1.5)}, lambda: model(**given))
    assert entered == ["half", "slow", "half"]
    assert list(found) == ["dense", "half"]
    assert found["dense"]["gate"] >= 4 * TICK  # gate and up are one unit
    assert found["dense"]["mlp"] >= found["dense"]["gate"] + found["dense"]["down"]
    assert {"o", "gate", "mlp"} <= set(faster(found, "half"))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
