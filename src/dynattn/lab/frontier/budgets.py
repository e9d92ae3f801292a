"""Solves budgets on what methods are measured to keep, so that they are compared at that, and not at what they were
asked for.

    ask(family, share) names a method, and kept(method) is what it keeps:  kept(ask(family, share)) = budget

What a method keeps grows with what it is asked for, so that a binary search finds the share. It is measured on the
first input of the exam, over dense attention: query-key pairs for a forward, bytes of the cache that a step reads for
decoding. A forward is not repeated: every method is given the queries and keys of the dense model, of one key head in
every layer, another one in the next layer. What methods keep in the exam itself is measured there, and shown.

Source: The Sparse Frontier, arXiv:2504.17768, which searches a formula of each pattern; here none is needed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import torch

from dynattn import pruning, sparsity
from dynattn.functional import attention
from dynattn.integrations.transformers import Call, observing, register
from dynattn.lab.decode.prompt import Prompt
from dynattn.lab.figures import BASELINE
from dynattn.lab.frontier import decode, work
from dynattn.lab.frontier.cell import Exam, Search
from dynattn.lab.frontier.methods import asked
from dynattn.lab.frontier.results import Solved
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks import Prepared
from dynattn.methods import PairMethod, parse

CLOSE = 0.02
"""A budget is kept where the share is so close to it, as a part of it."""

_STEPS = 10
_LEAST, _MOST = 1e-4, 0.9999  # shares that may be asked for


def solve(name: Callable[[float], str], kept: Callable[[str], float | None], budget: float) -> tuple[str, float] | None:
    """The method that keeps the share nearest to a budget.

    Args:
        name: names a method that is asked for a share; raises ValueError where there is none for so little.
        kept: the share that a method keeps; None where it keeps no pairs. It is asked once for each name.
        budget: the share that is to be kept.

    Returns:
        The name and what it keeps; None where there is no method, or none that keeps pairs.
    """
    low, high, share = _LEAST, _MOST, budget
    found: dict[str, float] = {}
    for _ in range(_STEPS):
        try:
            method = name(share)
        except ValueError:  # there is no method for so little, as there is no 1:M for any M
            low, share = share, math.sqrt(share * high)
            continue
        if method not in found:
            keeps = kept(method)
            if not keeps:
                return None
            found[method] = keeps
        if abs(found[method] / budget - 1) <= CLOSE:
            break
        low, high = (share, high) if found[method] < budget else (low, share)
        share = math.sqrt(low * high)
    return min(found.items(), key=lambda pair: abs(math.log(pair[1] / budget)), default=None)


class Scale:
    """Tells what methods keep in one exam.

    Args:
        pretrained: the model; its attention implementation is set.
        exam: the exam.
        data: what is prepared for it.
    """

    def __init__(self, pretrained: Pretrained, exam: Exam, data: Prepared) -> None:
        self._pretrained, self._exam, self._data = pretrained, exam, data
        self.kept = lru_cache(maxsize=None)(self._kept)

    def solved(self, search: Search) -> Solved | None:
        """A family's method that keeps the budget here, or comes nearest to it.

        Returns:
            The method; None where the family's keep no pairs.
        """
        kind, tokens = self._pretrained.kind, self._exam.tokens
        found = solve(lambda share: asked(search.family, share, kind, tokens), self.kept, search.budget)
        return None if found is None else Solved(search=search, name=found[0], kept=found[1])

    @torch.inference_mode()
    def _kept(self, name: str) -> float | None:
        """The share of what dense attention keeps; None where a method keeps no pairs."""
        if self._exam.phase == "decode" or pruning.find(name) is not None:
            own = self._measured(name)
            return own / self._whole if own is not None and self._whole else None
        if sparsity.find(name) is not None:  # its budget is one of weights or of their inputs
            return None
        method = parse(name)
        if not isinstance(method, PairMethod):
            return None
        shares = [
            attention(
                call.query, call.key, call.value, method, attn_mask=call.attn_mask, causal=call.causal,
                scale=call.scale, return_aux=True,
            )[1].density.double().mean().item()
            for call in self._calls
        ]  # fmt: skip
        return sum(shares) / len(shares)

    def _measured(self, name: str) -> float | None:
        """Bytes of a step, or pairs of a forward."""
        if self._exam.phase == "decode":
            return decode.bytes_read(self._pretrained, name, self._first, self._prompts)
        return work.look(self._pretrained, name, self._data.examples[:1]).pairs

    @cached_property
    def _whole(self) -> float | None:
        return self._measured(BASELINE)

    @cached_property
    def _first(self) -> Prepared:
        """The data with one item."""
        return dataclasses.replace(self._data, payload=self._data.payload[:1])

    @cached_property
    def _prompts(self) -> list[Prompt]:
        return decode.prompts(self._pretrained, self._first)

    @cached_property
    def _calls(self) -> list[Call]:
        """The dense model's calls of one key head in every layer, each layer's next."""
        calls: list[Call] = []
        register()
        self._pretrained.model.set_attn_implementation("dynattn:dense")
        with observing(lambda call: calls.append(one_head(call, len(calls)))):
            self._pretrained.model(**self._data.examples[0])
        if not calls:
            raise ValueError(
                f"budgets: the model must call dynattn: {type(self._pretrained.model).__name__} made no call; take a "
                "model whose attention comes from Transformers' interface"
            )
        return calls


def one_head(call: Call, number: int) -> Call:
    """The call of one key head and of the query heads that share it, copied.

    Args:
        call: of all heads.
        number: which, counted on from the first head behind the last.
    """
    kv_heads = call.key.shape[1]
    group, head = call.query.shape[1] // kv_heads, number % kv_heads
    queries = slice(head * group, (head + 1) * group)
    mask: Any = call.attn_mask
    if mask is not None and mask.dim() > 2 and mask.shape[-3] > 1:
        mask = mask[..., queries, :, :]
    return call._replace(
        query=call.query[:, queries].clone(), key=call.key[:, head : head + 1].clone(),
        value=call.value[:, head : head + 1].clone(), attn_mask=mask,
    )  # fmt: skip
