"""N:M activations of the prefill phase: what is looked at where, by times that a test makes up."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("rich")

from dynattn.lab.models import load
from dynattn.lab.tune.linears import prefill
from dynattn.sparsity import BySite, parse


def _inputs(tokens: int = 40) -> dict:
    return {"input_ids": torch.arange(tokens)[None] % 60, "use_cache": False}


def test_settings_of_what_is_faster_come_from_the_mildest_to_the_strongest(tiny_decoder, monkeypatch):
    seen = []

    def clock(model, contexts, run):
        seen.extend(contexts)
        for context in contexts.values():
            with context():
                run()
        dense = {"q": 1.0, "o": 1.0, "gate": 2.0, "down": 2.0, "mlp": 5.0}
        return {
            "dense": dense,
            "nmact-1-2": {**dense, "gate": 1.0},
            "nmact-2-4-norm": {**dense, "down": 1.0, "mlp": 4.0},
        }

    monkeypatch.setattr(prefill, "clock", clock)
    pretrained = load(str(tiny_decoder))
    seconds = prefill.costs(pretrained, _inputs())
    assert seen == ["nmact-1-2", "nmact-1-2-norm", "nmact-2-4", "nmact-2-4-norm"]
    family = prefill.family(pretrained, seconds, [_inputs(), _inputs(20)])
    plans = [plan for name in family if isinstance(plan := parse(name), BySite)]
    assert len(plans) == len(family) > 0
    strongest = {site: method.name for site, method in plans[-1].methods}
    assert strongest == {
        **{f"{layer}.{name}": "nmact-1-2" for layer in (0, 1) for name in ("gate", "up")},
        **{f"{layer}.down": "nmact-2-4-norm" for layer in (0, 1)},
    }
    assert [len(plan.methods) for plan in plans] == sorted({len(plan.methods) for plan in plans})
    assert pretrained.model.config._attn_implementation == "sdpa"


def test_where_nothing_is_faster_there_is_no_family(tiny_decoder, monkeypatch):
    monkeypatch.setattr(prefill, "clock", lambda *_: {"dense": {"q": 1.0}})
    pretrained = load(str(tiny_decoder))
    assert prefill.costs(pretrained, _inputs()) == {}
    assert prefill.family(pretrained, {}, [_inputs()]) == ()


def test_a_model_whose_layers_cannot_be_named_is_not_timed(tiny_decoder, monkeypatch):
    monkeypatch.setattr(prefill, "units", lambda _: [])
    monkeypatch.setattr(prefill, "clock", None)
    assert prefill.costs(load(str(tiny_decoder)), _inputs()) == {}


def test_texts_are_cut_and_pictures_are_not():
    mask = torch.ones(1, 9, 9)
    given = {"input_ids": torch.ones(1, 9), "attention_mask": mask, "pixel_values": torch.ones(1, 9, 2, 2), "top": 1}
    found = prefill.beginning(given, 4)
    assert found["input_ids"].shape == (1, 4)
    assert found["attention_mask"] is mask
    assert found["pixel_values"].shape == (1, 9, 2, 2)
    assert found["top"] == 1
