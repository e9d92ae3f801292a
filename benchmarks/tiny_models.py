"""Tiny random models of any architecture of Transformers, and inputs for them, by the names of configs' fields.

No list of architectures: a config is shrunk field by field, and the inputs follow the names of the forward's
parameters. What cannot be made this way raises, and is recorded as such by whoever asks.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

LENGTH, BATCH, TARGET = 10, 3, 6
MOST_PARAMETERS = 15_000_000

# Numbers larger than these become these; the first pattern that a field's name matches counts. The word before each
# is the group by which recipes leave patterns out.
_NUMBERS = (
    ("never", r"(linear|mamba|ssm|conv_state)_.*|.*(kernel|stride|padding|dilation).*", 0),
    ("words", r".*(vocab_size|vocabulary_size)(_.*)?$|n_vocab|codebook_size", 128),
    ("length", r".*(max_position_embeddings|n_positions|max_target_positions|max_2d_position_embeddings|n_ctx|"
     r"max_sequence_length|max_seq_len(gth)?)$", 128),
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
     r"projection_dim|hidden_channels|^dim|_dim|width|out_channels)$", 32),
    ("width", r".*num_queries$|.*num_query_tokens$|num_latents", 8),
)  # fmt: skip
RECIPES: tuple[frozenset[str], ...] = (
    frozenset(("words", "length", "image", "heads", "experts", "head", "layers", "width")),
    frozenset(("words", "length", "image", "heads", "experts", "layers", "width")),
    frozenset(("words", "image", "experts", "layers")),
    frozenset(("words", "length", "heads", "experts", "head", "layers", "width")),
    frozenset(("experts", "layers")),
    frozenset(),
)
"""Groups of fields to shrink, to be tried one after the other."""
_LISTS = (
    ("layers", r".*depths$", 1),
    ("heads", r".*(num_heads|num_attention_heads|heads)$", 2),
    ("width", r".*(hidden_sizes|embed_dims|encoder_hidden_sizes|channels|dims|neck_hidden_sizes)$", 32),
    ("image", r"image_size|img_size|input_size", 32),
)
_AGAIN = re.compile(r"layer_types|.*_layer_types|mlp_layer_types|indexer_types|stage_names|.*_types$")


def tiny_config(kind: type, recipe: frozenset[str] = RECIPES[0], example: Any = None, **more: Any) -> Any:
    """A config of a class, as small as its fields' names allow.

    Args:
        kind: the config's class.
        recipe: groups of fields to shrink.
        example: one of its configs, whose fields say what there is to shrink; None for the default one.
        more: fields to set in any case.

    Raises:
        Exception: whatever the class says of a config that it does not take.
    """
    example = kind() if example is None else example
    fields: dict[str, Any] = {}
    subs = set(getattr(kind, "sub_configs", {}))
    for name, value in example.to_dict().items():
        if name in subs or _AGAIN.fullmatch(name):
            continue
        smaller = _smaller(name, value, recipe)
        if smaller is not None:
            fields[name] = smaller
    for name in subs:
        inner = getattr(example, name, None)
        if inner is not None:
            fields[name] = tiny_config(type(inner), recipe, inner)
    parameters = inspect.signature(kind.__init__).parameters
    fields = {**fields, **more}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        fields = {name: value for name, value in fields.items() if name in parameters}
    return _built(kind, fields)


def tiny_model(auto: Any, config: Any, seed: int = 0) -> Any:
    """A model with random float64 weights, large enough that its attention is far from uniform.

    Raises:
        ValueError: it has more than 15 million parameters in spite of all.
        Exception: whatever building it raises.
    """
    size = 0
    with (
        contextlib.suppress(RuntimeError, TypeError, NotImplementedError),
        torch.device("meta"),
    ):  # some can't be built there, and may be small
        size = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"tiny_model: {size} parameters are too many; no field that was shrunk makes it smaller")
    torch.manual_seed(seed)
    model = auto.from_config(config, attn_implementation="eager", experts_implementation="eager").double().eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return model


def tiny_inputs(model: Any, padded: bool) -> Iterator[dict[str, Any]]:
    """Candidates for keyword arguments of a model's forward, the richest first.

    Args:
        model: whose ``forward`` names what it takes.
        padded: whether the second sample is padded on the left and the third on the right.
    """
    takes = inspect.signature(model.forward).parameters
    made = {name: value for name, value in _everything(model.config, padded).items() if name in takes}
    text = {"input_ids", "attention_mask", "bbox", "decoder_input_ids", "token_type_ids"}
    seen: list[set[str]] = []
    main = getattr(model, "main_input_name", "input_ids")
    for names in (
        set(made), set(made) - {"pixel_values_videos", "audio_values"}, text | {"pixel_values"}, text,
        {"pixel_values"}, {"pixel_values", "decoder_input_ids"}, {main, "attention_mask"}, {main},
        {main, "decoder_input_ids"},
    ):  # fmt: skip
        chosen = names & set(made)
        if chosen and chosen not in seen:
            seen.append(chosen)
            yield {name: made[name] for name in made if name in chosen}


def _built(kind: type, fields: dict[str, Any]) -> Any:
    """The config; fields that the class refuses for their names are left out, one by one."""
    for _ in range(8):
        try:
            return kind(**fields)
        except TypeError as error:
            named = [name for name in fields if f"'{name}'" in str(error)]
            if not named:
                raise
            for name in named:
                del fields[name]
    return kind(**fields)


def _smaller(name: str, value: Any, recipe: frozenset[str]) -> Any:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        if name.endswith(("_token_id", "_token_index")):
            return 90 if value > 90 and "words" in recipe else None
        for group, pattern, most in _NUMBERS:
            if re.fullmatch(pattern, name):
                return most if group in recipe and value > most else None
    if isinstance(value, list | tuple) and value and all(isinstance(one, int) for one in value):
        for group, pattern, most in _LISTS:
            if re.fullmatch(pattern, name) and group in recipe:
                return type(value)(min(one, most) for one in value)
    return None


def _find(config: Any, *names: str) -> Any:
    """The first of these fields that the config or one inside it has."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    for inner in getattr(config, "sub_configs", {}):
        value = _find(getattr(config, inner, None), *names)
        if value is not None:
            return value
    return None


