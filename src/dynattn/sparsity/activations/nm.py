"""N:M activations: of every M inputs of a linear layer, each token keeps the N with the largest scores.

    σ_i = |x_i| c_i,    c_i = 1  or  ‖W[:, i]‖        y = (x ∘ E) Wᵀ + b,    E = NM(σ)

The groups and the rule are those of N:M attention (:mod:`dynattn.methods.nm`), along the inputs. A last group of r < M
inputs keeps min(N, r). Layers that read the same input (queries, keys and values; gate and up) share one choice, with
``c_i² = Σ ‖W[:, i]‖²`` over them: this project's own choice, so that an input is compressed once.

Source: Amber Pruner, arXiv:2508.02128, and arXiv:2509.22166; the norms are WINA's, arXiv:2505.19427.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

import torch
from torch import Tensor

from dynattn.kernels.cpu.linear_calls import CHOICE_MS
from dynattn.methods.nm import NM
from dynattn.ops.linear import linear_nm_act, nm_keep
from dynattn.sparsity.activations.base import ActivationSparsity
from dynattn.sparsity.sites import Site
from dynattn.sparsity.weights.nm import best

_NAME = re.compile(r"nmact-(?P<n>\d+)-(?P<m>\d+)(?:-x(?P<stride>\d+))?(?P<norm>-norm)?")


@final
@dataclass(frozen=True)
class NMActivations(ActivationSparsity):
    """Keep the N largest of every M inputs of each linear layer, chosen for each token.

    Args:
        n: inputs kept in each group, 1 <= n <= m.
        m: inputs in a group, 1 <= m <= 32.
        stride: how far apart the inputs of a group stand, as in :class:`dynattn.NM`: with one, strong neighbours do not
            compete for one place.
        norm: whether an input counts by its size times the length of its weights, and not by its size alone.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.
    """

    n: int = 8
    m: int = 16
    stride: int = 1
    norm: bool = False

    shares_choice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        try:
            NM(self.n, self.m, stride=self.stride)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("NM", "NMActivations")) from None
        if not isinstance(self.norm, bool):
            raise TypeError(f"NMActivations: norm must be a bool: got {self.norm!r}; True weighs inputs by their norms")

    @property
    def name(self) -> str:
        """``nmact-N-M``, with ``-xSTRIDE`` and ``-norm`` where they are set."""
        stride = f"-x{self.stride}" if self.stride > 1 else ""
        return f"nmact-{self.n}-{self.m}{stride}{'-norm' if self.norm else ''}"

    @classmethod
    def from_name(cls, name: str) -> NMActivations | None:
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(int(match["n"]), int(match["m"]), int(match["stride"] or 1), match["norm"] is not None)

    @property
    def keeps_everything(self) -> bool:
        """True where N == M."""
        return self.n == self.m

    def keep(self, x: Tensor, site: Site) -> Tensor:
        """The N largest of each group, and every NaN."""
        if self._has_kernel(site) and x.is_cpu and x.dtype in (torch.float32, torch.bfloat16):
            return nm_keep(x, n=self.n, m=self.m, factors=site.norms if self.norm else None)
        scores = site.scores(x) if self.norm else x.abs()
        return best(scores, self.n, self.m, self.stride) | scores.isnan()

    def fused(self, site: Site) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
        """The kernel chooses as it multiplies, where it knows the groups."""
        if not self._has_kernel(site):
            return None
        return partial(linear_nm_act, n=self.n, m=self.m, factors=site.norms if self.norm else None)

    def _has_kernel(self, site: Site) -> bool:
        """Whether the kernels know these groups and weights."""
        groups = self.n < self.m and self.m in CHOICE_MS and self.stride == 1
        return groups and site.norms.is_cpu and site.norms.dtype == torch.float32
