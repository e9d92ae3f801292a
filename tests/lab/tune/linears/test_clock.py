"""Seconds of linear layers: who is timed, and who is not looked at twice."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager

import pytest

pytest.importorskip("transformers")
pytest.importorskip("rich")

from dynattn.lab.tune.linears.clock import clock, faster
from tests.pruning.structure.models import inputs, make, output

TICK = 0.002


@contextmanager
def _taking(model, seconds):
    """Linear layers by the end of their names that take so long."""
    with ExitStack() as undo:
        for name, module in model.named_modules():
            if name.endswith(tuple(seconds)):
                wait = next(its for end, its in seconds.items() if name.endswith(end))
                forward = module.forward
                module.forward = lambda x, wait=wait, forward=forward: time.sleep(wait) or forward(x)
                undo.callback(vars(module).pop, "forward")
        yield


def test_methods_that_are_faster_nowhere_are_left_out_after_the_first_look():
    model, given, entered = make("llama"), inputs("llama"), []

    @contextmanager
    def by(name, seconds):
        entered.append(name)
        with _taking(model, seconds):
            yield

    dense = {"o_proj": 4 * TICK, "gate_proj": 2 * TICK, "up_proj": 2 * TICK, "down_proj": TICK}
    with _taking(model, dense):
        contexts = {
            "half": lambda: by("half", {"up_proj": 0.0, "o_proj": TICK}),
            "slow": lambda: by("slow", {end: 2 * its for end, its in dense.items()} | {"q_proj": TICK}),
        }
        found = clock(model, contexts, lambda: output(model, given) and None)
    assert entered == ["half", "slow", "half"]
    assert list(found) == ["dense", "half"]
    assert found["dense"]["gate"] >= 4 * TICK  # gate and up are one unit
    assert found["dense"]["mlp"] >= found["dense"]["gate"] + found["dense"]["down"]
    assert found["half"]["o"] < 0.5 * found["dense"]["o"]
    assert {"o", "gate", "mlp"} <= set(faster(found, "half"))
    assert "down" not in faster(found, "half") or found["half"]["down"] < 0.95 * found["dense"]["down"]
