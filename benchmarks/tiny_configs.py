"""Small configs of any architecture of Transformers, by the names of their fields.

No list of architectures, but for :data:`HOOKS`: a config is shrunk field by field, and what its fields have to do with
one another is kept. What cannot be made this way raises, and is recorded as such by whoever asks.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

SPECIAL, WORDS = 90, 128  # tokens of a special meaning stand from the one to below the other, where texts have none
WINDOW = 4  # shorter than texts are, so that windows and chunks forbid something

# Numbers larger than these become these; the first pattern that a field's name matches counts. The word before each
# is the group by which recipes leave patterns out.
_NUMBERS = (
    ("never", r"(linear|mamba|ssm|conv_state)_.*|.*(kernel|stride|padding|dilation).*", 0),
    ("window", r"(.*_)?(sliding_window|attention_chunk_size|attention_window_size|local_attention)$", WINDOW),
    ("words", r".*(vocab_size|vocabulary_size)(_.*)?$|n_vocab|codebook_size", WORDS),
    ("length", r".*(max_position_embeddings|n_positions|max_target_positions|max_2d_position_embeddings|n_ctx|"
     r"max_sequence_length|max_seq_len(gth)?|max_length)$", 128),
    ("image", r".*image_size$|img_size|.*resolution$", 32),
    ("heads", r".*(num|n)_(key_value_heads|kv_heads|head_kv)$|.*num_kv_heads$", 2),
    ("experts", r".*(num|n)_(experts|routed_experts|local_experts)$|.*moe_num_experts$", 4),
    ("experts", r".*(num_experts_per_tok|moe_topk|top_?k_experts|moe_k|n_shared_experts)$", 2),
    ("experts", r"n_group|topk_group", 1),
    ("heads", r".*((num_)?(attention_)?heads?|n_heads?)$", 4),
    ("head", r".*(qk_nope_head_dim|qk_rope_head_dim|v_head_dim|head_dim|d_kv|head_size|rotary_dim)$", 8),
    ("layers", r".*(num_hidden_layers|_layers|n_layers?|num_layers|depth|num_blocks|n_layer)$", 2),
    ("width", r".*lora_rank$", 16),
    ("width", r".*(intermediate_size|ffn_dim|d_ff|n_inner|mlp_dim|inner_dim|feedforward_dim|dim_feedforward)(_.*)?$",
     48),
    ("width", r".*(hidden_size|hidden_dim|d_model|n_embd|embed_dim|emb_dim|embedding_size|embedding_dim|"
     r"projection_dim|hidden_channels|^dim|_dim|width|out_channels|output_channels)$", 32),
    ("width", r".*num_pos_feats$", 16),
    ("width", r".*num_queries$|.*num_query_tokens$|num_latents", 8),
)  # fmt: skip
_LISTS = (
    ("layers", r".*depths$", 1),
    ("heads", r".*(num_heads|num_attention_heads|heads)$", 2),
    ("width", r".*(hidden_sizes|embed_dims|encoder_hidden_sizes|channels|dims|neck_hidden_sizes)$", 32),
    ("image", r"image_size|img_size|input_size", 32),
)
_BY_LAYER = re.compile(r".*layer_types|indexer_types|stage_names|.*_types$")
_OF_LAYERS = re.compile(r".*(feature_layers?|layer_ind(ex|ices|exes)|layers_ind(ex|ices)|layer_ids)$")
_NOT_FIELDS = {"model_type", "transformers_version", "architectures", "dtype", "attn_implementation"}
_KEYS = re.compile(r".*(num|n)_(key_value_heads|kv_heads|head_kv)$|.*num_kv_heads$")
_HEADS = ("num_attention_heads", "attention_heads", "n_heads", "num_heads", "n_head")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth")

ALL = frozenset(("window", "words", "length", "image", "heads", "experts", "head", "layers", "width"))
RECIPES: tuple[frozenset[str], ...] = (
    ALL,
    frozenset(("words", "length", "layers", "experts", "scale")),
    ALL - {"head"},
    ALL - {"image"},
    frozenset(("words", "image", "experts", "layers")),
    frozenset(("experts", "layers")),
    frozenset(),
)
"""Groups of fields to shrink, to be tried one after the other; with ``scale`` all larger numbers become an eighth."""

_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2, 3], "num_time_features": 1}
HOOKS: dict[str, dict[str, Any]] = {
    "autoformer": _SERIES, "informer": _SERIES, "time_series_transformer": _SERIES,
    "clap_audio_model": {"hidden_size": 256, "patch_embeds_hidden_size": 32},
    "align_vision_model": {"depth_coefficient": 0.3}, "blt": {"encoder_hash_byte_group_vocab": 512},
    "deepseek_v2": {"num_experts_per_tok": 2}, "cohere_compass_text": {"rope_parameters": None},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "mimi_decoder": {"upsample_groups": 32}, "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 32},
    "bamba": {"attn_layer_indices": [1]}, "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3}, "ministral": {"head_dim": 8}, "nemotron": {"num_key_value_heads": 4},
    "lfm2_moe": {"num_hidden_layers": 2, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "moonshine_streaming": {"num_key_value_heads": 4}, "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1}, "kosmos-2": {"latent_query_num": 4},
    "lightglue": {"num_frames": 2}, "lw_detr": {"projector_scale_factors": [1.0], "num_queries": 2},
    "lw_detr_vit": {"num_windows": 4, "num_hidden_layers": 10},
    "rf_detr_dinov2": {"num_hidden_layers": 12, "patch_size": 4}, "superpoint": {"keypoint_decoder_dim": 65},
    "muse_spark_audio": {"num_hidden_layers": 4, "patch_sizes": [5, 5, 4, 4]},
    "timm_wrapper": {"architecture": "vit_tiny_patch16_224",
                     "model_args": {"img_size": 32, "depth": 2, "embed_dim": 48}},
    **{f"pp_ocr{kind}_rec": {"image_size": [96, 320]} for kind in ("v5_mobile", "v5_server", "v6_small", "v6_tiny")},
    "chameleon": {"vocabulary_map": {"<image>": 90}}, "emu3": {"vocabulary_map": {"<image>": 90, "<|extra_200|>": 91}},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "reformer": {"axial_pos_shape": [4, 4], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "lsh"],
                 "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2, "hidden_size": 32,
                 "max_position_embeddings": 16, "num_attention_heads": 4, "attention_head_size": 8},
}  # fmt: skip
"""Fields that no rule finds, by model type."""


def tiny_config(kind: type, recipe: frozenset[str] = ALL, example: Any = None) -> Any:
    """A config of a class, as small as its fields' names allow.

    Args:
        kind: the config's class.
        recipe: groups of fields to shrink.
        example: one of its configs, whose fields say what there is to shrink; None for the default one.

    Raises:
        Exception: whatever the class says of a config that it does not take.
    """
    more = HOOKS.get(getattr(kind, "model_type", ""), {})
    return _tiny(kind, recipe, kind(**more) if example is None else example, {})


def _tiny(kind: type, recipe: frozenset[str], example: Any, special: dict[int, int]) -> Any:
    subs = set(getattr(kind, "sub_configs", {}))
    values = {name: value for name, value in example.to_dict().items() if name not in subs}
    fields = _set_by_others(kind, values)
    for name, value in values.items():
        if not _BY_LAYER.fullmatch(name):
            smaller = _smaller(name, value, recipe, special)
            if smaller is not None:
                fields[name] = smaller
    in_parts = "mrope_section" in getattr(kind, "ignore_keys_at_rope_validation", ())
    _keep_relations(fields, values, recipe, in_parts)
    if getattr(example, "stage_names", None) and getattr(example, "out_features", None):
        fields["out_features"] = example.out_features
    for name in subs:
        inner = getattr(example, name, None)
        if type(inner).__name__ == "TimmBackboneConfig":
            fields |= {name: _backbone(inner), "use_timm_backbone": False}
        elif inner is not None:
            fields[name] = _tiny(type(inner), recipe, inner, special)
    parameters = inspect.signature(kind.__init__).parameters
    more = HOOKS.get(getattr(kind, "model_type", ""), {})
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        fields = {name: value for name, value in fields.items() if name in parameters or name == "out_features"}
    return _built(kind, {**fields, **more})


def _set_by_others(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """What a config around this one has set: other than the default of its class."""
    try:
        default = kind().to_dict()
    except Exception:  # some can't be made without arguments
        return {}
    return {
        name: value
        for name, value in values.items()
        if not _BY_LAYER.fullmatch(name) and name not in _NOT_FIELDS and value != default.get(name, value)
    }


def _keep_relations(fields: dict[str, Any], values: dict[str, Any], recipe: frozenset[str], in_parts: bool) -> None:
    """What fields have to do with one another: as many heads for keys as for queries, a type for each layer, windows
    that are used, parts of the rotary positions that add up."""
    for name in [name for name in fields if _KEYS.fullmatch(name)]:
        for heads in _HEADS:
            if values.get(heads) == values[name] and heads in fields:
                fields[name] = fields[heads]
    types = values.get("layer_types")
    if "layers" in recipe and isinstance(types, list) and len(set(types)) > 1:
        kept = list(dict.fromkeys(types))
        for name in _LAYERS:
            if values.get(name) == len(types):
                fields |= {name: len(kept), "layer_types": kept}
    if "window" in recipe and "use_sliding_window" in values:
        fields |= {"use_sliding_window": True, "sliding_window": WINDOW}
        fields |= {"max_window_layers": 1} if "max_window_layers" in values else {}
    head = fields.get("head_dim") or fields.get("hidden_size", 32) // (fields.get("num_attention_heads") or 4)
    for name in ("rope_parameters", "rope_scaling"):
        rope = values.get(name)
        if isinstance(rope, dict) and (in_parts or "mrope_section" in rope) and "head" in recipe:
            by_type = bool(rope) and all(isinstance(one, dict) for one in rope.values())
            fields[name] = {t: _in_parts(one, head) for t, one in rope.items()} if by_type else _in_parts(rope, head)
    if "mamba_n_heads" in values and "width" in recipe:
        fields |= {"mamba_n_heads": 4, "mamba_d_head": fields.get("hidden_size", 32) * values["mamba_expand"] // 4}


def _in_parts(rope: dict[str, Any], head: int) -> dict[str, Any]:
    part = int(head * (rope.get("partial_rotary_factor") or 1)) // 2
    sections = [max(part - 2 * (part // 3), 0), part // 3, part // 3]
    return {"rope_type": "default", "rope_theta": 10000.0, **rope, "mrope_section": sections}


def _backbone(timm: Any) -> Any:
    """A backbone of Transformers in place of one that needs another package."""
    from transformers import ResNetConfig

    stages = len(getattr(timm, "out_indices", None) or [4])
    return ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16, 16, 32], depths=[1, 1, 1, 1],
        out_features=[f"stage{i}" for i in range(5 - min(stages, 4), 5)],  # pyright: ignore[reportCallIssue]
    )  # fmt: skip


def _built(kind: type, fields: dict[str, Any]) -> Any:
    """The config; fields that the class refuses for their names, and stages that it has not, are left out."""
    for _ in range(8):
        try:
            return kind(**fields)
        except TypeError as error:
            named = [name for name in fields if f"'{name}'" in str(error)]
            if not named:
                raise
            for name in named:
                del fields[name]
        except ValueError as error:  # fewer layers have fewer stages
            if "out_features" not in fields or "out_features" not in str(error):
                raise
            del fields["out_features"]
    return kind(**fields)


def _smaller(name: str, value: Any, recipe: frozenset[str], special: dict[int, int]) -> Any:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        if name.endswith(("_token_id", "_token_index")):
            return special.setdefault(value, SPECIAL + len(special)) if value > SPECIAL and "words" in recipe else None
        for group, pattern, most in _NUMBERS:
            if re.fullmatch(pattern, name) and not ("scale" in recipe and group in ("never", "width", "head")):
                return most if group in recipe and value > most else None
        return _scaled(name, value) if "scale" in recipe else None
    if isinstance(value, list | tuple) and value and all(isinstance(one, int) for one in value):
        if _OF_LAYERS.fullmatch(name) and "layers" in recipe:
            return type(value)(max(0, 1 - i) for i in range(min(len(value), 2)))
        for group, pattern, most in _LISTS:
            if re.fullmatch(pattern, name) and group in recipe:
                return type(value)(min(one, most) for one in value)
        if "scale" in recipe and not isinstance(value[0], bool):
            return type(value)(_scaled(name, one) or one for one in value)
    return None


def _scaled(name: str, value: int) -> int | None:
    apart = re.search(
        r"image|img|size_|position|length|patch|stride|kernel|token|rate|bins|len|frame|num_|window", name
    )
    return value // 8 if value >= 64 and not apart else None
