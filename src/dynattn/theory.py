"""Formulas for how much attention a choice keeps, and how large its error is, when scores are Gaussian.

Scores of a row are modelled as independent draws ``s ~ N(0, σ²)``; the mean of a row cancels in the softmax, so σ is
the only parameter. A row's kept mass is ``ρ = Σ_kept e^s / Σ e^s``. In the limit of long rows it tends to
``E[e^s; kept] / E[e^s]``, and since weighting N(0, σ²) by e^s gives N(σ², σ²), with z = s/σ:

    ρ  = P(a draw z ~ N(σ, 1) is kept among draws of N(0, 1))

    N:M      ρ = ∫ φ(z - σ) P(Binomial(M - 1, Φ(-z)) < N) dz,    for 1:2  ρ = Φ(σ/√2)
    top-k    ρ = Φ(σ - Φ⁻¹(1 - r)),  r the keep ratio: no mask of density r keeps more
    a mask that does not look at the scores    ρ = r

The worst case of N:M is N/M, whatever the scores: each group keeps at least its share.

Of the inputs of a linear layer, the share of their squares that a choice by size keeps, for independent entries with
density f and U(x) = P(|X| > x):

    N:M      ∫ x² f(x) P(Binomial(M - 1, U(|x|)) < N) dx / E[X²],    for 1:2 and normal entries  (1 + 2/π) / 2
    top      ∫ x² f(x) 1{U(|x|) < r} dx / E[X²]

Source: N:M attention and the question are from arXiv:2203.00091; the tilting argument, the finite-length integral and
the error formula are derived in docs/theory.md.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from dynattn.methods.nm import NM

Entries = Literal["normal", "laplace"]
"""How the inputs of a linear layer are distributed."""

_TAIL = 9.0  # Φ(-9) = 1e-19: nothing lies beyond in float64
_STEP = 0.05  # trapezoid rule on a smooth function that vanishes at both ends: 1e-15 already at twice this step


def kept_mass(method: NM, sigma: float | Tensor, kv_len: int | Tensor | None = None) -> Tensor:
    """Expected kept mass of N:M attention for scores ``s ~ N(0, σ²)``, independent.

        kv_len None:  E[Σ_kept e^s] / E[Σ e^s],  the limit of long rows
        kv_len L:     E[Σ_kept e^s / Σ e^s],  the mean that rows of L keys have

    The two differ by about ``e^{σ²} / L``: the limit is accurate for rows much longer than ``e^{σ²}`` (55 keys at
    σ = 2, 8000 at σ = 3), the finite form for all, last groups of fewer than M keys included.

    Args:
        method: its n and m count, and its stride for the sizes of a row's last groups. Window and sinks do not: in a
            row with share f of its keys in them, the kept mass is ``f + (1 - f) ρ``.
        sigma: standard deviation of a row's scores, not negative; any shape.
        kv_len: keys that a row may attend, at least 1; broadcasts with ``sigma``. None for the limit of long rows.

    Returns:
        float64, of the broadcast shape. Error below 1e-8 in the limit form, below 1e-6 in the finite one for σ up to 6.

    Raises:
        TypeError: ``method`` is not an NM.
        ValueError: a sigma is negative or not finite, or a kv_len below 1.

    Source: the model is this library's; the method arXiv:2203.00091.
    """
    if not isinstance(method, NM):
        raise TypeError(f"kept_mass: method must be an NM such as NM(2, 4): got {method!r}")
    sigmas = _check_sigma("kept_mass", sigma)
    if kv_len is None:
        return _limit(method, sigmas)
    lengths = torch.as_tensor(kv_len, device="cpu")
    if lengths.is_floating_point() or bool((lengths < 1).any()):
        raise ValueError(f"kept_mass: kv_len must be a whole number of keys, at least 1: got {kv_len}")
    sigmas, lengths = torch.broadcast_tensors(sigmas, lengths)
    out = torch.empty(sigmas.shape, dtype=torch.float64, device="cpu")
    for one in sigmas.unique():  # one integral serves all lengths
        out[sigmas == one] = _finite(method, float(one), lengths[sigmas == one])
    return out


def top_kept_mass(keep_ratio: float, sigma: float | Tensor) -> Tensor:
    """Expected kept mass of keeping the largest ``keep_ratio`` of each row, for scores ``s ~ N(0, σ²)``.

        ρ = Φ(σ - Φ⁻¹(1 - r))

    The limit of long rows; no mask of this density keeps more.

    Args:
        keep_ratio: share of the keys kept, between 0 and 1.
        sigma: standard deviation of a row's scores, not negative; any shape.

    Returns:
        float64, of the shape of ``sigma``.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 <= keep_ratio <= 1:
        raise ValueError(f"top_kept_mass: keep_ratio must be between 0 and 1: got {keep_ratio}")
    threshold = torch.special.ndtri(torch.tensor(1 - keep_ratio, dtype=torch.float64, device="cpu"))
    return torch.special.ndtr(_check_sigma("top_kept_mass", sigma) - threshold)


