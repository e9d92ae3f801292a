"""Models and tokenizers that are whole: what Transformers makes up where something is missing still gives figures,
plausible and wrong, so whatever was not read from the files is refused.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch

from dynattn.lab.models.trust import trusted

_SHOWN = 3  # names of weights in a message

# Not used by any task: all of them look at the last hidden states, or at the head that the Auto class has.
_SPARE = re.compile(r"(^|\.)(pooler|visual_projection|text_projection)\.")
_HEADS = re.compile(
    r"^(cls|lm_head|classifier|qa_outputs|score|head|heads|pre_classifier|mlm_head|nsp_head|sop_classifier|predictions"
    r"|vocab_(transform|layer_norm|projector)|discriminator_predictions|generator_predictions|generator_lm_head"
    r"|pooler|projector|dense|out_proj|logit_(scale|bias)|seq_relationship|decoder|decoder_\w+|proj_out|mtp)(\.|$)"
)
_WORDS = re.compile(r"token|vocab|merges|spiece|sentencepiece|bpe|\.(model|tiktoken)$", re.IGNORECASE)
"""Names of files that a tokenizer may be read from."""
_BUFFERS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|mask_token|num_batches_tracked)$"
)


def weights(auto: Any, source: str | Path, name: str, dtype: torch.dtype) -> Any:
    """A model in eval mode with PyTorch's dense attention, every weight of it read from the files.

    Args:
        auto: a class of Transformers with ``from_pretrained``.
        source: a folder or a hub id.
        name: what the user called it, for errors.
        dtype: the dtype of the weights.

    Raises:
        ValueError: weights are missing, left over, of another shape or not readable, or the files bring code along.
    """
    with refusals(name, "weights"):
        model, found = auto.from_pretrained(
            source, dtype=dtype, attn_implementation="sdpa", trust_remote_code=trusted(),
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    missing = [key for key in found["missing_keys"] if not _SPARE.search(key)]
    unexpected = [key for key in found["unexpected_keys"] if not _is_spare(key, model)]
    shapes = [f"{key} {tuple(there)} for {tuple(wanted)}" for key, there, wanted in found["mismatched_keys"]]
    for what, keys in (
        ("miss", missing),
        ("hold, for no place in the model,", unexpected),
        ("have wrong shapes:", shapes),
    ):
        if keys:
            raise ValueError(
                f"load: the weights must fill {type(model).__name__} exactly: those of {name} {what} {_listed(keys)}; "
                "Transformers would go on with random values there: take the folder as save_pretrained wrote it, with "
                "the config.json of these weights"
            )
    lost = [key for key, value in model.named_parameters() if not value.isfinite().all()]
    if lost:
        raise ValueError(
            f"load: weights must be finite: those of {name} hold NaN or infinity in {_listed(lost)}; the files are "
            "damaged, or the training diverged, or --dtype holds no numbers so large: take others"
        )
    return model.eval()


def processor(auto: Any, source: str | Path, name: str, model: Any) -> Any:
    """A tokenizer, an image processor or both in one, read from the files.

    Args:
        auto: a class of Transformers with ``from_pretrained``.
        source: a folder or a hub id.
        name: what the user called it, for errors.
        model: that it is for.

    Raises:
        ValueError: the files are missing or damaged, bring code along, hold no words, or more than the model has
            embeddings for.
    """
    if Path(source).is_dir() and _reads_text(model) and not any(map(_WORDS.search, os.listdir(source))):
        raise ValueError(_no_tokenizer(name, "it would have to be made up"))
    with refusals(name, "tokenizer or processor"):
        found = auto.from_pretrained(source, trust_remote_code=trusted())
    tokenizer = getattr(found, "tokenizer", found)
    if not hasattr(tokenizer, "get_vocab"):
        return found
    ids = tokenizer.get_vocab()
    if len(ids) <= len(set(tokenizer.all_special_tokens) | set(tokenizer.added_tokens_encoder)):
        raise ValueError(_no_tokenizer(name, f"Transformers would go on with {len(ids)} invented tokens"))
    known, highest = model.get_input_embeddings().num_embeddings, max(ids.values())
    if highest >= known:
        raise ValueError(
            f"load: every token must have an embedding: the tokenizer of {name} numbers them up to {highest}, the "
            f"model has {known} embeddings; take the tokenizer that belongs to these weights"
        )
    return found


@contextmanager
def refusals(name: str, what: str) -> Iterator[None]:
    """Transformers' reports and errors, of which there are many kinds, in one sentence that names model and remedy."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)  # its report on the weights comes through loading info
    try:
        yield
    except Exception as error:  # broken files make it raise nearly anything: TypeError, KeyError, SafetensorError
        if "scaled_dot_product_attention" in str(error) or isinstance(error, ImportError):
            raise
        raise ValueError(f"load: {_reason(name, what, error)}") from error
    finally:
        logging.set_verbosity(level)


def nearest(name: str, known: tuple[str, ...]) -> list[str]:
    """Known names that one may have been misspelt of, the likeliest first."""
    return difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.7)


def _reason(name: str, what: str, error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in said or "custom code" in said:
        return (
            f"a model must be of a class that Transformers has: {name} brings code of its own, which is not run; read "
            "it, and pass --trust-remote-code where you trust it"
        )
    place = f"in the folder {name}" if Path(name).is_dir() else f"of {name}"
    short = said if len(said) <= 200 else said[:200] + "…"
    return (
        f"the {what} {place} must be readable by Transformers: {short.rstrip('. ')} ({type(error).__name__}); the "
        "files may be cut short, or some are missing: fetch or save the model again"
    )


def _reads_text(model: Any) -> bool:
    """Whether what goes in first is a token's number."""
    return model.main_input_name == "input_ids"


def _no_tokenizer(name: str, why: str) -> str:
    return (
        f"load: a text model must come with its tokenizer: {name} has none, and {why}; copy tokenizer.json and "
        "tokenizer_config.json into the folder, as the tokenizer's save_pretrained writes them"
    )


def _is_spare(key: str, model: Any) -> bool:
    """Whether a weight of the file is of a head that the class does not have, or is no weight but a constant."""
    inside = key.removeprefix(f"{model.base_model_prefix}.")
    own = {child for child, _ in model.named_children()}
    return bool(_BUFFERS.search(key)) or (bool(_HEADS.match(inside)) and inside.partition(".")[0] not in own)


def _listed(keys: list[str]) -> str:
    first = ", ".join(sorted(keys)[:_SHOWN])
    return first if len(keys) <= _SHOWN else f"{first} and {len(keys) - _SHOWN} more"
