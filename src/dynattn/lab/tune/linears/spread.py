"""Settings that spread methods over linear layers: a knapsack over units, its path cut into a few of them.

Of all units and methods, the path takes first what harms least for the seconds that it saves
(:mod:`dynattn.lab.tune.solve`). How far along it the limits are kept is for measurements to tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dynattn.lab.tune import solve
from dynattn.lab.tune.linears.clock import DENSE, FASTER
from dynattn.lab.tune.linears.units import Unit

_SHARES = (0.06, 0.12, 0.2, 0.3, 0.45, 0.65, 1.0)  # of what the whole path saves
"""Close together where a small loss is looked for."""


def spread(
    units: Sequence[Unit], seconds: Mapping[str, Mapping[str, float]], harm: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[dict[str, str]]:
    """Methods by site, the mildest setting first; none where no method is faster.

    Args:
        units: what may be given a method.
        seconds: by method, ``dense`` among them, and by kind.
        harm: by method and kind, of each layer; a method is no candidate for kinds that it does not have.
    """
    names = list(harm)
    took, harms = np.full((2, len(units), len(names) + 1), np.inf)
    harms[:, 0] = 0.0
    for at, unit in enumerate(units):
        dense = took[at, 0] = seconds[DENSE].get(unit.kind, 0.0)
        for option, name in enumerate(names, 1):
            its = seconds[name].get(unit.kind, np.inf)
            if unit.kind in harm[name] and its < FASTER * dense:
                took[at, option], harms[at, option] = its, harm[name][unit.kind][unit.layer]
    moves = solve.path(took, harms)
    saved = np.cumsum([move.saved for move in moves])
    counts = {int(np.searchsorted(saved, share * saved[-1] * (1 - 1e-9))) + 1 for share in _SHARES} if moves else set()
    return [
        {
            site: names[option - 1]
            for unit, option in zip(units, solve.at(moves, len(units), count), strict=True)
            if option
            for site in unit.sites
        }
        for count in sorted(counts)
    ]