def output_error(method: NM, sigma: float | Tensor) -> Tensor:
    """Expected relative error of the output, for Gaussian scores and values that do not depend on them.

        ε² = E‖out - dense‖² / E‖dense - μ‖² = 1 - ρ(2σ) + (1/ρ(σ) - 1)² ρ(2σ)

    with ρ the kept mass and μ the mean of the values: squared weights ``e^{2s}`` tilt the scores twice as far. Limit
    of long rows; a ratio of means. The error is relative to what the scores make of the values, beyond their mean.

    Args:
        method: its n and m count, as in :func:`kept_mass`.
        sigma: standard deviation of a row's scores, not negative; any shape.

    Returns:
        ε, float64, of the shape of ``sigma``.

    Raises:
        As :func:`kept_mass`.
    """
    mass = kept_mass(method, sigma)
    squares = kept_mass(method, 2 * torch.as_tensor(sigma, dtype=torch.float64, device="cpu"))
    return (1 - squares + (1 / mass - 1).square() * squares).clamp(min=0).sqrt()


def kept_squares(method: NM, entries: Entries = "normal") -> Tensor:
    """Expected share of ``Σ x_i²`` that N:M activations keep of independent inputs.

        E[Σ_kept x²] / E[Σ x²],  the limit of long rows

    Where the columns of W are orthogonal and of one length, 1 less this is the squared error of the product, as a share
    of its square.

    Args:
        method: its n and m count, as those of :class:`dynattn.sparsity.NMActivations` do.
        entries: how the inputs are distributed, around 0: ``normal`` or ``laplace``.

    Returns:
        float64, a scalar.

    Raises:
        ValueError: there is no such distribution.
    """
    beyond, squares = _sizes(entries)
    won = _among_largest(method.n, method.m, beyond, 1 - beyond)
    return (won * squares).sum().clamp(max=1.0)


