"""Tiny random models of any architecture of Transformers, and inputs for them, by the names of what they take."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tiny_configs import RECIPES, SPECIAL, tiny_config
from torch import Tensor

LENGTH, BATCH, TARGET = 10, 3, 6
MOST_PARAMETERS = 30_000_000
FORMS = 5
"""Shapes in which sounds and images are tried."""

WHOLE = {
    "musicgen": "MusicgenForConditionalGeneration", "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
}  # fmt: skip
"""Classes for types whose ``AutoModel`` is a decoder alone, which does not take the type's config."""

_TEXT = {"input_ids", "attention_mask", "bbox", "decoder_input_ids", "token_type_ids"}


def found(kind: str) -> tuple[Any, list[dict[str, Any]]]:
    """A tiny model of a type, and the inputs that it takes: without padding, then, where it has a mask, with it.

    Args:
        kind: a ``model_type`` of Transformers.

    Raises:
        Exception: what the first attempt raised, where none succeeds.
    """
    from transformers import CONFIG_MAPPING

    failed: Exception | None = None
    for recipe in RECIPES:
        try:
            model = tiny_model(auto_of(kind), tiny_config(CONFIG_MAPPING[kind], recipe))
            return model, tiny_cases(model)
        except (ImportError, TimeoutError):
            raise
        except Exception as error:  # whatever anybody's model raises
            failed = failed or error
    assert failed is not None
    raise failed


def auto_of(kind: str) -> Any:
    """The class that makes a model of a type: ``AutoModel``, or the one that takes the config of the whole."""
    import transformers

    return getattr(transformers, WHOLE.get(kind, "AutoModel"))


def tiny_model(auto: Any, config: Any, seed: int = 0) -> Any:
    """A model with random float32 weights, large enough that its attention is far from uniform.

    Args:
        auto: an Auto class, or a model's, with ``_from_config`` by that name.
        config: of the model.
        seed: of its weights.

    Raises:
        ValueError: it has more than 30 million parameters in spite of all.
        Exception: whatever building it raises.
    """
    make = getattr(auto, "from_config", None) or auto._from_config
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in make(config).parameters())
    except (RuntimeError, TypeError, NotImplementedError):  # some can't be built there, and may be small
        size = 0
    if size > MOST_PARAMETERS:
        raise ValueError(f"tiny_model: {size} parameters are too many; no field that was shrunk makes it smaller")
    return with_weights(make(config, attn_implementation="eager", experts_implementation="eager"), seed)


def with_weights(model: Any, seed: int = 0) -> Any:
    """The model, for evaluation, with weights as :func:`tiny_model` has them."""
    torch.manual_seed(seed)
    for parameter in model.float().eval().parameters():
        if parameter.dim() >= 2 and parameter.numel():
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return model


def tiny_cases(model: Any) -> list[dict[str, Any]]:
    """Inputs that a model takes, without padding and, where it has a mask, with it.

    Raises:
        Exception: what the model raises of inputs without padding, where it takes none.
    """
    cases = []
    for padded in (False, True):
        failed: Exception | None = None
        for inputs in tiny_inputs(model, padded):
            if padded and "attention_mask" not in inputs:
                continue
            try:
                with torch.no_grad():
                    outputs = dict(flat(model(**inputs)))
                if any(bool(value.isfinite().all()) for value in outputs.values()):
                    cases.append(inputs)
                    break
                failed = failed or ValueError("no output is finite")
            except TimeoutError:
                raise
            except Exception as error:  # whatever anybody's model raises
                failed = failed or error
        else:
            if not padded:
                raise failed or ValueError("no inputs are known for it")
    return cases


