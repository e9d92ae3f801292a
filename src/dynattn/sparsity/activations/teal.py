"""TEAL: inputs of a linear layer whose size is above one threshold of the layer.

    E_i = 1  ⇔  |x_i| > t,    t the (1 - keep) quantile of |x| on calibration inputs, a number for each layer

Source: arXiv:2408.14690; the quantiles are exact here, over all tokens and inputs of the dense model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from dynattn.sparsity.activations.thresholded import Thresholded


@final
@dataclass(frozen=True)
class TEAL(Thresholded):
    """Keep the inputs of each linear layer that are larger than a threshold.

    It must be calibrated: ``calibrate_thresholds(TEAL(0.5), model, inputs).apply(model)``.

    Args:
        keep_ratio: the share of the inputs that stay on calibration inputs, between 1e-6 and 1.

    Raises:
        TypeError: it is not a float.
        ValueError: it is out of its range.
    """

    keep_ratio: float

    word: ClassVar[str] = "teal"
    strict: ClassVar[bool] = True

    def factors(self, norms: Tensor, means: Tensor | None) -> Tensor | None:
        """None: sizes alone count."""
        return None