def top_kept_squares(keep_ratio: float, entries: Entries = "normal") -> Tensor:
    """Expected share of ``Σ x_i²`` that the largest ``keep_ratio`` of the inputs hold: no choice of so many keeps more.

        normal    r + 2 t φ(t),  t = Φ⁻¹(1 - r/2)            Laplace    r (t² + 2t + 2) / 2,  t = -ln r

    Args:
        keep_ratio: share of the inputs kept, above 0 and at most 1.
        entries: as :func:`kept_squares`.

    Returns:
        float64, a scalar.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"top_kept_squares: keep_ratio must be above 0 and at most 1: got {keep_ratio}")
    share = torch.tensor(keep_ratio, dtype=torch.float64, device="cpu")
    if _checked("top_kept_squares", entries) == "laplace":
        least = -share.log()
        return share * (least.square() + 2 * least + 2) / 2
    least = torch.special.ndtri(1 - share / 2)
    return share + 2 * least * (-0.5 * least.square()).exp() / math.sqrt(2 * math.pi)


def _checked(function: str, entries: str) -> str:
    if entries not in ("normal", "laplace"):
        raise ValueError(f"{function}: entries must be 'normal' or 'laplace': got {entries!r}")
    return entries


def _sizes(entries: str) -> tuple[Tensor, Tensor]:
    """On a grid of sizes: how many are larger, and the part of the squares that is there."""
    normal = _checked("kept_squares", entries) == "normal"
    # sizes on a logarithmic grid, where the integrand vanishes smoothly at both ends
    x = torch.arange(-_TAIL, _TAIL / 2, _STEP, dtype=torch.float64, device="cpu").exp()
    if normal:
        beyond, density = 2 * torch.special.ndtr(-x), 2 * (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)
    else:
        beyond, density = (-x).exp(), (-x).exp() / 2  # over E[X²] = 2
    return beyond, _STEP * x * density * x.square()


def _check_sigma(function: str, sigma: float | Tensor) -> Tensor:
    checked = torch.as_tensor(sigma, dtype=torch.float64, device="cpu")
    if not bool((checked.isfinite() & (checked >= 0)).all()):
        raise ValueError(f"{function}: sigma must be finite and not negative: got {sigma}; it is a standard deviation")
    return checked


def _limit(method: NM, sigma: Tensor) -> Tensor:
    if (method.n, method.m) == (1, 2):
        return torch.special.ndtr(sigma / math.sqrt(2))
    y = torch.arange(-_TAIL, _TAIL + _STEP, _STEP, dtype=torch.float64, device="cpu")  # z - σ
    density = _STEP * (-0.5 * y.square()).exp() / math.sqrt(2 * math.pi)
    z = y + sigma.unsqueeze(-1)
    won = _among_largest(method.n, method.m, torch.special.ndtr(-z), torch.special.ndtr(z))
    return (won * density).sum(-1).clamp(max=1.0)


def _among_largest(n: int, size: int, above: Tensor, below: Tensor) -> Tensor:
    """``Σ_{k<n} C(size-1, k) above^k below^(size-1-k)``: fewer than n of the group's others lie above. No term is
    negative, so nothing cancels."""
    return sum(
        (math.comb(size - 1, k) * above**k * below ** (size - 1 - k) for k in range(min(n, size))),
        start=torch.zeros_like(above),
    )


def _finite(method: NM, sigma: float, length: Tensor) -> Tensor:
    """E[A/T] with T the sum of all weights and A of the kept ones, through ``1/T = ∫ e^{-λT} dλ``.

        E[A/T] = ∫ Σ_groups E[A_g e^{-λT_g}] ψ(λ)^(L - size of g) dλ,    ψ(λ) = E[e^{-λw}],  w = e^{σz}
        E[A_g e^{-λT_g}] = size · E[w e^{-λw} Σ_{k<N} C(size-1, k) U(w)^k D(w)^(size-1-k)]

    where U and D are the parts of ψ above and below w. λ runs on a logarithmic grid.
    """
    if sigma == 0:  # all weights are equal
        kept = torch.zeros_like(length)
        for size, count in _groups(method, length).items():
            kept += count * min(method.n, size)
        return kept.double() / length
    # The rule for 1/T in log λ with step h errs by e^{-π²/h}; left of the smallest 1/T by 26 e-folds nothing is left.
    span = _TAIL * sigma
    log_rate = torch.arange(-span - math.log(int(length.max())) - 26, span + 5, 0.25, dtype=torch.float64, device="cpu")
    rate = log_rate.exp().unsqueeze(-1)
    step = 0.02
    z = torch.arange(-_TAIL, _TAIL + step, step, dtype=torch.float64, device="cpu")
    w = (sigma * z).exp()
    damped = (-0.5 * z.square() - rate * w).exp() / math.sqrt(2 * math.pi)  # [rates, z]
    slope = damped * (-z - rate * w * sigma)
    # Trapezoid rule up to z, with the first Euler-Maclaurin term (what is left is of order step⁴).
    below = (step * (damped.cumsum(-1) - damped / 2) - step**2 / 12 * slope).clamp(min=0)
    total = step * damped.sum(-1, keepdim=True)
    above = (total - below).clamp(min=0)

    def group(size: int) -> Tensor:
        won = _among_largest(method.n, size, above, below)
        return size * step * 0.25 * rate.squeeze(-1) * (w * damped * won).sum(-1)  # [rates]

    log_total = total.squeeze(-1).log()
    out = torch.zeros(length.shape, dtype=torch.float64, device="cpu")
    for size, count in _groups(method, length).items():
        others = (length - size).clamp(min=0).double().unsqueeze(-1)
        out += count * (group(size) * (others * log_total).exp()).sum(-1)
    return out.clamp(max=1.0)


def _groups(method: NM, length: Tensor) -> dict[int, Tensor]:
    """For rows of these lengths, how many groups they have of each size: M keys, and fewer in the last block."""
    stride = method.stride
    blocks, rest = length // (method.m * stride), length % (method.m * stride)
    size, larger = rest // stride, rest % stride  # of the last block's groups, `larger` have a key more
    counts = {k: (size + 1 == k) * larger + (size == k) * (stride - larger) for k in range(1, method.m + 1)}
    counts[method.m] += blocks * stride
    return {k: count for k, count in counts.items() if bool(count.any())}
