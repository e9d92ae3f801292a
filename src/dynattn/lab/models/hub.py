"""Any other model: a local folder or a hub id, by Transformers' Auto classes."""

from __future__ import annotations

from pathlib import Path

from dynattn.lab.models import PACKAGED, Kind, Pretrained, parameters


def load(name: str) -> Pretrained:
    """Load ``name`` by the Auto class that fits its config; see :func:`dynattn.lab.models.load`."""
    import torch
    import transformers
    from transformers import AutoConfig

    if (name.count("/") > 1 or name.startswith((".", "/", "~"))) and not Path(name).is_dir():  # what no hub id can be
        raise ValueError(
            f"load: model must be {', '.join(PACKAGED)}, a folder or a hub id: there is no folder {name}; check the "
            "spelling of --model"
        )
    config = AutoConfig.from_pretrained(name)
    kind, auto, processor = _classify(config.model_type, config.architectures or [], name)
    try:
        model = getattr(transformers, auto).from_pretrained(name, dtype=torch.float32, attn_implementation="sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        raise ValueError(
            f"load: the model must take its attention from Transformers' interface: {name} is a {config.model_type}, "
            "whose attention is its own; call dynattn.attention in its attention module, or take another model"
        ) from error
    model.eval()
    description = f"{config.model_type} ({kind}), {parameters(model)}, from {name}"
    return Pretrained(name, model, getattr(transformers, processor).from_pretrained(name), kind, description)


def _classify(model_type: str, architectures: list[str], name: str) -> tuple[Kind, str, str]:
    """Kind, Auto class of the model and of its processor."""
    from transformers.models.auto import modeling_auto as auto

    if model_type in auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        return "speech", "AutoModelForSpeechSeq2Seq", "AutoProcessor"
    if any(architecture in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for architecture in architectures):
        return "decoder", "AutoModelForCausalLM", "AutoTokenizer"
    if model_type in auto.MODEL_FOR_IMAGE_MAPPING_NAMES:
        return "vision", "AutoModel", "AutoImageProcessor"
    if model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder", "AutoModel", "AutoTokenizer"
    raise ValueError(
        f"load: the model must be a text encoder, a decoder, a vision or a speech model: {name} is a {model_type} "
        f"({', '.join(architectures) or 'no architecture given'}); use dynattn.integrations.transformers directly"
    )
