"""WINA: each token keeps the inputs of a linear layer with the largest size times length of their weights.

    E_i = 1    for the k largest |x_i| ‖W[:, i]‖ of a row,    k = round(keep · in);  ties go to the lower index

Each layer by its own weights. Where the columns of W are orthogonal, no other k inputs leave a smaller error. The
rotation by which the paper makes them so, with its d × d matrix on every residual connection, is left out.

Source: arXiv:2505.19427.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.maths.selection import largest
from dynattn.methods import share
from dynattn.sparsity.activations import ActivationSparsity
from dynattn.sparsity.sites import Site

_NAME = re.compile(rf"wina-(?P<keep>{share.NUMBER})")


@final
@dataclass(frozen=True)
class WINA(ActivationSparsity):
    """Keep the inputs of the largest weighted size, an exact share of each row.

    Args:
        keep_ratio: the share of the inputs that stay, between 1e-6 and 1; 1 less the paper's sparsity.

    Raises:
        TypeError: it is not a float.
        ValueError: it is out of its range.
    """

    keep_ratio: float

    def __post_init__(self) -> None:
        share.check("WINA", self.keep_ratio, "keep_ratio")

    @property
    def name(self) -> str:
        """``wina-KEEP``."""
        return f"wina-{share.text(self.keep_ratio)}"

    @classmethod
    def from_name(cls, name: str) -> WINA | None:
        match = _NAME.fullmatch(name)
        return cls(float(match["keep"])) if match else None

    @property
    def keeps_everything(self) -> bool:
        """True where the share is 1."""
        return self.keep_ratio == 1

    def keep(self, x: Tensor, site: Site) -> Tensor:
        """The largest of each row, and every NaN."""
        scores = site.scores(x)
        return largest(scores, round(share.exact(self.keep_ratio) * x.shape[-1])) | scores.isnan()
