"""The kinds of masks that a model can work with.

Transformers makes masks for a config and not for a module, so a mask has to be right for every module that reads the
config. A model's own attention adds its mask to the scores; if the mask is left out because ``module.is_causal`` says
the same, such attention is wrong. Only classes that declare ``_supports_sdpa`` have promised to look at ``is_causal``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Contract(IntEnum):
    """What the masks for a class of configs must be like, the least demanding first.

    Attributes:
        SDPA: the masks of Transformers' ``sdpa``: bool, and left out where ``module.is_causal`` says the same.
        WHOLE: bool, and never left out, since the model's code relies on a missing mask only where it sees that it runs
            ``sdpa``.
        ADDED: floating point, to be added, and never left out; like ``eager`` masks, they are right for every module.
    """

    SDPA = 0
    WHOLE = 1
    ADDED = 2


_contracts: dict[type, Contract] = {}  # the contract of each class of configs
_eager_alone: set[type] = set()  # classes of configs whose models take a missing mask to mean: attend to everything


def note(kind: type, contract: Contract, sdpa: bool) -> None:
    """Remember what a model with configs of this class needs; the most demanding model counts.

    Args:
        kind: the config's class.
        contract: what its masks must be like.
        sdpa: whether the model declares that it runs ``sdpa``.
    """
    _contracts[kind] = max(contract, _contracts.get(kind, contract))
    if not sdpa:
        _eager_alone.add(kind)


def of(config: Any) -> Contract:
    """The contract for a config. For an unknown config it is the one that is right for every module."""
    return _contracts.get(type(config), Contract.ADDED)


def eager_alone(config: Any) -> bool:
    """Whether a missing mask means that everything may be attended to, whatever ``module.is_causal`` says."""
    return type(config) in _eager_alone
