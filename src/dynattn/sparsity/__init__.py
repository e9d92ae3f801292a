"""Weights of the linear layers around attention that are 0: fixed for all inputs, chosen before the call.

from dynattn.sparsity import Magnitude

with Magnitude(0.5).apply(model):
    output = model(**inputs)
"""

from __future__ import annotations

from dynattn.sparsity.base import Kept, WeightSparsity
from dynattn.sparsity.magnitude import Magnitude
from dynattn.sparsity.nm import NMWeights
from dynattn.sparsity.random import RandomWeights
from dynattn.sparsity.registry import find, parse, register

__all__ = ["Kept", "Magnitude", "NMWeights", "RandomWeights", "WeightSparsity", "find", "parse", "register"]

for _method in (Magnitude, NMWeights, RandomWeights):
    register(_method)
