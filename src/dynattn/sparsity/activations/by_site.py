"""A method for each linear layer by itself, as a search finds them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import final

from dynattn.methods import grammar
from dynattn.sparsity.activations.base import ActivationPlan, ActivationSparsity
from dynattn.sparsity.registry import find
from dynattn.sparsity.sites import PROJECTIONS, named

_WORD = "bysite"
_SITE = re.compile(rf"(?P<layer>\d+)\.(?P<projection>{'|'.join(PROJECTIONS)})")


@final
@dataclass(frozen=True)
class BySite(ActivationPlan):
    """Methods by the names of sites; linear layers that are not named stay dense.

        BySite((("0.gate", NMActivations(1, 2)), ("0.up", NMActivations(1, 2)), ("3.down", WINA(0.5))))

    By name ``bysite(nmact-1-2=0.gate+0.up_wina-0.5=3.down)`` (quote it in a shell).

    Args:
        methods: pairs of a :attr:`Site.name <dynattn.sparsity.Site>` and its method; kept in the order of their names.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: there is no site, one comes twice, is none, or its method has nothing to choose there.
    """

    methods: tuple[tuple[str, ActivationSparsity], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.methods, tuple) or not self.methods:
            raise ValueError(
                f"BySite: methods must be a tuple of pairs, one at least: got {self.methods!r}; try "
                "BySite((('0.down', WINA(0.5)),))"
            )
        known: set[str] = set()
        for site, method in self.methods:
            match = _SITE.fullmatch(site) if isinstance(site, str) else None
            if match is None:
                raise ValueError(
                    f"BySite: a site must be a layer and a projection, as in '3.down': got {site!r}; known are "
                    f"{', '.join(PROJECTIONS)}"
                )
            if not isinstance(method, ActivationSparsity):
                raise TypeError(f"BySite: {site} must have a method that chooses inputs: got {method!r}; try WINA(0.5)")
            if method.at(int(match["layer"]), match["projection"]) is None:
                raise ValueError(f"BySite: {site} must be where its method chooses: {method.name} has no place there")
            if site in known:
                raise ValueError(f"BySite: each site must come once: {site} comes twice; leave one of them out")
            known.add(site)
        object.__setattr__(self, "methods", tuple(sorted(self.methods, key=_order)))

    @property
    def name(self) -> str:
        """``bysite(METHOD=SITE+SITE_METHOD=…)``."""
        sites: dict[str, list[str]] = {}
        for site, method in self.methods:
            sites.setdefault(method.name, []).append(site)
        parts = ["=".join((method, "+".join(its))) for method, its in sites.items()]
        return f"{_WORD}({'_'.join(parts)})"

    @classmethod
    def from_name(cls, name: str) -> BySite | None:
        inner = grammar.inside(name, _WORD)
        if inner is None:
            return None
        pairs = []
        for entry in grammar.split(inner, "_"):
            named_as, found, sites = entry.partition("=")
            method = find(named_as)
            if not found or not isinstance(method, ActivationSparsity):
                raise ValueError(
                    f"BySite: a part must be a method that chooses inputs, and its sites: got {entry!r} in {name!r}; "
                    "try wina-0.5=0.q+3.down"
                )
            pairs += [(site, method) for site in sites.split("+")]
        return cls(tuple(pairs))

    @property
    def needs_thresholds(self) -> bool:
        """Whether one of the methods must be calibrated."""
        return any(method.needs_thresholds for _, method in self.methods)

    def at(self, layer: int, projection: str) -> ActivationSparsity | None:
        """The method of the site; None where it has none."""
        return self._by_name.get(named(layer, projection))

    @cached_property
    def _by_name(self) -> dict[str, ActivationSparsity]:
        return dict(self.methods)


def _order(pair: tuple[str, ActivationSparsity]) -> tuple[str, int, int]:
    """By method, then as the sites run."""
    site, method = pair
    layer, _, projection = site.partition(".")
    return method.name, int(layer), PROJECTIONS.index(projection)
