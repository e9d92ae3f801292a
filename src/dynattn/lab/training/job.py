"""The numbers of one training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dynattn.lab.figures import BASELINE
from dynattn.lab.training.named import known
from dynattn.sparsity.training import DensityLoss

_AT_LEAST_ONE = ("steps", "batch", "evaluate_every", "save_every")


@final
@dataclass(frozen=True)
class Job:
    """One run: AdamW, a linear warm-up and a linear decay to zero, gradients clipped to norm 1.

    Args:
        method: what attention keeps, or what takes its place, a short name; ``sdpa`` for PyTorch's dense attention. Or,
            with dense attention, what becomes of the weights: ``sr-ste-2-4``, ``nmweight-2-4``.
        seed: the seed of the order of the data, of dropout, and of the weights where a model starts from scratch.
        steps: the number of steps of the optimizer.
        batch: the number of examples in a step, over all processes.
        learning_rate: the learning rate at its highest.
        warmup: the share of the steps in which the learning rate rises.
        weight_decay: the weight decay of AdamW.
        evaluate_every: steps between two points of the learning curve.
        save_every: steps between two checkpoints.
        density_loss: the weight of :class:`dynattn.sparsity.training.DensityLoss` in the loss; None for none.
        density_epsilon: the ε of it; None for its default.
    """

    method: str
    seed: int
    steps: int
    batch: int
    learning_rate: float
    warmup: float = 0.1
    weight_decay: float = 0.0
    evaluate_every: int = 10
    save_every: int = 10
    density_loss: float | None = None
    density_epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.method != BASELINE:
            known(self.method)
        for field in _AT_LEAST_ONE:
            if getattr(self, field) < 1:
                raise ValueError(f"Job: {field} must be at least 1: got {getattr(self, field)}; leave it out")
        if self.learning_rate <= 0 or self.weight_decay < 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                "Job: learning_rate must be positive, weight_decay not negative, warmup in [0, 1): got "
                f"{self.learning_rate}, {self.weight_decay}, {self.warmup}; 3e-5, 0 and 0.1 are usual"
            )
        if self.density is None and self.density_epsilon is not None:
            raise ValueError(
                f"Job: density_epsilon must come with density_loss: got {self.density_epsilon} alone; give both"
            )

    @property
    def density(self) -> DensityLoss | None:
        """The penalty on dense activations, None where none is asked for."""
        if self.density_loss is None:
            return None
        epsilon = {} if self.density_epsilon is None else {"epsilon": self.density_epsilon}
        return DensityLoss(self.density_loss, **epsilon)

    @property
    def name(self) -> str:
        """The name of the run and of its folder."""
        return f"{self.method}-seed{self.seed}"
