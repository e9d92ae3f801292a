"""The real models that packages carry: right weights, and dense dynattn equal to ``sdpa``."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import observing, register
from dynattn.lab import models
from dynattn.lab.data.packages import PackageUnavailableError

pytestmark = pytest.mark.model

TEXTS = (
    "The lighthouse keeper counted the ships that passed before the fog came in, and wrote each name in a book.",
    "A short one.",
)


@functools.cache
def pretrained(name: str) -> Any:
    try:
        return models.load(name)
    except (PackageUnavailableError, ImportError) as error:
        pytest.skip(str(error))


@pytest.fixture(params=models.PACKAGED)
def any_model(request):
    loaded = pretrained(request.param)
    yield loaded
    loaded.model.set_attn_implementation("sdpa")


def tone(seconds: float = 3.0) -> torch.Tensor:
    """A chirp at 16 kHz."""
    t = torch.linspace(0, seconds, int(16000 * seconds))
    return 0.1 * torch.sin(2 * torch.pi * (200 + 150 * t) * t)


def inputs_for(loaded: models.Pretrained) -> dict[str, torch.Tensor]:
    if loaded.kind == "vision":
        return {"pixel_values": torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))}
    if loaded.kind == "speech":
        features = loaded.processor(tone().numpy(), sampling_rate=16000, return_tensors="pt").input_features
        return {"input_features": features, "decoder_input_ids": torch.tensor([[50258, 50259, 50359, 50363, 440]])}
    loaded.processor.padding_side = "left" if loaded.kind == "decoder" else "right"
    return dict(loaded.processor(list(TEXTS), padding=True, return_tensors="pt"))


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


@torch.no_grad()
def test_minilm_tells_meanings_apart():
    loaded = pretrained("minilm")
    texts = ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell sharply."]
    batch = loaded.processor(texts, padding=True, return_tensors="pt")
    states, mask = loaded.model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    alike, apart, _ = (vectors @ vectors.T)[torch.triu(torch.ones(3, 3), 1).bool()]
    assert alike > 0.5 > 0.2 > apart


@pytest.mark.parametrize("attention", ["sdpa", "dynattn:nm-2-4"])
def test_smollm2_answers(attention):
    loaded = pretrained("smollm2")
    register()
    loaded.model.set_attn_implementation(attention)
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = loaded.processor.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = loaded.model.generate(**prompt, max_new_tokens=8, do_sample=False)
    loaded.model.set_attn_implementation("sdpa")
    answer = loaded.processor.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer


@torch.no_grad()
def test_dinov2_equals_its_onnx_graph():
    """Against the graph that the package holds, run in NumPy by onnx up to the end of the backbone."""
    onnx = pytest.importorskip("onnx", reason="needs dynattn[models]")
    from onnx.reference import ReferenceEvaluator

    from dynattn.lab.models.dinov2 import onnx_file

    loaded = pretrained("dinov2")
    graph = (model := onnx.load(onnx_file())).graph
    last = next(i for i, node in enumerate(graph.node) if node.name == "/backbone/layernorm/Add_1")
    end = onnx.helper.make_tensor_value_info(graph.node[last].output[0], onnx.TensorProto.FLOAT, None)
    del graph.node[last + 1 :], graph.output[:]
    graph.output.append(end)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (states,) = ReferenceEvaluator(model).run(None, {"input_image": pixels.numpy()})
    expected = torch.as_tensor(states)
    error = (loaded.model(pixels).last_hidden_state - expected).abs().max() / expected.abs().max()
    assert error < 2e-5


@torch.no_grad()
def test_dinov2_decoder_finds_the_object():
    """A bright disc on noise: its pixels are more salient than the rest."""
    from dynattn.lab.models.dinov2 import saliency_decoder

    loaded = pretrained("dinov2")
    y, x = torch.meshgrid(torch.arange(280.0), torch.arange(224.0), indexing="ij")
    disc = (y - 180) ** 2 + (x - 70) ** 2 < 35**2
    image = 0.3 + 0.05 * torch.rand(3, 280, 224, generator=torch.Generator().manual_seed(0))
    image[0][disc], image[1:, disc] = 0.95, 0.1
    pixels = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / 0.226
    tokens = loaded.model(pixels.unsqueeze(0)).last_hidden_state
    saliency = saliency_decoder()(tokens, (280, 224))
    assert saliency.shape == (1, 280, 224)
    assert 0 <= saliency.min() < saliency.max() <= 1
    assert saliency[0][disc].mean() > 2 * saliency[0][~disc].mean()


def test_whisper_knows_silence_from_speech():
    """Right weights call silence "no speech", and generate() finds language, task and start in the converted files."""
    loaded = pretrained("whisper")
    silence = loaded.processor(torch.zeros(16000).numpy(), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        start = loaded.model(input_features=silence, decoder_input_ids=torch.tensor([[50258]])).logits[0, -1]
    assert start.softmax(-1)[50362] > 0.5
    register()
    tokens = {}
    for attention in ("sdpa", "dynattn:dense"):
        loaded.model.set_attn_implementation(attention)
        tokens[attention] = loaded.model.generate(silence, max_new_tokens=8)
    loaded.model.set_attn_implementation("sdpa")
    assert torch.equal(tokens["sdpa"], tokens["dynattn:dense"])
    assert loaded.processor.batch_decode(tokens["sdpa"])[0]


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
