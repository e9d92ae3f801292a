"""Counts the work of a method by its definition: the FLOPs of attention and of the whole forward, from the pairs kept.

    attention = 2 · (scored · head_dim + allowed · glance + kept · value_dim)

    scored = allowed, glance = 0     for a choice by the exact scores: it has to know them all, as dense attention does
    scored = kept                    for a choice by something else, which costs so many multiply-adds a pair; of N:M
                                     inside of kept blocks, the pairs of these blocks

A method that keeps no pairs is counted as it runs, product by product. Of one that sets weights to 0, the weights
that are left are counted; of one that leaves inputs of linear layers out, the products that are left, and a comparison
for each input. What a kernel really executes, and how fast, is another matter: time is measured beside it.
:mod:`dynattn.account` counts the same, and bytes too, more slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch

from dynattn.account import counting, of_call, of_forward, of_mixing, of_pairs
from dynattn.functional import attention
from dynattn.integrations.transformers import Call, observing
from dynattn.lab.calibration import thinned_out
from dynattn.lab.figures import BASELINE
from dynattn.lab.frontier.apply import applied
from dynattn.lab.frontier.results import InputWork
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs
from dynattn.methods import MixingMethod, PairMethod
from dynattn.pruning import Forward, TokenMethod, find
from dynattn.sparsity import SparsityMethod, WeightSparsity
from dynattn.sparsity import find as find_sparsity

LOOKED = 2
"""So many examples suffice, since they have full length, and figures are means over all layers and heads."""

_ENDLESS = 1 << 50  # bytes of a processor's cache that holds every row, so that none is counted twice


class CountedCall(NamedTuple):
    """The FLOPs of one attention call, and the pairs kept and the kept mass of each query where the method keeps
    pairs."""

    flops: float
    pairs: float | None
    mass: torch.Tensor | None


@torch.inference_mode()
def look(pretrained: Pretrained, name: str, examples: Sequence[Inputs]) -> InputWork:
    """Run the examples with a method and count.

    Args:
        pretrained: a model; its attention implementation is set.
        name: the method's short name, or ``sdpa``.
        examples: model inputs without padding.

    Returns:
        The work of one of them, on average.

    Raises:
        ValueError: the model made no call of dynattn.
    """
    shortening = None if name == BASELINE else find(name)
    if shortening is not None:
        return _shortened(pretrained, shortening, examples)
    of_linears = None if name == BASELINE else find_sparsity(name)
    if isinstance(of_linears, WeightSparsity):
        return _thinned(pretrained, of_linears, examples)
    if of_linears is not None:
        return _left_out(pretrained, of_linears, examples)
    seen: list[CountedCall] = []
    with (
        applied(pretrained, "dense" if name == BASELINE else name),
        observing(lambda call: seen.extend(see(call))),
        counting(pretrained.model, attention=False) as account,
    ):
        for inputs in examples:
            pretrained.model(**inputs)
    if not seen:
        raise ValueError(
            f"look: the model must call dynattn: {type(pretrained.model).__name__} made no call; take a model whose "
            "attention comes from Transformers' interface"
        )
    return tally(seen, account.linear.linear, len(examples))


def tally(seen: Sequence[CountedCall], linear: float, inputs: int) -> InputWork:
    """The work of one input.

    Args:
        seen: all attention calls.
        linear: multiply-adds of all linear layers.
        inputs: how many there were.
    """
    attention = sum(call.flops for call in seen)
    kept = [call.pairs for call in seen if call.pairs is not None]
    mass = [call.mass for call in seen if call.mass is not None]
    return InputWork(
        pairs=sum(kept) / inputs if kept else None,
        kept_mass=torch.cat(mass).mean().item() if mass else None,
        attention=attention / inputs,
        total=(attention + 2 * linear) / inputs,
    )


def _shortened(pretrained: Pretrained, method: TokenMethod, examples: Sequence[Inputs]) -> InputWork:
    """The work under a method by which layers see fewer tokens: dense attention among these, and shorter layers."""
    forwards: list[Forward] = []
    pretrained.model.set_attn_implementation(BASELINE)
    with method.apply(pretrained.model) as trace, counting(pretrained.model) as account:
        trace.on_forward = forwards.append
        for inputs in examples:
            pretrained.model(**inputs)
    config = pretrained.model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inside = [of_forward(forward, head_dim=head_dim, itemsize=4) for forward in forwards]
    attention = 2 * sum(work.multiply_adds for work in inside)
    return InputWork(
        pairs=sum(work.exponentials for work in inside) / len(examples),
        kept_mass=None,
        attention=attention / len(examples),
        total=(attention + 2 * account.linear.linear) / len(examples),
    )


def _thinned(pretrained: Pretrained, method: WeightSparsity, examples: Sequence[Inputs]) -> InputWork:
    """The work without the weights that are 0: what a kernel that skips them would do, though there is none."""
    dense, spared = look(pretrained, BASELINE, examples), 0
    pretrained.model.set_attn_implementation(BASELINE)
    with thinned_out(pretrained, method) as kept, ExitStack() as undo:

        def skipped(name: str) -> Callable[[torch.nn.Module, Any, Any], None]:
            def count(_: torch.nn.Module, args: Any, output: Any) -> None:
                nonlocal spared
                spared += output.numel() // output.shape[-1] * (kept.sizes[name] - kept.counts[name])

            return count

        for name, module in pretrained.model.named_modules():
            if name in kept.counts and isinstance(module, torch.nn.Linear):  # no others are counted at all
                undo.callback(module.register_forward_hook(skipped(name)).remove)
        for inputs in examples:
            pretrained.model(**inputs)
    return dense.model_copy(update={"total": dense.total - 2 * spared / len(examples)})


def _left_out(pretrained: Pretrained, method: SparsityMethod, examples: Sequence[Inputs]) -> InputWork:
    """The work where linear layers leave inputs out, as they run."""
    dense = look(pretrained, BASELINE, examples)
    with applied(pretrained, method.name), counting(pretrained.model) as account:
        for inputs in examples:
            pretrained.model(**inputs)
    return dense.model_copy(update={"total": dense.attention + 2 * account.linear.multiply_adds / len(examples)})


def pairs(call: Call) -> int:
    """Query-key pairs that may be attended, of all batch entries and heads."""
    batch, heads, q_len, _ = call.query.shape
    kv_len = call.key.shape[2]
    if call.attn_mask is not None:
        mask = call.attn_mask if call.attn_mask.dtype == torch.bool else call.attn_mask != -torch.inf
        return int(mask.expand(batch, heads, q_len, kv_len).sum())
    if not call.causal:
        return batch * heads * q_len * kv_len
    last = torch.arange(kv_len - q_len + 1, kv_len + 1, device="cpu").clamp(min=0)  # keys that each query may see
    return batch * heads * int(last.sum())


def see(call: Call) -> list[CountedCall]:
    """What an attention call costs and keeps; where heads differ, of each method's heads."""
    return [_seen(part) for part in call.by_method()]


