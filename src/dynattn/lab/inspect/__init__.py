"""``dynattn inspect``: measures what every head keeps of one text or image, on the dense model's scores; writes a page.

Each head is measured on the inputs that it gets in the dense model, so that no figure depends on other heads. The loss
of the whole model, with the method in every layer, is measured separately, at the model's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynattn import metrics
from dynattn.integrations import transformers as integration
from dynattn.lab.inspect.measure import Head, Maps, maps, measure
from dynattn.lab.inspect.subject import Subject, from_image, from_text
from dynattn.lab.models import Pretrained
from dynattn.methods.nm import NM

__all__ = ["Inspection", "Shown", "from_image", "from_text", "inspect"]


@dataclass(frozen=True)
class Shown:
    """A head whose attention maps are shown, and why it was chosen."""

    head: Head
    maps: Maps
    reason: str


@dataclass(frozen=True)
class Inspection:
    """All results for one text or image under one method.

    Attributes:
        model: a line about the model.
        subject: the text or image.
        method: the method.
        heads: the figures of every head, by layer.
        shown: the heads to draw.
        bound_holds: whether every row of every head is within its certified bound.
        output_error: relative error of the model's output with the method in every layer.
        output_cosine: mean cosine between the tokens' outputs and the dense ones.
        same_next_token: share of positions with the same most likely next token; None except for decoders.
    """

    model: str
    subject: Subject
    method: NM
    heads: list[Head]
    shown: list[Shown]
    bound_holds: bool
    output_error: float
    output_cosine: float
    same_next_token: float | None

    def mean(self, field: str) -> float:
        """Mean over the heads of one of their figures."""
        return sum(getattr(head, field) for head in self.heads) / len(self.heads)


@torch.inference_mode()
def inspect(
    pretrained: Pretrained,
    subject: Subject,
    method: NM,
    layer: int | None = None,
    head: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Run a model on one text or image and measure what the method keeps in every head.

    Args:
        pretrained: the model; its attention implementation is put back afterwards.
        subject: the text or image.
        method: what to keep.
        layer: draw heads of this layer; None for any.
        head: draw this head; None for the ones that keep least and most.
        progress: called with the number of layers done and of all.

    Returns:
        The inspection.

    Raises:
        ValueError: the model has no such layer or head.
    """
    integration.register(method)
    calls: list[integration.Call] = []
    with integration.observing(calls.append):
        dense = _run(pretrained.model, subject, "dynattn:dense")
    inputs = (part for call in calls for part in (call.query, call.key, call.value))
    if not all(part.isfinite().all() for part in (dense, *inputs)):  # an output may hide what one head was given
        raise ValueError(
            f"inspect: the model's output must be finite: that of {pretrained.name} under dense attention is not; "
            "take other weights, or the config.json that belongs to these"
        )
    sparse = _run(pretrained.model, subject, f"dynattn:{method.name}")
    candidates = _matching(calls, layer, head)
    heads, holds = [], True
    for done, call in enumerate(calls):
        progress(done, len(calls))
        figures, within = measure(call, method)
        heads += figures
        holds &= within
    progress(len(calls), len(calls))
    by_layer = {call.layer: call for call in calls}
    shown = [
        Shown(chosen, maps(by_layer[chosen.layer], method, chosen.head), reason)
        for chosen, reason in _extremes([h for h in heads if (h.layer, h.head) in candidates])
    ]
    return Inspection(
        pretrained.description, subject, method, heads, shown, holds,
        output_error=float(metrics.relative_error(sparse, dense)),
        output_cosine=float(metrics.cosine(sparse, dense).mean()),
        same_next_token=float((sparse.argmax(-1) == dense.argmax(-1)).double().mean())
        if pretrained.kind == "decoder" else None,
    )  # fmt: skip


def _run(model: Any, subject: Subject, implementation: str) -> Tensor:
    """The model's output, (tokens, width)."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        outputs = model(**subject.inputs)
    finally:
        model.set_attn_implementation(before)
    return outputs["logits" if "logits" in outputs else "last_hidden_state"][0]


def _matching(calls: list[integration.Call], layer: int | None, head: int | None) -> set[tuple[int, int]]:
    """The (layer, head) pairs that may be drawn."""
    found = {
        (call.layer, index)
        for call in calls
        for index in range(call.query.shape[1])
        if layer in (None, call.layer) and head in (None, index)
    }
    if not found:
        layers = sorted(call.layer for call in calls)
        if not layers:
            raise ValueError("inspect: the model must use attention through Transformers' interface: it made no call")
        raise ValueError(
            f"inspect: layer and head must be ones that the model has: got layer {layer}, head {head}; layers go from "
            f"{layers[0]} to {layers[-1]}, heads from 0 to {calls[0].query.shape[1] - 1}"
        )
    return found


def _extremes(heads: list[Head]) -> list[tuple[Head, str]]:
    """The heads that keep least and most; one head where there is no other."""
    least, most = (choose(heads, key=lambda h: h.kept_mass) for choose in (min, max))
    if least is most:
        return [(least, "as asked")]
    return [(least, "the lowest kept mass"), (most, "the highest kept mass")]
