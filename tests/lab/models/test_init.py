"""The real models that packages carry: right weights, and dense dynattn equal to ``sdpa``."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from transformers import RobertaConfig, RobertaModel

from dynattn.integrations.transformers import observing, register
from dynattn.lab import models
from tests.lab.models.packaged import inputs_for, pretrained

pytestmark = pytest.mark.model


@pytest.fixture(params=models.PACKAGED)
def any_model(request):
    loaded = pretrained(request.param)
    yield loaded
    loaded.model.set_attn_implementation("sdpa")


@functools.cache
@torch.no_grad()
def sdpa_output(name: str) -> torch.Tensor:
    loaded = pretrained(name)
    return loaded.model(**inputs_for(loaded))[0]


@torch.no_grad()
def test_dense_equals_sdpa(any_model):
    register()
    model, inputs, expected = any_model.model, inputs_for(any_model), sdpa_output(any_model.name)
    model.set_attn_implementation("dynattn:dense")
    calls = []
    with observing(calls.append):
        actual = model(**inputs)[0]
    assert len(calls) == model.config.num_hidden_layers * {"speech": 3}.get(any_model.kind, 1)
    rows = inputs.get("attention_mask", torch.ones(expected.shape[:2])).bool()
    error = (actual - expected)[rows].abs().max() / expected[rows].abs().max()
    assert error < 2e-5


@pytest.mark.parametrize("method", ["nm-1-2", "nm-2-4", "nm-1-2-w64-s4"])
@torch.no_grad()
def test_sparse_stays_close(any_model, method):
    """Half of the weights are gone, the outputs are finite, not the dense ones, and still point the same way."""
    register()
    model, inputs, expected = any_model.model, inputs_for(any_model), sdpa_output(any_model.name)
    model.set_attn_implementation(f"dynattn:{method}")
    actual = model(**inputs)[0]
    assert actual.isfinite().all()
    if not method.endswith("w64-s4"):  # the window covers the short texts
        assert not torch.allclose(actual, expected, rtol=1e-3, atol=1e-3)
    rows = inputs.get("attention_mask", torch.ones(expected.shape[:2])).bool()
    assert torch.cosine_similarity(actual[rows], expected[rows], dim=-1).mean() > 0.8


def test_facts_are_those_of_the_model(any_model):
    config = any_model.model.config
    assert models.facts(any_model.name) == models.Facts(
        any_model.kind, config.num_hidden_layers, config.num_attention_heads
    )


def test_other_models_by_folder(tmp_path):
    """A local folder is classified by its config."""
    loaded = pretrained("minilm")
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = models.load(str(tmp_path))
    assert (again.kind, again.model.config._attn_implementation) == ("encoder", "sdpa")
    assert again.processor("word")["input_ids"] == loaded.processor("word")["input_ids"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match="is a clip"):
        models.load(str(tmp_path))


def test_positions_behind_a_place_for_padding_are_fewer():
    """RoBERTa's first token is at the place after the padding's."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=20,
    )  # fmt: skip
    model = RobertaModel(config).eval()
    loaded = models.Pretrained("roberta", model, SimpleNamespace(model_max_length=10**30), "encoder", "")
    most = models.context(loaded)
    assert most == 18
    model(torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, most + 1), 5))


@pytest.mark.parametrize(
    ("available", "engine", "expected"),
    [
        (True, "avx512bf16", "bfloat16"),
        (True, "amx", "bfloat16"),
        (True, None, "float32"),
        (False, "amx", "float32"),
    ],
)
def test_models_run_in_bfloat16_where_the_processor_multiplies_it(monkeypatch, available, engine, expected):
    monkeypatch.setattr(models.cpu, "is_available", lambda: available)
    monkeypatch.setattr(models.isas, "tile_engine", lambda: engine)
    assert models.fastest_dtype() == expected
