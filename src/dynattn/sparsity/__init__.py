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

from dynattn.sparsity.activations.allocate import allocate
from dynattn.sparsity.activations.base import ActivationPlan, ActivationSparsity
from dynattn.sparsity.activations.by_site import BySite
from dynattn.sparsity.activations.calibrated import Calibrated
from dynattn.sparsity.activations.certificate import bound, kept_share
from dynattn.sparsity.activations.chess import CHESS
from dynattn.sparsity.activations.combined import Sparsity
from dynattn.sparsity.activations.nm import NMActivations
from dynattn.sparsity.activations.observe import Chosen, Seen, observing, watching
from dynattn.sparsity.activations.teal import TEAL
from dynattn.sparsity.activations.thresholded import Thresholded
from dynattn.sparsity.activations.thresholds import calibrate_thresholds
from dynattn.sparsity.activations.wina import WINA
from dynattn.sparsity.method import SparsityMethod
from dynattn.sparsity.registry import find, parse, register
from dynattn.sparsity.setting import LinearSetting
from dynattn.sparsity.sites import Site
from dynattn.sparsity.weights.base import Kept, WeightSparsity
from dynattn.sparsity.weights.calibration import InputStatistics, calibrate
from dynattn.sparsity.weights.dsnot import DSnoT
from dynattn.sparsity.weights.magnitude import Magnitude
from dynattn.sparsity.weights.nm import NMWeights
from dynattn.sparsity.weights.random import RandomWeights
from dynattn.sparsity.weights.wanda import Wanda

__all__ = [
    "CHESS", "TEAL", "WINA", "ActivationPlan", "ActivationSparsity", "BySite", "Calibrated", "Chosen", "DSnoT",
    "InputStatistics", "Kept", "LinearSetting", "Magnitude", "NMActivations", "NMWeights", "RandomWeights", "Seen",
    "Site", "Sparsity", "SparsityMethod", "Thresholded", "Wanda", "WeightSparsity", "allocate", "bound", "calibrate",
    "calibrate_thresholds", "find", "kept_share", "observing", "parse", "register", "watching",
]  # fmt: skip

for _method in (
    Magnitude, NMWeights, RandomWeights, Wanda, NMActivations, WINA, TEAL, CHESS, Sparsity, BySite,
):  # fmt: skip
    register(_method)
