"""WINA: each token keeps the inputs of a linear layer with the largest size times length of their weights.

    E_i = 1    for the k largest |x_i| ‖W[:, i]‖ of a row,    k = round(keep · in);  ties go to the lower index

Each layer by its own weights. Where the columns of W are orthogonal, no other k inputs leave a smaller error. The
rotation by which the paper makes them so, with its d × d matrix on every residual connection, is left out.

Source: arXiv:2505.19427.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from dynattn.maths.selection import largest
from dynattn.methods import share
from dynattn.sparsity.activations.base import ByShare
from dynattn.sparsity.sites import Site


@final
@dataclass(frozen=True)
class WINA(ByShare):
    """Keep the inputs of the largest weighted size, an exact share of each row.

    Args:
        keep_ratio: the share of the inputs that stay, between 1e-6 and 1; 1 less the paper's sparsity.

    Raises:
        TypeError: it is not a float.
        ValueError: it is out of its range.
    """

    keep_ratio: float

    word: ClassVar[str] = "wina"

    def keep(self, x: Tensor, site: Site) -> Tensor:
        """The largest of each row, and every NaN."""
        scores = site.scores(x)
        return largest(scores, round(share.exact(self.keep_ratio) * x.shape[-1])) | scores.isnan()