def cache_read(call: Call) -> float | None:
    """Bytes of keys and values that a call reads, each row once for the query heads that share it, and what the method
    reads besides to choose; None where the method keeps no pairs."""
    total = 0.0
    for part in call.by_method():
        if not isinstance(part.method, PairMethod):
            return None
        work = of_call(
            part.query, part.key, part.value, part.method, attn_mask=part.attn_mask, causal=part.causal,
            scale=part.scale, cache_bytes=_ENDLESS,
        )  # fmt: skip
        total += work.read - part.query.nbytes
    return total


def _seen(call: Call) -> CountedCall:
    tensors = call.query, call.key, call.value
    options: dict[str, Any] = {"attn_mask": call.attn_mask, "causal": call.causal, "scale": call.scale}
    if isinstance(call.method, MixingMethod):
        return CountedCall(2 * of_mixing(*tensors, call.method, **options).multiply_adds, None, None)
    method = cast(PairMethod, call.method)
    _, aux = attention(*tensors, method, **options, return_aux=True)
    allowed = pairs(call)
    kept = scored = aux.density.double().mean().item() * allowed
    if method.scored is not None:
        _, among = attention(*tensors, cast(PairMethod, method.scored), **options, return_aux=True)
        scored = among.density.double().mean().item() * allowed
    head_dim, value_dim, itemsize = call.query.shape[-1], call.value.shape[-1], call.query.element_size()
    glance = method.glance(head_dim, itemsize)
    work = of_pairs(glance, allowed, kept, head_dim, value_dim, allowed if glance is None else scored)
    return CountedCall(2 * work.multiply_adds, kept, aux.kept_mass.float().flatten())
