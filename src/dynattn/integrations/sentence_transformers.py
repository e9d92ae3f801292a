"""sentence-transformers: a model attends by dynattn, and its texts run side by side without padding.

    from dynattn.integrations.sentence_transformers import unpad

    model = SentenceTransformer("all-MiniLM-L6-v2")
    unpad(model, "nm-1-2")
    model.encode(texts)

sentence-transformers lays texts one after another where an implementation of attention takes their lengths, which it
knows of FlashAttention on a GPU alone. dynattn's takes them on every device: the whole model then runs on tokens, none
of them padding, and each text's attention is computed by itself.
"""

from __future__ import annotations

from typing import Any

import torch

from dynattn.integrations.transformers import PREFIX, coverage, register
from dynattn.methods import Method

_LENGTHS = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"})
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_TRIED = ("one", "two words, and then some more of them, so that one text is longer than the other", "a third text")
"""Texts of different lengths, by which a model is tried."""


def unpad(model: Any, method: Method | str = "dense") -> None:
    """Give a model dynattn's attention and texts without padding. It is tried before it is left so.

    Undone by ``model[0].unpad_inputs = False`` and ``model[0].auto_model.set_attn_implementation("sdpa")``.

    Args:
        model: a ``sentence_transformers.SentenceTransformer``, or a model of the library that begins with its
            ``Transformer`` module too.
        method: what attention keeps, or its short name. With ``dense`` embeddings are those of before, up to rounding.

    Raises:
        ImportError: sentence-transformers is not installed, or is older than 6.
        TypeError: ``model`` is not one of sentence-transformers'.
        ValueError: attention modules of the model keep attention of their own, or its embeddings of texts without
            padding are others than with padding; the model is as before.
    """
    module = _first(model)
    (name, *_) = register(method)
    before = module.model.config._attn_implementation, module.unpad_inputs
    try:
        _set(module, f"{PREFIX}dense")
        _refuse_others(module.model)
        module.unpad_inputs = False
        padded = _embeddings(model)
        _flatten(module)
        _refuse_difference(type(module.model).__name__, padded, _embeddings(model))
        _set(module, name)
    except BaseException:
        module.model.set_attn_implementation(before[0])
        module.unpad_inputs = before[1]
        raise


def _first(model: Any) -> Any:
    """The module that runs the model of Transformers."""
    try:
        from sentence_transformers.base.modules.transformer import Transformer
    except ImportError as error:
        raise ImportError(
            "unpad: needs sentence-transformers 6 or newer: pip install 'sentence-transformers>=6'"
        ) from error
    module = next(iter(model), None) if isinstance(model, torch.nn.Sequential) else None
    if not isinstance(module, Transformer):
        raise TypeError(
            f"unpad: model must be a SentenceTransformer that begins with a Transformer module: got "
            f"{type(model).__name__}; for a model of Transformers itself, use its set_attn_implementation"
        )
    return module


def _set(module: Any, name: str) -> None:
    module.model.set_attn_implementation(name)


def _refuse_others(model: Any) -> None:
    found = coverage(model)
    others = (*found.elsewhere, *found.own, *found.unknown)
    if others or not found.taking_part:
        kinds = ", ".join(dict.fromkeys(part.kind for part in others)) or "none that asks for another's"
        raise ValueError(
            f"unpad: all attention of {type(model).__name__} must ask Transformers' attention interface, which is told "
            f"the texts' lengths: this model has attention of its own ({kinds}); use it with padding"
        )


def _flatten(module: Any) -> None:
    """What the ``unpad_inputs`` of sentence-transformers sets where FlashAttention is there."""
    from transformers import DataCollatorWithFlattening

    module.unpad_inputs = None
    module.data_collator = DataCollatorWithFlattening(
        return_position_ids=True, return_flash_attn_kwargs=True, return_seq_idx=True
    )
    if module.model_forward_params is not None:
        module.model_forward_params = module.model_forward_params | _LENGTHS
    module._flatten_position_offset = module._infer_flatten_position_offset()
    module.can_flatten_inputs = True


def _embeddings(model: Any) -> torch.Tensor:
    return model.encode(list(_TRIED), convert_to_tensor=True, show_progress_bar=False)


def _refuse_difference(name: str, padded: torch.Tensor, packed: torch.Tensor) -> None:
    error = (padded.double() - packed.double()).norm(dim=-1) / padded.double().norm(dim=-1)
    if not bool((error <= _ROUNDING[padded.dtype]).all()):
        raise ValueError(
            f"unpad: embeddings without padding must be those with it: {name} gives others, off by "
            f"{float(error.max()):.1e} of their length; what it computes beside attention looks across texts, or at "
            "padding; use it with padding"
        )
