"""Any other model: a local folder or a hub id, by Transformers' Auto classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dynattn.lab.models import PACKAGED, Facts, Kind, Pretrained, parameters
from dynattn.lab.models.checked import nearest, processor, refusals, refuse_own_code, weights
from dynattn.lab.models.trust import trusted
from dynattn.lab.spelling import spelt


def load(name: str, dtype: torch.dtype = torch.float32) -> Pretrained:
    """Load ``name`` by the Auto class that fits its config; see :func:`dynattn.lab.models.load`."""
    import transformers

    config = _config(name)
    kind, auto, made_by = _kind(config, name)
    try:
        model = weights(getattr(transformers, auto), name, name, dtype)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        raise ValueError(
            f"load: the model must take its attention from Transformers' interface: {name} is a {config.model_type}, "
            "whose attention is its own; call dynattn.attention in its attention module, or take another model"
        ) from error
    description = f"{config.model_type} ({kind}), {parameters(model)}, from {name}"
    made = processor(getattr(transformers, made_by), name, name, model)
    return Pretrained(name, model, made, kind, description)


def facts(name: str) -> Facts:
    """What the config of ``name`` tells; see :func:`dynattn.lab.models.facts`."""
    config = _config(name)
    inner = config.get_text_config()
    numbers = (getattr(inner, field, None) for field in ("num_hidden_layers", "num_attention_heads"))
    layers, heads = (number if isinstance(number, int) and number > 0 else None for number in numbers)
    return Facts(_kind(config, name)[0], layers, heads)


def _kind(config: Any, name: str) -> tuple[Kind, str, str]:
    """Kind, Auto class of the model and of its processor."""
    architectures = getattr(config, "architectures", None) or []
    if not isinstance(architectures, (list, tuple)) or not all(isinstance(each, str) for each in architectures):
        raise ValueError(
            f"load: architectures in config.json must be a list of names: {name} has {architectures!r}; take the "
            "config.json as save_pretrained wrote it"
        )
    return _of_own_code(config) or _classify(config.model_type, list(architectures), name)


def _config(name: str) -> Any:
    """The model's config, from a folder, from the hub's cache, or from the hub.

    Raises:
        ValueError: there is no such model, or its config is damaged.
    """
    from transformers import AutoConfig

    if not name.strip():
        raise ValueError(_unknown(name, "it is empty"))
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ValueError(
                f"load: a model's folder must hold config.json: {name} does not; name the folder that save_pretrained "
                "wrote"
            )
        refuse_own_code(name, name)
        with refusals(name, "config.json"):
            if not isinstance(json.loads((Path(name) / "config.json").read_bytes()), dict):
                raise ValueError("it holds no JSON object")
            return AutoConfig.from_pretrained(name, trust_remote_code=trusted())
    if Path(name).exists():
        raise ValueError(_unknown(name, "it is a file and no folder", "name the folder that save_pretrained wrote"))
    alike = nearest(name, PACKAGED)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or (alike and "/" not in name):
        raise ValueError(_unknown(name, "no folder of this name is here"))  # what no hub id can be, or is a slip
    config = _of_hub(name)
    refuse_own_code(name, name)
    return config


def _of_hub(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=trusted())
    except Exception:  # not in the hub's cache: the hub is asked, and its answer told
        pass
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trusted())
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            with refusals(name, "config.json"):
                raise
        reached = "connect" not in str(error).lower()
        why = "the hub has none that can be read" if reached else "the hub could not be reached"
        raise ValueError(_unknown(name, f"no folder of this name is here, and {why}")) from error


def _unknown(name: str, why: str, remedy: str | None = None) -> str:
    alike = nearest(name, PACKAGED)
    hint = f"did you mean {' or '.join(alike)}?" if alike else remedy or f"check the spelling of {spelt('--model')}"
    return f"load: model must be {', '.join(PACKAGED)}, a folder or a hub id: got {name!r}: {why}; {hint}"


def _of_own_code(config: Any) -> tuple[Kind, str, str] | None:
    """As :func:`_classify`, by what the model's own code offers, where it may be run."""
    offered = (getattr(config, "auto_map", None) or {}) if trusted() else {}
    if "AutoModelForCausalLM" in offered:
        return "decoder", "AutoModelForCausalLM", "AutoTokenizer"
    return ("encoder", "AutoModel", "AutoTokenizer") if "AutoModel" in offered else None


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
