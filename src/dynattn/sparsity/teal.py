"""TEAL: inputs of a linear layer whose size is above one threshold of the layer.

    E_i = 1  ⇔  |x_i| > t,    t the (1 - keep) quantile of |x| on calibration inputs, a number for each layer

Source: arXiv:2408.14690; the quantiles are exact here, over all tokens and inputs of the dense model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from dynattn.methods import share
from dynattn.sparsity.thresholded import Thresholded

_NAME = re.compile(rf"teal-(?P<keep>{share.NUMBER})")


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

    strict: ClassVar[bool] = True

    def __post_init__(self) -> None:
        share.check("TEAL", self.keep_ratio, "keep_ratio")

    @property
    def name(self) -> str:
        """``teal-KEEP``."""
        return f"teal-{share.text(self.keep_ratio)}"

    @classmethod
    def from_name(cls, name: str) -> TEAL | None:
        match = _NAME.fullmatch(name)
        return cls(float(match["keep"])) if match else None

    def factors(self, norms: Tensor, means: Tensor | None) -> Tensor | None:
        """None: sizes alone count."""
        return None
