"""Linear layers in the decode phase: thresholds of their inputs, and packed N:M weights, where they make steps faster.

Two families of settings: ``inputs`` spreads TEAL, WINA and 2:4 weights over all linear layers, ``neurons`` has CHESS
choose the neurons of MLPs in their place. Thresholds and what weights are scored by are found on the beginnings of some
prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.tune.linears.clock import DENSE, MLP, Seconds, clock, faster
from dynattn.lab.tune.linears.harm import Harm, look
from dynattn.lab.tune.linears.spread import spread
from dynattn.lab.tune.linears.units import Unit, of_kinds, units
from dynattn.sparsity import CHESS, TEAL, WINA, ActivationPlan, LinearSetting, NMWeights, calibrate_thresholds, parse
from dynattn.sparsity import calibrate as statistics_of
from dynattn.sparsity.linears import linears
from dynattn.sparsity.setting import Packs
from dynattn.sparsity.sites import places

_INPUTS = tuple(method.name for method in (*map(TEAL, (0.8, 0.7, 0.6, 0.5)), *map(WINA, (0.7, 0.5))))
_WEIGHTS = (NMWeights(2, 4, score="wanda").name,)
_NEURONS = tuple(CHESS(keep).name for keep in (0.7, 0.5, 0.3))
_OUT = ("down", "out")
_SEEN = 256  # tokens of a prompt that are calibrated on
_LOOKED = 2  # prompts by which harm is seen
_STEPS = 8  # that are timed

Methods = dict[str, str]
"""By site."""


class Linears:
    """The linear layers of a decoder, and what is known of them.

    Args:
        pretrained: the model.
        prompts: (1, tokens) each, of which the beginnings are looked at.
    """

    def __init__(self, pretrained: Pretrained, prompts: Sequence[Tensor]) -> None:
        self._model = pretrained.model
        self._inputs = [
            {"input_ids": ids[:, :_SEEN].to(self._model.device), "use_cache": False, "logits_to_keep": 1}
            for ids in prompts
        ]
        self._packs: Packs = {}
        self._thresholds: dict[str, Mapping[str, tuple[float, ...]]] = {}

    @cached_property
    def _units(self) -> list[Unit]:
        return units(self._model)

    @torch.inference_mode()
    def costs(self) -> Seconds:
        """What linear layers take in steps, dense and by each method that is faster; empty where none is.

        The model is left with PyTorch's attention.
        """
        if not self._units:
            return {}
        self._model.set_attn_implementation(BASELINE)
        seconds = clock(self._model, self._everywhere(), self._run)
        return {} if list(seconds) == [DENSE] else seconds

    @torch.inference_mode()
    def families(self, seconds: Seconds) -> dict[str, list[Methods]]:
        """Settings of each family, the mildest first.

        Args:
            seconds: what :meth:`costs` gave.
        """
        self._model.set_attn_implementation(BASELINE)
        wanted = {
            (name, kind): of_kinds(self._units, name, kind)
            for name in seconds
            if name != DENSE
            for kind in self._kinds(seconds, name)
        }
        harm = look(
            self._model, self._inputs[:_LOOKED], {key: self.context(methods) for key, methods in wanted.items()}
        )
        found = {"inputs": self._of_inputs(seconds, harm), "neurons": self._of_neurons(seconds, harm)}
        return {family: settings for family, settings in found.items() if settings}

    def setting(self, methods: Mapping[str, str]) -> LinearSetting:
        """Methods with what calibration found for them.

        Args:
            methods: by site.
        """
        limits, norms = {}, {}
        for site, name in methods.items():
            method = parse(name)
            if isinstance(method, NMWeights):
                norms[site] = self._norms[site]
            elif isinstance(method, ActivationPlan) and method.needs_thresholds:
                limits[site] = self._found(method)[site]
        return LinearSetting(methods, limits, norms)

    def context(self, methods: Mapping[str, str]) -> Callable[[], AbstractContextManager[None]]:
        """What has the model work by methods, in all calls; weights are packed once.

        Args:
            methods: by site.
        """
        return self.setting(methods).prepared(self._model, self._packs)

    def _everywhere(self) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """Each method in all linear layers where it chooses; CHESS is left out where it is not for these MLPs."""
        found = {name: self.context(of_kinds(self._units, name)) for name in (*_INPUTS, *_WEIGHTS)}
        for name in _NEURONS:
            try:
                context = self.context(of_kinds(self._units, name, *_OUT))
                with context():
                    found[name] = context
            except ValueError:
                pass
        return found

    def _run(self) -> None:
        """Some steps, with a cache that is empty at first."""
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self._model.config)
        for token in self._inputs[0]["input_ids"][:, :_STEPS].split(1, 1):
            self._model(input_ids=token, past_key_values=cache, use_cache=True)

    def _kinds(self, seconds: Seconds, name: str) -> list[str]:
        """The kinds of units in which a method is worth looking at."""
        there = {unit.kind for unit in self._units}
        kinds = faster(seconds, name)
        if name in _NEURONS:  # it spares both projections around the neurons, which the time of the MLP tells
            return [kind for kind in _OUT if kind in there and (MLP if kind == "down" else kind) in kinds]
        return [kind for kind in kinds if kind in there]

    def _of_inputs(self, seconds: Seconds, harm: Harm) -> list[Methods]:
        others = {name: its for name, its in harm.items() if name not in _NEURONS}
        return spread(self._units, seconds, others) if others else []

    def _of_neurons(self, seconds: Seconds, harm: Harm) -> list[Methods]:
        """CHESS in MLPs, other methods in what is left."""
        if not any(name in _NEURONS for name in harm):
            return []
        took = {
            name: {kind: its.get(MLP, its[kind]) if kind == "down" else its[kind] for kind in its}
            for name, its in seconds.items()
        }
        its = {
            name: of_kind if name in _NEURONS else {kind: h for kind, h in of_kind.items() if kind not in _OUT}
            for name, of_kind in harm.items()
        }
        return spread([unit for unit in self._units if unit.kind != "gate"], took, its)

    def _found(self, method: ActivationPlan) -> Mapping[str, tuple[float, ...]]:
        """The thresholds of a method in all linear layers, which are the dense model's."""
        if method.name not in self._thresholds:
            self._model.set_attn_implementation(BASELINE)
            self._thresholds[method.name] = calibrate_thresholds(method, self._model, self._inputs).thresholds
        return self._thresholds[method.name]

    @cached_property
    def _norms(self) -> dict[str, tuple[float, ...]]:
        """What weights are scored by, site by site."""
        self._model.set_attn_implementation(BASELINE)
        statistics = statistics_of(self._model, self._inputs)
        named = {id(module): name for name, module in linears(self._model).items()}
        return {place.name: tuple(statistics[named[id(place.module)]].norm.tolist()) for place in places(self._model)}
