"""Measures how much of the dense attention weight a method keeps, in models trained without it and with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dynattn.functional import attention
from dynattn.lab.figures import BASELINE, Record
from dynattn.lab.lra.experiment import Arena, load
from dynattn.lab.lra.model import ObservedCall
from dynattn.lab.training.mixers import Mixer, Pooling, mixer
from dynattn.lab.training.named import attention_of
from dynattn.methods import Method, MixingMethod, PerHead, parse

_SEQUENCES = 32  # so many held-out sequences are looked at


class KeptByTraining(Record):
    """Kept mass under one method: mean over layers, heads, the queries that are tokens, and seeds.

    Attributes:
        method: its short name.
        trained_dense: what it is in models that were trained with dense attention.
        trained_with_it: what it is in models that were trained with the method.
    """

    method: str
    trained_dense: float
    trained_with_it: float


def kept(arena: Arena, methods: Sequence[str], seeds: Sequence[int], folder: Path) -> list[KeptByTraining]:
    """Look into the models of a study.

    Args:
        arena: what they were trained on.
        methods: short names; the baseline, and methods that keep no pairs, are passed over.
        seeds: the seeds of the study.
        folder: the folder of its runs, with their models.
    """
    items = len(arena.labels)
    batch = arena.held_out(np.unique(np.linspace(0, items - 1, min(_SEQUENCES, items)).astype(int)))

    def mean(method: str, trained_with: str) -> float:
        models = (folder / f"{trained_with}-seed{seed}" / "model" for seed in seeds)
        return float(np.mean([_kept_mass(path, parse(method), batch) for path in models]))

    return [
        KeptByTraining(method=method, trained_dense=mean(method, BASELINE), trained_with_it=mean(method, method))
        for method in methods
        if attention_of(method) != BASELINE and _keeps_pairs(mixer(method))
    ]


def _keeps_pairs(method: Mixer) -> bool:
    parts = method.parts if isinstance(method, PerHead) else (method,)
    return not any(isinstance(part, (MixingMethod, Pooling)) for part in parts)


@torch.inference_mode()
def _kept_mass(folder: Path, method: Method, batch: dict[str, Tensor]) -> float:
    """The kept mass of one model; each layer sees what the layers before it give under the method."""
    model = load(folder, method.name)
    shares = []

    def look(call: ObservedCall) -> None:
        _, aux = attention(call.query, call.key, call.value, method, attn_mask=call.mask, return_aux=True)
        mass = aux.kept_mass.mean(1)  # [batch, length]
        shares.append(mass.mean() if call.mask is None else mass[call.mask[:, 0, 0]].mean())

    for module in model.attentions():
        module.observe = look
    model(**batch)
    return float(torch.stack(shares).mean())
