"""What may be done with the masks of a model.

Transformers makes masks for a config, not for a module: what is made has to be right for every module that reads it.
Attention of a model's own adds its mask to the scores, and knows nothing of a mask that was left out because
``module.is_causal`` says it all. Only classes that declare ``_supports_sdpa`` have promised to keep to that.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Contract(IntEnum):
    """What masks for a kind of config must be like, the least demanding first.

    Attributes:
        SDPA: as Transformers' ``sdpa`` has them: bool, and left out where ``module.is_causal`` says the same.
        SHOWN: bool, and left out only where everything may be attended to: no module says that it is causal.
        WHOLE: bool, never left out: the model's code asks whether it runs ``sdpa`` before it relies on them.
        ADDED: floating point, to be added, never left out: right for every module, as ``eager`` masks are.
    """

    SDPA = 0
    SHOWN = 1
    WHOLE = 2
    ADDED = 3


_contracts: dict[type, Contract] = {}  # by the config's class
_eager_alone: set[type] = set()  # configs of models to which a missing mask means: attend to everything


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
    """The contract for a config; that of unknown ones is the one that is right for every module."""
    return _contracts.get(type(config), Contract.ADDED)


def eager_alone(config: Any) -> bool:
    """Whether a missing mask means that everything may be attended to, whatever ``module.is_causal`` says."""
    return type(config) in _eager_alone
