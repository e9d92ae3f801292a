"""How much work a method is, by its definition: FLOPs of attention and of the whole forward, from the pairs kept.

    attention = 2 · (scored · head_dim + kept · value_dim),    scored = allowed for a choice that looks at the scores,
                                                               scored = kept    for one that goes by position

A method that keeps the largest scores has to know them all: its choosing is the product QKᵀ that dense attention pays
as well. A method that keeps no pairs is counted as it runs, product by product. What a kernel really executes, and how
fast, is another matter: time is measured beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from dynattn.evals.frontier.results import Work
from dynattn.evals.models import Pretrained
from dynattn.evals.tasks.base import Inputs
from dynattn.functional import attention
from dynattn.integrations.transformers import Call, observing
from dynattn.methods import Method, MixingMethod

BY_POSITION: tuple[type[Method], ...] = ()
"""Methods that choose without looking at the scores."""


class _Seen(NamedTuple):
    """One attention call: FLOPs; pairs kept and kept mass of each query, where there are pairs."""

    flops: float
    pairs: float | None
    mass: torch.Tensor | None


@torch.inference_mode()
def look(pretrained: Pretrained, examples: Sequence[Inputs]) -> Work:
    """Run the examples and count.

    Args:
        pretrained: a model that is set to one of dynattn's implementations.
        examples: model inputs without padding.

    Returns:
        The work of one of them, on average.

    Raises:
        ValueError: the model made no call of dynattn.
    """
    seen: list[_Seen] = []
    with observing(lambda call: seen.append(_see(call))):
        for inputs in examples:
            pretrained.model(**inputs)
    if not seen:
        raise ValueError(
            f"look: the model must call dynattn: {type(pretrained.model).__name__} made no call; take a model whose "
            "attention comes from Transformers' interface"
        )
    rest = sum(_counted(lambda inputs=inputs: pretrained.model(**inputs)) for inputs in examples)
    rest -= sum(call.flops for call in seen if call.pairs is None)  # counted there, too
    inside = sum(call.flops for call in seen)
    kept = [call.pairs for call in seen if call.pairs is not None]
    mass = [call.mass for call in seen if call.mass is not None]
    return Work(
        pairs=sum(kept) / len(examples) if kept else None,
        kept_mass=torch.cat(mass).mean().item() if mass else None,
        attention=inside / len(examples),
        total=(inside + rest) / len(examples),
    )


def pairs(call: Call) -> int:
    """Query-key pairs that may be attended, of all batch entries and heads."""
    batch, heads, q_len, _ = call.query.shape
    kv_len = call.key.shape[2]
    if call.attn_mask is not None:
        mask = call.attn_mask if call.attn_mask.dtype == torch.bool else call.attn_mask != -torch.inf
        return int(mask.expand(batch, heads, q_len, kv_len).sum())
    if not call.causal:
        return batch * heads * q_len * kv_len
    last = torch.arange(kv_len - q_len + 1, kv_len + 1).clamp(min=0)  # keys that each query may see
    return batch * heads * int(last.sum())


def flops(allowed: float, kept: float, head_dim: int, value_dim: int, by_position: bool) -> float:
    """Of one attention call.

    Args:
        allowed: pairs that may be attended.
        kept: pairs that are.
        head_dim: of queries and keys.
        value_dim: of values.
        by_position: the choice does not look at the scores.
    """
    scored = kept if by_position else allowed
    return 2.0 * (scored * head_dim + kept * value_dim)


def _see(call: Call) -> _Seen:
    run = partial(
        attention, call.query, call.key, call.value, call.method,
        attn_mask=call.attn_mask, causal=call.causal, scale=call.scale,
    )  # fmt: skip
    if isinstance(call.method, MixingMethod):
        return _Seen(_counted(run), None, None)
    _, aux = run(return_aux=True)
    allowed = pairs(call)
    kept = aux.density.double().mean().item() * allowed
    cost = flops(
        allowed, kept, call.query.shape[-1], call.value.shape[-1], isinstance(call.method, BY_POSITION)
    )  # fmt: skip
    return _Seen(cost, kept, aux.kept_mass.float().flatten())


def _counted(run: Callable[[], object]) -> float:
    """FLOPs that PyTorch's counter sees: all products but those inside an attention operator."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return sum(flops for operator, flops in counter.get_flop_counts()["Global"].items() if not _attends(operator))


def _attends(operator: Any) -> bool:
    """Whether this is a fused attention operator, of which the counter knows those on a GPU: pairs are counted here."""
    return "attention" in str(operator)
