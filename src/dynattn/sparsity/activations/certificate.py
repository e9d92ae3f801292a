"""By how much a product may change where inputs of a linear layer are left out, without computing it.

    ρ          = Σ_kept σ_i / Σ σ_i,    σ_i = |x_i| ‖W[:, i]‖        the kept share, the twin of the kept mass
    ‖y - ỹ‖    ≤ Σ_dropped σ_i                                      for every row
    ‖y - ỹ‖²   = Σ_dropped σ_i²                                     where the columns of W are orthogonal

This project's own derivation: y - ỹ is the sum of the dropped columns, each times its input.
"""

from __future__ import annotations

from torch import Tensor


def kept_share(x: Tensor, keep: Tensor, norms: Tensor) -> Tensor:
    """The share of ``Σ |x_i| ‖W[:, i]‖`` that is kept.

    Args:
        x: (tokens, in), the whole input.
        keep: (tokens, in) bool.
        norms: (in,), ``‖W[:, i]‖``.

    Returns:
        (tokens,), from 0 to 1; 1 for a row that is 0.
    """
    sizes = x.abs() * norms.to(x.device)
    whole = sizes.sum(-1)
    return (sizes.masked_fill(~keep, 0).sum(-1) / whole).masked_fill(whole == 0, 1)


def bound(x: Tensor, keep: Tensor, norms: Tensor) -> Tensor:
    """No row of the product is further from the whole one, in Euclidean distance.

    Args:
        x, keep, norms: as :func:`kept_share`.

    Returns:
        (tokens,).
    """
    return (x.abs() * norms.to(x.device)).masked_fill(keep, 0).sum(-1)