def tiny_inputs(model: Any, padded: bool) -> Iterator[dict[str, Any]]:
    """Candidates for keyword arguments of a model's forward, the richest first.

    Args:
        model: whose ``forward`` names what it takes.
        padded: whether the second sample is padded on the left and the third on the right.
    """
    takes = inspect.signature(model.forward).parameters
    needs = {name for name, one in takes.items() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD}
    main = getattr(model, "main_input_name", "input_ids")
    main = main if isinstance(main, str) else main[0]
    seen: list[tuple[set[str], int]] = []
    for form in range(FORMS):
        made = {name: value for name, value in _everything(model.config, padded, form).items() if name in takes}
        if form and not set(made) & _SHAPED:
            return
        lacking = needs - set(made)
        if lacking:
            raise ValueError(f"no values are known for {', '.join(sorted(lacking))}")
        for names in (
            set(made) - _RARE, _TEXT | {"pixel_values"}, _TEXT, {"pixel_values"}, {"pixel_values", "decoder_input_ids"},
            {main, "attention_mask"}, {main}, {main, "decoder_input_ids"}, {main, "decoder_input_values"}, set(made),
        ):  # fmt: skip
            chosen = (names & set(made)) | needs
            if chosen and (chosen, form if chosen & _SHAPED else 0) not in seen:
                seen.append((chosen, form if chosen & _SHAPED else 0))
                yield {name: made[name] for name in made if name in chosen}


_SHAPED = {"pixel_values", "input_values", "input_features", "pixel_values_videos", "hidden_states", "past_values"}
_RARE = {"pixel_values_videos", "inputs_embeds", "hidden_states", "image_grid_thw", "encoder_hidden_states"}


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


def _number(config: Any, default: int, *names: str) -> int:
    value = _find(config, *names)
    value = value[0] if isinstance(value, list | tuple) and value else value
    return value if isinstance(value, int) and value > 0 else default


def _everything(config: Any, padded: bool, form: int) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    def words(length: int = LENGTH) -> Tensor:
        most = min(_number(config, 99, "vocab_size") - 9, SPECIAL)
        return torch.randint(3, max(most, 4), (BATCH, length), generator=random)

    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    if padded:
        mask[1, :3], mask[2, -2:] = 0, 0
    pad = _find(config, "pad_token_id")
    pad = pad if isinstance(pad, int) and 0 <= pad < SPECIAL else 0
    place = torch.randint(0, 50, (BATCH, LENGTH, 2), generator=random)
    corners = torch.cat([place, place + torch.randint(1, 40, (BATCH, LENGTH, 2), generator=random)], -1)
    width = _number(config, 32, "hidden_size", "d_model", "dim", "embed_dim")
    return {
        "input_ids": words().masked_fill(mask == 0, pad), "attention_mask": mask, "bbox": corners,
        "decoder_input_ids": words(TARGET), "inputs_embeds": noise(BATCH, LENGTH, width),
        "encoder_hidden_states": noise(BATCH, TARGET, width), "query_embeds": noise(BATCH, 8, width),
        "inputs": noise(BATCH, LENGTH, width), "qformer_input_ids": words(TARGET),
        "task_inputs": words(_number(config, TARGET, "task_seq_len")), "classes_input_ids": words(),
        "classes_attention_mask": torch.ones_like(mask), "tasks_input_ids": words(),
        "tasks_attention_mask": torch.ones_like(mask), "classes_structure": torch.ones(BATCH).long(),
        "decoder_input_values": noise(BATCH, TARGET, width),
        "image_embeds_position_mask": (torch.arange(LENGTH) < 4).expand(BATCH, LENGTH),
        "visual_feats": noise(BATCH, TARGET, _number(config, 32, "visual_feat_dim")),
        "visual_pos": noise(BATCH, TARGET, 4),
        **_of_images(config, noise, form), **_of_sounds(config, noise, form), **_of_series(config, noise, form),
        **_of_actions(config, noise),
    }  # fmt: skip


