"""What each linear layer of a model leaves out, as a search found it: methods by site, and what calibration found.

setting = LinearSetting({"0.gate": "teal-0.6", "0.up": "teal-0.6", "3.o": "nmweight-2-4"},
                        thresholds={"0.gate": (0.03,), "0.up": (0.03,)})
with setting.apply(model):
    output = model(**inputs)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn

from dynattn.ops.linear import PackedNM
from dynattn.pruning.structure.find import size
from dynattn.sparsity.activations.base import ActivationSparsity
from dynattn.sparsity.activations.by_site import BySite
from dynattn.sparsity.activations.calibrated import Calibrated
from dynattn.sparsity.registry import parse
from dynattn.sparsity.sites import Place, places
from dynattn.sparsity.weights.calibration import InputStatistics
from dynattn.sparsity.weights.nm import NMWeights
from dynattn.sparsity.weights.packed import pack, read_packed

_PACKED = ((1, 2), (1, 4), (2, 4), (3, 4))

Packs = MutableMapping[tuple[str, str], PackedNM]
"""Packed weights by site and method."""


@final
@dataclass(frozen=True)
class LinearSetting:
    """Methods by site, for activations and for packed N:M weights, with what they need to know of one model.

    Args:
        methods: short names by :attr:`Site.name <dynattn.sparsity.Site>`; linear layers that are not named stay dense.
        thresholds: by site, as :class:`~dynattn.sparsity.Calibrated` holds them, of the methods that have some.
        norms: by site, ``‖x_j‖`` of each input over the calibration texts, where weights are scored by them.

    Raises:
        TypeError: a site's method chooses neither inputs nor N:M weights.
        ValueError: there is no method, a name is none, or what a method needs to know is missing.
    """

    methods: Mapping[str, str]
    thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    norms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("thresholds", "norms"):
            numbers = {site: tuple(map(float, found)) for site, found in getattr(self, name).items()}
            object.__setattr__(self, name, numbers)
        object.__setattr__(self, "methods", dict(self.methods))
        inputs, weights = self._parsed()
        if not inputs and not weights:
            raise ValueError("LinearSetting: methods must name one site at least: got none; leave the setting out")
        if inputs:
            BySite(tuple(inputs.items()))  # refuses what is no site
        lacking = [site for site, method in inputs.items() if method.needs_thresholds and site not in self.thresholds]
        lacking += [site for site, method in weights.items() if method.looks_at_inputs and site not in self.norms]
        if lacking:
            raise ValueError(
                f"LinearSetting: {lacking[0]} must have thresholds or norms, which its method needs: there are none "
                f"for {self.methods[lacking[0]]}; take them from calibrate_thresholds or calibrate"
            )

    def apply(self, model: nn.Module) -> AbstractContextManager[None]:
        """While active, the linear layers leave out what the setting says, in all calls. On exit the model is what it
        was; meanwhile it can be neither copied nor pickled.

        Args:
            model: the model that the setting is for.

        Raises:
            ValueError: the model has no such sites, they are of other sizes, or their forwards are replaced already.
        """
        return self.prepared(model)()

    def prepared(self, model: nn.Module, packs: Packs | None = None) -> Callable[[], AbstractContextManager[None]]:
        """Pack the weights once, for a model that is to change between dense and this many times.

        Args:
            model: see :meth:`apply`.
            packs: weights that were packed before; what is missing is added.

        Returns:
            What :meth:`apply` does; the weights must not change meanwhile.
        """
        where = self.check(model)
        inputs, weights = self._parsed()
        known: Packs = {} if packs is None else packs
        for site, method in weights.items():
            if (site, method.name) not in known:
                known[site, method.name] = pack(where[site].module, method, self._statistics(site))
        reads = [(where[site].module, known[site, method.name]) for site, method in weights.items()]
        plan = Calibrated(BySite(tuple(inputs.items())), self.thresholds) if inputs else None

        @contextmanager
        def switched() -> Iterator[None]:
            with ExitStack() as undo:
                read_packed(reads, undo)
                if plan is not None:
                    undo.enter_context(plan.apply(model))
                yield

        return switched

    def check(self, model: nn.Module) -> dict[str, Place]:
        """The sites in a model.

        Args:
            model: see :meth:`apply`.

        Raises:
            ValueError: the model has no such sites, or they are of other sizes.
        """
        found = {place.name: place for place in places(model, lambda layer, name: f"{layer}.{name}" in self.methods)}
        if missing := [site for site in self.methods if site not in found]:
            raise ValueError(
                f"LinearSetting: every site must be in the model: {missing[0]} is not, of {type(model).__name__}; take "
                "the model that the setting was made for"
            )
        for kind, least in (("thresholds", 1), ("norms", None)):
            for site, numbers in getattr(self, kind).items():
                inputs = size(found[site].module)[0] if site in found else len(numbers)
                if len(numbers) not in (least, inputs):
                    raise ValueError(
                        f"LinearSetting: {kind} of {site} must be as many as it has inputs, {inputs}: got "
                        f"{len(numbers)}; take the model that the setting was made for"
                    )
        return found

    def plain(self) -> dict[str, Any]:
        """The arguments as JSON can hold them. Numbers are of float32, and come back as they were."""
        numbers = {
            kind: {site: [_short(number) for number in its] for site, its in getattr(self, kind).items()}
            for kind in ("thresholds", "norms")
        }
        return {"methods": dict(self.methods), **numbers}

    def _parsed(self) -> tuple[dict[str, ActivationSparsity], dict[str, NMWeights]]:
        """The methods that choose inputs, and those that choose weights."""
        inputs: dict[str, ActivationSparsity] = {}
        weights: dict[str, NMWeights] = {}
        for site, name in self.methods.items():
            method = parse(name)
            if isinstance(method, ActivationSparsity):
                inputs[site] = method
            elif isinstance(method, NMWeights) and (method.n, method.m) in _PACKED and method.refinement is None:
                weights[site] = method
            else:
                raise TypeError(
                    f"LinearSetting: {site} must have a method that chooses inputs, or N:M weights of 1:2, 1:4, 2:4 or "
                    f"3:4 without a refinement: got {name!r}; try 'teal-0.5' or 'nmweight-2-4'"
                )
        return inputs, weights

    def _statistics(self, site: str) -> InputStatistics | None:
        """What stands for the norms of a site's inputs."""
        if site not in self.norms:
            return None
        norms = torch.tensor(self.norms[site], dtype=torch.float64, device="cpu")
        return InputStatistics(1, torch.zeros_like(norms), norms.square())


def _short(number: float) -> float:
    """The number with as many digits as float32 has."""
    return float(f"{number:.9g}")
