"""Models that no package carries: what a config says they are."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.lab.models import hub


@pytest.mark.parametrize(
    ("model_type", "architecture", "kind"),
    [
        ("gpt2", "GPT2LMHeadModel", "decoder"),
        ("llama", "LlamaForCausalLM", "decoder"),
        ("bert", "BertForMaskedLM", "encoder"),
        ("roberta", "RobertaModel", "encoder"),
        ("vit", "ViTForImageClassification", "vision"),
        ("dinov2", "Dinov2Model", "vision"),
        ("whisper", "WhisperForConditionalGeneration", "speech"),
    ],
)
def test_kinds(model_type, architecture, kind):
    assert hub._classify(model_type, [architecture], "x")[0] == kind


def test_a_model_with_attention_of_its_own_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a bloom, whose attention is its own"):
        hub.load(str(tmp_path), torch.float32)


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_no_name_is_no_model(name: str):
    with pytest.raises(ValueError, match=r"model must be minilm.*it is empty; check the spelling of --model"):
        hub.load(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(ValueError, match=r"it is a file and no folder; name the folder that save_pretrained wrote"):
        hub.load(str(tmp_path / "model.safetensors"))


def test_other_kinds_are_refused():
    with pytest.raises(ValueError, match=r"some-model is a clip \(no architecture given\)"):
        hub._classify("clip", [], "some-model")
