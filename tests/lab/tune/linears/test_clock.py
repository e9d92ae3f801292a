"""Seconds of linear layers, by a clock that the layers themselves move: who is timed, who is not looked at twice."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")
pytest.importorskip("rich")

from dynattn.lab.tune.linears.clock import clock, faster
from tests.pruning.structure.models import inputs, make

DENSE = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 4, "gate_proj": 2, "up_proj": 3, "down_proj": 1}


def test_methods_that_are_faster_nowhere_are_left_out_after_the_first_look(monkeypatch):
    model, given, entered, takes, now = make("llama"), inputs("llama"), [], dict(DENSE), [0.0]
    monkeypatch.setattr("dynattn.lab.tune.linears.clock.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def ticking(end, forward):
        def run(x):
            now[0] += takes[end]
            return forward(x)

        return run

    for name, module in model.named_modules():
        end = name.rpartition(".")[2]
        if end in DENSE:
            module.forward = ticking(end, module.forward)

    @contextmanager
    def by(name, **changes):
        entered.append(name)
        takes.update(changes)
        yield
        takes.update(DENSE)

    contexts = {"some": lambda: by("some", o_proj=2, down_proj=3), "slow": lambda: by("slow", q_proj=1.2)}
    found = clock(model, contexts, lambda: model(**given))
    assert entered == ["some", "slow", "some"]
    assert found == {
        "dense": {"q": 3, "o": 4, "gate": 5, "down": 1, "mlp": 6},  # gate and up are one unit
        "some": {"q": 3, "o": 2, "gate": 5, "down": 3, "mlp": 8},
    }
    assert faster(found, "some") == ["o"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
