"""Tiny models with a tokenizer that counts letters."""

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from dynattn.lab.models import Pretrained  # noqa: E402


class Words:
    """A tokenizer: a word's number is its length."""

    model_max_length = 64

    def __call__(self, text, truncation=False, max_length=None, **_):
        self.words = text.split()[:max_length] if truncation else text.split()
        ids = torch.tensor([[len(word) for word in self.words]], dtype=torch.long)
        return {"input_ids": ids if _.get("return_tensors") else ids[0].tolist()}

    def convert_ids_to_tokens(self, ids):
        return [f"▁{word}" for word in self.words[: len(ids)]]


def tiny(kind):
    torch.manual_seed(0)
    common = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "decoder":
        config = transformers.LlamaConfig(**common, intermediate_size=64, num_key_value_heads=2)
        model = transformers.LlamaForCausalLM(config)
    elif kind == "encoder":
        model = transformers.BertModel(transformers.BertConfig(**common, intermediate_size=64))
    else:
        model = transformers.Dinov2Model(
            transformers.Dinov2Config(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
            )
        )
    processor = Words()
    if kind == "vision":
        from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

        processor = BitImageProcessorPil(
            size={"height": 56, "width": 56}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
        )
    for module in model.modules():  # scores of some spread, so that there is something to choose
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= 8
    model.eval().set_attn_implementation("sdpa")
    return Pretrained(f"tiny {kind}", model, processor, kind, f"a tiny {kind}")
