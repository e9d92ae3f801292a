"""Linear layers that leave something out: weights that are 0 for all inputs, or inputs chosen anew for each token.

    from dynattn.sparsity import Magnitude, NMActivations, NMWeights, calibrate

    with Magnitude(0.5).apply(model):
        output = model(**inputs)
    with NMWeights(2, 4, score="wanda").apply(model, calibrate(model, batches)):
        output = model(**inputs)
    with NMActivations(8, 16, norm=True).apply(model):
        output = model(**inputs)

:mod:`dynattn.sparsity.training` chooses weights anew at every step of a training.
"""

from __future__ import annotations

from dynattn.sparsity.activations import ActivationPlan, ActivationSparsity
from dynattn.sparsity.allocate import allocate
from dynattn.sparsity.base import Kept, WeightSparsity
from dynattn.sparsity.calibrated import Calibrated
from dynattn.sparsity.calibration import InputStatistics, calibrate
from dynattn.sparsity.certificate import bound, kept_share
from dynattn.sparsity.chess import CHESS
from dynattn.sparsity.combined import Sparsity
from dynattn.sparsity.dsnot import DSnoT
from dynattn.sparsity.magnitude import Magnitude
from dynattn.sparsity.method import SparsityMethod
from dynattn.sparsity.nm import NMWeights
from dynattn.sparsity.nm_activations import NMActivations
from dynattn.sparsity.observe import Chosen, Seen, observing, watching
from dynattn.sparsity.random import RandomWeights
from dynattn.sparsity.registry import find, parse, register
from dynattn.sparsity.sites import Site
from dynattn.sparsity.teal import TEAL
from dynattn.sparsity.thresholded import Thresholded
from dynattn.sparsity.thresholds import calibrate_thresholds
from dynattn.sparsity.wanda import Wanda
from dynattn.sparsity.wina import WINA

__all__ = [
    "CHESS", "TEAL", "WINA", "ActivationPlan", "ActivationSparsity", "Calibrated", "Chosen", "DSnoT", "InputStatistics",
    "Kept", "Magnitude", "NMActivations", "NMWeights", "RandomWeights", "Seen", "Site", "Sparsity", "SparsityMethod",
    "Thresholded", "Wanda", "WeightSparsity", "allocate", "bound", "calibrate", "calibrate_thresholds", "find",
    "kept_share", "observing", "parse", "register", "watching",
]  # fmt: skip

for _method in (Magnitude, NMWeights, RandomWeights, Wanda, NMActivations, WINA, TEAL, CHESS, Sparsity):
    register(_method)
