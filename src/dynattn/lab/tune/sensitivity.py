"""How much each head is harmed by each candidate, all of them in one dense forward.

Beside the dense output, which goes on, each layer computes what every candidate would give for the same queries, keys
and values. The harm of head h is the energy of its error where it enters the residual stream x:

    harm(h, c) = mean over queries i of  ‖W_h (out_c − out_dense)_i‖² / ‖x_i‖²

W_h are the columns of the output projection that read head h. Errors of different heads and layers are nearly
orthogonal, so energies add up. This ranks methods as their loss does, and layers too; the mass that a method keeps
ranks methods, but not layers, since a head that retrieves from afar looks local by mass.

A long causal call is looked at in a few runs of queries, spread over its length or at its end, where the questions of
the unlike task stand, and as if the text ended after each. A run is aligned to the blocks of methods that choose so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.functional import attention
from dynattn.integrations.transformers import Call, observing
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.tune.layers import OWN, Place, named, weight
from dynattn.methods import Method, parse

_RUNS = 8
_RUN = 64  # queries at least, and a multiple of every candidate's block
_SHARE = 32  # a run is one in so many queries, where that is more

Harm = dict[str, dict[str, list[float]]]
"""By the attention module's name and the candidate's: the harm of each head."""


@torch.inference_mode()
def look(
    pretrained: Pretrained, inputs: Inputs, places: Mapping[str, Place], names: Sequence[str], last: bool = False
) -> Harm:
    """Run one input and measure the harm of every candidate.

    Args:
        pretrained: the model; it is left with this project's dense attention.
        inputs: the inputs of a forward.
        places: the places of its attention modules, see :func:`dynattn.lab.tune.layers.places`.
        names: the names of the candidates.
        last: look at the last queries alone, where a long causal call is not looked at whole.

    Returns:
        The harm; of a module that is called several times, the mean.
    """
    candidates = {name: parse(name) for name in names}
    known, calls = named(pretrained), {}
    sums: dict[str, dict[str, Tensor]] = {}

    with _residuals(places) as residual:

        def see(call: Call) -> None:
            module = known[call.module]
            if module in places:
                found = _harm(call, places[module], residual.get(places[module].layer), candidates, last)
                before = sums.setdefault(module, {})
                for name, each in found.items():
                    before[name] = before[name] + each if name in before else each
                calls[module] = calls.get(module, 0) + 1

        pretrained.model.set_attn_implementation(OWN)
        with observing(see):
            pretrained.model(**inputs)
    return {
        module: {name: (each / calls[module]).tolist() for name, each in found.items()}
        for module, found in sums.items()
    }


def mean(several: Sequence[Harm]) -> Harm:
    """The mean harm over several inputs."""
    first = several[0]
    return {
        module: {
            name: [sum(values) / len(several) for values in zip(*(each[module][name] for each in several), strict=True)]
            for name in found
        }
        for module, found in first.items()
    }


def mean_of_each(harms: Sequence[Harm], second: Sequence[bool]) -> Harm:
    """The mean over the inputs of each exam, then over the exams, so that the unlike task weighs as much.

    Args:
        harms: one an input.
        second: for each, whether it is of the unlike task.
    """
    return mean([
        mean([harm for harm, its in zip(harms, second, strict=True) if its == which]) for which in sorted(set(second))
    ])  # fmt: skip


@contextmanager
def _residuals(places: Mapping[str, Place]) -> Iterator[dict[nn.Module, Tensor]]:
    """While active, the hidden states that each layer was last given, (batch, length, hidden)."""
    seen: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *(kwargs[name] for name in ("hidden_states", "hidden_state") if name in kwargs)]
        states = next((each for each in given if isinstance(each, Tensor) and each.dim() == 3), None)
        if states is not None:
            seen[module] = states

    layers = {place.layer for place in places.values()}
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _harm(
    call: Call, place: Place, residual: Tensor | None, candidates: Mapping[str, Method], last: bool
) -> dict[str, Tensor]:
    """(heads,) float64 of each candidate."""
    gram = _gram(place, call)
    sums = {name: torch.zeros(call.query.shape[1], dtype=torch.float64, device="cpu") for name in candidates}
    rows = 0
    for part, start in _runs(call, last):
        dense = _attend(part, parse("dense"))
        if residual is not None and residual.shape[1] == call.query.shape[2]:
            size = residual[:, start : start + part.query.shape[2]].double().pow(2).sum(-1)  # [batch, rows]
        else:
            size = _energy(dense, gram).sum(1)
        size = size.clamp(min=torch.finfo(torch.float32).tiny)
        for name, method in candidates.items():
            energy = _energy(_attend(part, method) - dense, gram)  # [batch, heads, rows]
            sums[name] += (energy / size[:, None]).sum(dim=(0, 2)).cpu()
        rows += size.numel()
    return {name: found / max(1, rows) for name, found in sums.items()}


def _attend(call: Call, method: Method) -> Tensor:
    return attention(
        call.query, call.key, call.value, method, attn_mask=call.attn_mask, causal=call.causal, scale=call.scale
    ).float()


def _runs(call: Call, last: bool) -> Iterator[tuple[Call, int]]:
    """Parts of a call with the first query of each; the whole where it is short, has a mask, or is not causal."""
    q_len, kv_len = call.query.shape[2], call.key.shape[2]
    run = max(_RUN, q_len // _SHARE // _RUN * _RUN)
    if not call.causal or call.attn_mask is not None or q_len != kv_len or q_len < 2 * _RUNS * run:
        yield call, 0
        return
    for number in range(_RUNS):
        start = (
            (q_len - 1) // run * run - number * run if last else (2 * number + 1) * q_len // (2 * _RUNS) // run * run
        )
        stop = min(q_len, start + run)
        query, key, value = call.query[:, :, start:stop], call.key[:, :, :stop], call.value[:, :, :stop]
        yield call._replace(query=query, key=key, value=value), start


def _gram(place: Place, call: Call) -> Tensor:
    """(heads, value_dim, value_dim) float64: ``W_hᵀ W_h``; the identity where no linear layer follows."""
    heads, width = call.query.shape[1], call.value.shape[-1]
    if place.out is None:
        return torch.eye(width, dtype=torch.float64, device=call.query.device).expand(heads, width, width)
    columns = weight(place.out, heads * width).double().unflatten(1, (heads, width))  # [outputs, heads, value_dim]
    return torch.einsum("ohd,ohe->hde", columns, columns)


def _energy(error: Tensor, gram: Tensor) -> Tensor:
    """(batch, heads, rows): ``‖W_h error‖²``."""
    error = error.double()
    return ((error @ gram) * error).sum(-1).clamp(min=0)
