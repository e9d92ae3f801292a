"""Weights of the linear layers around attention that are 0: fixed for all inputs, chosen before the call.

    from dynattn.sparsity import Magnitude, NMWeights, calibrate

    with Magnitude(0.5).apply(model):
        output = model(**inputs)
    with NMWeights(2, 4, score="wanda").apply(model, calibrate(model, batches)):
        output = model(**inputs)

:mod:`dynattn.sparsity.training` chooses them anew at every step of a training.
"""

from __future__ import annotations

from dynattn.sparsity.base import Kept, WeightSparsity
from dynattn.sparsity.calibration import InputStatistics, calibrate
from dynattn.sparsity.dsnot import DSnoT
from dynattn.sparsity.magnitude import Magnitude
from dynattn.sparsity.nm import NMWeights
from dynattn.sparsity.random import RandomWeights
from dynattn.sparsity.registry import find, parse, register
from dynattn.sparsity.wanda import Wanda

__all__ = [
    "DSnoT", "InputStatistics", "Kept", "Magnitude", "NMWeights", "RandomWeights", "Wanda", "WeightSparsity",
    "calibrate", "find", "parse", "register",
]  # fmt: skip

for _method in (Magnitude, NMWeights, RandomWeights, Wanda):
    register(_method)
