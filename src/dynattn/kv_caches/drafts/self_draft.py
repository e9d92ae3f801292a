"""A draft made of the model itself: sparse attention, and fewer layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from dynattn.integrations.transformers.calls import replacing
from dynattn.integrations.transformers.coverage import PREFIX
from dynattn.kv_caches.counts import check_counts
from dynattn.methods import NM, Method


@dataclass(frozen=True)
class SelfDraft:
    """The model with cheaper attention and, if so asked, without some of its layers.

    The first layers and the last one stay, and those before the last go: arXiv:2403.17887 finds that deep layers matter
    least. It trains a little afterwards; nothing is trained here.

    Args:
        method: what its attention keeps.
        layers: how many layers stay; None for all.

    Raises:
        ValueError: ``layers`` is below 2; in use, the model has fewer, keeps them elsewhere than in ``layers``, or does
            not attend by this project's attention.
    """

    method: Method = NM(1, 2)
    layers: int | None = None

    def __post_init__(self) -> None:
        if self.layers is not None:
            check_counts("SelfDraft", least=2, layers=self.layers)

    @contextmanager
    def of(self, model: Any) -> Iterator[Any]:
        """While active, the model is the draft.

        Args:
            model: a Transformers decoder.

        Yields:
            The same model.
        """
        check_ours(model, "SelfDraft")
        decoder, whole = _layers(model, self.layers)
        try:
            if self.layers is not None:
                decoder.layers = nn.ModuleList([*whole[: self.layers - 1], whole[-1]])
            with replacing(lambda module, method: self.method):
                yield model
        finally:
            if self.layers is not None:
                decoder.layers = whole


@contextmanager
def drafting(draft: SelfDraft | nn.Module | None, model: Any) -> Iterator[Any]:
    """The model that drafts: the given one, the model itself, or what a :class:`SelfDraft` makes of it.

    Args:
        draft: None for the model as it is.
        model: the target, a Transformers decoder.
    """
    if isinstance(draft, SelfDraft):
        with draft.of(model) as made:
            yield made
    else:
        yield model if draft is None else draft


def check_ours(model: Any, owner: str) -> None:
    """Raise unless a model attends by this project's attention.

    Args:
        model: a Transformers model.
        owner: who needs that, for the error.

    Raises:
        ValueError: it does not.
    """
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if not str(implementation).startswith(PREFIX):
        raise ValueError(
            f"{owner}: the model must attend by this project's attention: got {implementation!r}; register() and "
            "model.set_attn_implementation('dynattn:dense')"
        )


def _layers(model: Any, wanted: int | None) -> tuple[Any, nn.ModuleList]:
    """The module that has the decoder's layers, and these."""
    if wanted is None:
        return None, nn.ModuleList()
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) < wanted:
        there = len(layers) if isinstance(layers, nn.ModuleList) else "none"
        raise ValueError(
            f"SelfDraft: layers must be at most those of the model's decoder.layers: got {wanted}, "
            f"{type(decoder).__name__} has {there}; pass fewer, or None"
        )
    return decoder, layers