def _everything(config: Any, padded: bool) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    words = min(int(_find(config, "vocab_size") or 99), 99)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    if padded:
        mask[1, :3], mask[2, -2:] = 0, 0
    pad = _find(config, "pad_token_id")
    pad = pad if isinstance(pad, int) and 0 <= pad < words else 0
    ids = torch.randint(3, words - 9, (BATCH, LENGTH), generator=random)
    size = _find(config, "image_size", "img_size", "pretrain_image_size") or 32
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    channels = _find(config, "num_channels", "in_channels", "in_chans") or 3
    bins = _find(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels", "input_dim") or 80
    frames = 2 * int(_find(config, "max_source_positions") or 30)
    place = torch.randint(0, 50, (BATCH, LENGTH, 2), generator=random)
    corners = torch.cat([place, place + torch.randint(1, 40, (BATCH, LENGTH, 2), generator=random)], -1)
    return {
        "input_ids": ids.masked_fill(mask == 0, pad),
        "attention_mask": mask,
        "bbox": corners,
        "decoder_input_ids": torch.randint(3, words - 9, (BATCH, TARGET), generator=random),
        "pixel_values": noise(BATCH, channels if isinstance(channels, int) else 3, height, width),
        "input_features": noise(BATCH, bins if isinstance(bins, int) else 80, min(frames, 3000)),
        "input_values": noise(BATCH, 2400),
        "pixel_values_videos": noise(BATCH, _find(config, "num_frames") or 4, 3, height, width),
    }


def flat(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors of a model's output, with their names; caches are left out."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield name, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            if "past" not in key and "cache" not in key:
                yield from flat(value, f"{name}.{key}" if name else key)
    elif isinstance(output, list | tuple):
        for index, value in enumerate(output):
            yield from flat(value, f"{name}[{index}]")