def _of_images(config: Any, noise: Any, form: int) -> dict[str, Any]:
    """Pictures, then films, then patches: with the number of patches on each side, as one axis, as three."""
    size = _find(config, "image_size", "img_size", "pretrain_image_size") or 32
    size = list(size.values()) if isinstance(size, Mapping) else size
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    channels = _number(config, 3, "num_channels", "in_channels", "in_chans")
    frames, patch = _number(config, 4, "num_frames"), _number(config, 16, "patch_size")
    deep = _number(config, 1, "temporal_patch_size", "patch_temporal")
    film = noise(BATCH, frames, channels, height, width)
    grid = torch.tensor([[1, 4, 4]] * BATCH)
    patches = [
        noise(16 * BATCH, channels * deep * patch**2), noise(16 * BATCH, channels * patch**2),
        noise(16 * BATCH, channels, patch, patch), noise(BATCH, 16, channels * patch**2),
    ]  # fmt: skip
    pictures = [noise(BATCH, channels, height, width), film, patches[3], film.transpose(1, 2)]
    found = {
        "pixel_values": pictures[form % 4], "pixel_values_videos": film, "hidden_states": patches[form % 4],
        "spatial_shapes": torch.tensor([[4, 4]] * BATCH), "pixel_attention_mask": torch.ones(BATCH, 16).long(),
        "prompt_pixel_values": pictures[0], "prompt_masks": pictures[0],
        "target_sizes": torch.tensor([[height // patch, width // patch]] * BATCH),
    }  # fmt: skip
    kind = getattr(config, "model_type", "")
    if kind.endswith("_vision") and hasattr(config, "patch_size"):  # those whose forward may take a grid
        found |= {"grid_thw": grid, "image_grid_thw": grid, "merge_sizes": torch.ones(BATCH).long()}
        found["pixel_values"] = patches[form] if form < 3 else pictures[0]
    return found


def _of_sounds(config: Any, noise: Any, form: int) -> dict[str, Any]:
    """Spectra with the time last, in the middle, with one channel; waves, with one channel, spectra, and states."""
    bins = _number(config, 80, "num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels", "input_dim")
    frames = min(2 * _number(config, 30, "max_source_positions"), 3000)
    width = _number(config, 32, "hidden_size", "d_model")
    spectra = [
        noise(BATCH, bins, frames), noise(BATCH, 128, bins), noise(BATCH, 1, _number(config, 128, "spec_size"), bins),
        noise(BATCH, 64, width),
    ]  # fmt: skip
    long = _number(config, 128, "max_length")
    waves = [noise(BATCH, 2400), noise(BATCH, 1, 2400), noise(BATCH, long, bins), noise(BATCH, LENGTH, width)]
    spectra, waves = [*spectra, spectra[3]], [*waves, waves[1]]
    length = spectra[form].shape[-1 if form == 0 else 1]
    return {
        "input_features": spectra[form], "input_values": waves[form], "audio_mel": spectra[1],
        "input_features_mask": torch.ones(BATCH, length).long(), "audio_mel_mask": torch.zeros(BATCH, 128).bool(),
    }  # fmt: skip


def _of_series(config: Any, noise: Any, form: int) -> dict[str, Any]:
    past = _number(config, 8, "context_length") + max(_find(config, "lags_sequence") or [0])
    ahead = _number(config, 4, "prediction_length")
    features = _number(config, 1, "num_time_features")
    many = _number(config, 1, "num_input_channels")
    shapes = [(BATCH, past), (BATCH, past, many), (BATCH, 128), (BATCH, past, many)]
    return {
        "past_values": noise(*shapes[form % 4]), "past_time_features": noise(BATCH, past, features),
        "past_observed_mask": torch.ones(BATCH, past), "future_values": noise(BATCH, ahead),
        "future_time_features": noise(BATCH, ahead, features),
    }  # fmt: skip


def _of_actions(config: Any, noise: Any) -> dict[str, Any]:
    return {
        "states": noise(BATCH, LENGTH, _number(config, 17, "state_dim")),
        "actions": noise(BATCH, LENGTH, _number(config, 4, "act_dim")), "rewards": noise(BATCH, LENGTH, 1),
        "returns_to_go": noise(BATCH, LENGTH, 1), "timesteps": torch.arange(LENGTH).expand(BATCH, LENGTH),
        "action_embeds": noise(BATCH, TARGET, _number(config, 32, "hidden_size")),
    }  # fmt: skip
