"""The base class of methods that compare sizes with thresholds, which calibration finds on some inputs of a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dynattn.methods import share
from dynattn.ops.linear import linear_threshold
from dynattn.sparsity.activations.base import ByShare
from dynattn.sparsity.sites import Site


class Thresholded(ByShare):
    """A method that keeps ``|x_i|`` above ``t_i``, or at it: :func:`dynattn.sparsity.calibrate_thresholds` finds it.

    Attributes:
        strict: whether what is equal to the threshold is dropped.
    """

    strict: ClassVar[bool]

    @property
    def needs_thresholds(self) -> bool:
        """True where it drops anything."""
        return not self.keeps_everything

    @abstractmethod
    def factors(self, norms: Tensor, means: Tensor | None) -> Tensor | None:
        """What the sizes are weighed by when their quantile is taken; thresholds are divided by it.

        Args:
            norms: (in,), ``‖W[:, i]‖``.
            means: (in,), of an MLP with a gate the mean size of what each neuron's gate multiplies; None elsewhere.

        Returns:
            (in,), or None where all count alike and one threshold serves all.
        """

    def keep(self, x: Tensor, site: Site) -> Tensor:
        """What is above the thresholds, and every NaN."""
        sizes, least = x.abs(), site.threshold(type(self).__name__).to(x.device)
        return (sizes > least if self.strict else sizes >= least) | sizes.isnan()

    def fused(self, site: Site) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """The kernel compares with the thresholds themselves; what is equal stays above the number before them."""
        least = site.threshold(type(self).__name__)
        if not self.strict:
            least = least.nextafter(least.new_tensor(-torch.inf))
        return partial(linear_threshold, thresholds=least)

    def dropped(self, count: int) -> int:
        """How many of so many values are to be dropped."""
        return count - round(share.exact(self.keep_ratio) * count)
