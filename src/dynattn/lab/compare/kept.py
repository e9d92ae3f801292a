"""How much of the dense attention weight each method keeps, by layer and head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from dynattn.functional import attention
from dynattn.integrations.transformers import Call, observing
from dynattn.lab.compare.results import Kept
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs
from dynattn.methods import Method


@torch.inference_mode()
def kept(pretrained: Pretrained, method: Method, examples: Sequence[Inputs]) -> Kept:
    """Run the examples with a method and look at every attention call.

    Args:
        pretrained: a model that is set to the method's implementation.
        method: the method; where it differs by layer, each call has its layer's.
        examples: model inputs without padding.

    Returns:
        Kept mass and density.
    """
    mass: dict[int, list[Tensor]] = defaultdict(list)
    low: list[Tensor] = []
    density: list[float] = []

    def look(call: Call) -> None:
        _, aux = attention(
            call.query, call.key, call.value, call.method,
            attn_mask=call.attn_mask, causal=call.causal, scale=call.scale, return_aux=True,
        )  # fmt: skip
        rows = aux.kept_mass.float()  # [batch, heads, q_len]
        mass[call.layer].append(rows.mean((0, 2)))
        low.append(rows.flatten())
        density.append(aux.density.mean().item())

    with observing(look):
        for inputs in examples:
            pretrained.model(**inputs)
    if not low:
        raise ValueError(
            f"kept: the model must call dynattn: {type(pretrained.model).__name__} made no call; "
            "call set_attn_implementation first, on a model that takes it"
        )
    rows = torch.cat(low)
    least = rows.kthvalue(max(1, rows.numel() // 100)).values
    return Kept(
        method=method.name,
        mass=[torch.stack(heads).mean(0).tolist() for _, heads in sorted(mass.items())],
        lowest=rows[rows <= least].mean().item(),
        density=sum(density) / len(density),
    )
