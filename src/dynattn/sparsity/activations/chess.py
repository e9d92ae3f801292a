"""CHESS: neurons of an MLP whose gate is above the neuron's own threshold.

    y = W_down (a_up ∘ a_gate),    a_gate = act(W_gate x),    a_up = W_up x

    J = { i : |a_gate_i| ≥ t_i },    t_i = T / μ_i,    μ_i = E|a_up_i|
    y = Σ_{i in J} a_gate_i a_up_i W_down[:, i],       a_up_i computed for i in J alone

T is the (1 - keep) quantile of |a_gate_i| μ_i over tokens and neurons, a number for each MLP. Of an MLP without a gate,
``y = W_out act(W_in x)``, the neurons with ``|a_i| ≥ T / ‖W_out[:, i]‖`` stay: this project's own choice, which spares
W_out alone.

Source: arXiv:2409.01366. That is its part for MLPs; what the paper adds for attention is TEAL in ``q`` and ``o``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from dynattn.sparsity.activations.base import ActivationSparsity
from dynattn.sparsity.activations.thresholded import Thresholded


@final
@dataclass(frozen=True)
class CHESS(Thresholded):
    """Compute the neurons of each MLP that the gate asks for. Attention is left dense.

    It must be calibrated: ``calibrate_thresholds(CHESS(0.5), model, inputs).apply(model)``.

    Args:
        keep_ratio: the share of the neurons that stay on calibration inputs, between 1e-6 and 1.

    Raises:
        TypeError: it is not a float.
        ValueError: it is out of its range.
    """

    keep_ratio: float

    word: ClassVar[str] = "chess"
    strict: ClassVar[bool] = False
    chooses_neurons: ClassVar[bool] = True

    def at(self, layer: int, projection: str) -> ActivationSparsity | None:
        """Itself, where the neurons are read."""
        return self if projection in ("down", "out") else None

    def factors(self, norms: Tensor, means: Tensor | None) -> Tensor | None:
        """What the gate multiplies, on average; without a gate the norms."""
        return norms if means is None else means
