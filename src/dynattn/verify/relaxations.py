"""The rules of single functions for affine bounds: each result lies between two lines through its argument's bounds.

    W x        W c - |W| r ≤ W x ≤ W c + |W| r      c, r: the mean of both functions and half of their difference
    x · y      y_c x + x_c y - x_c y_c ∓ x_r y_r    c, r: centre and radius of the ends; the mean of McCormick's planes
    convex f   a tangent below, the chord above
    smooth f   the chord's slope below and above, as far apart as f needs
    softmax    p_j = 1 / (1 + Σ_{i ≠ j} e^(s_i - s_j)): what moves all scores of a row alike cancels

Source: arXiv:2002.06622 for tangents and chords; differences of scores, DeepT (PLDI 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dynattn.verify import rules
from dynattn.verify.affine import Affine, Form, affine_rule
from dynattn.verify.box import Box

_GRID = 33  # points at which a smooth function is held against its chord
_STEEP = 30.0  # scores that may differ by more give weights whose lines say nothing
_BELOW_ONE = 0.99  # a tangent of exp so far above the lower end is still positive there


def _forms(
    x: Affine, function: Callable[[Tensor], Tensor], absolute: Callable[[Tensor], Tensor]
) -> tuple[Form, Form]:  # fmt: skip
    """Below and above a linear map, which is given with the map of the absolute values of its weights."""
    center = x.above.plus(x.below).times(0.5).moved(function)
    radius = x.above.plus(x.below, -1.0).times(0.5).moved(absolute)
    return center.plus(radius, -1.0), center.plus(radius)


def _mapped(x: Affine, function: Callable[[Tensor], Tensor], absolute: Callable[[Tensor], Tensor]) -> Affine:
    """A linear map; arguments as of :func:`_forms`."""
    return Affine(*_forms(x, function, absolute))


def _shifted(x: Affine, below: Tensor, above: Tensor) -> Affine:
    return Affine(x.below.shifted(below), x.above.shifted(above))


def _each_end(x: Affine, function: Callable[[Tensor], Tensor]) -> Affine:
    """A linear map without negative weights."""
    return Affine(x.below.moved(function), x.above.moved(function))


def _of(x: Any, like: Any) -> Affine:
    """An argument as an affine box that has the symbols of another."""
    if isinstance(x, Box):
        return Affine.constant(x, like)
    return Affine.constant(Box.of(torch.as_tensor(x, dtype=like.dtype, device=like.lower.device)), like)


def _both(x: Any, y: Any) -> tuple[Affine, Affine]:
    like = x if isinstance(x, Affine) else y
    return _of(x, like), _of(y, like)


def _between(x: Affine, low: Tensor, low_at: Tensor, high: Tensor, high_at: Tensor) -> Affine:
    """Between the lines ``low · x + low_at`` and ``high · x + high_at``."""
    below, _ = _forms(x, lambda t: t * low, lambda t: t * low.abs())
    _, above = _forms(x, lambda t: t * high, lambda t: t * high.abs())
    return Affine(below.shifted(low_at), above.shifted(high_at))


def _chord(x: Box, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The slope between the ends; 0 where they are one, or the function is not finite there."""
    width = x.upper - x.lower
    rise = (function(x.upper) - function(x.lower)) / width.masked_fill(width == 0, 1.0)
    return torch.where(rise.isfinite(), rise, 0.0)


def _convex(
    x: Affine, function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], touch: Tensor | None = None
) -> Affine:
    """The tangent at ``touch``, the middle where it is None, and the chord."""
    touch = x.center if touch is None else touch
    low, high = slope(touch), _chord(x, function)
    ends = (function(end) - high * end for end in (x.lower, x.upper))
    return _between(x, low, function(touch) - low * touch, high, torch.maximum(*ends))


def _smooth(x: Affine, function: Callable[[Tensor], Tensor], curvature: float) -> Affine:
    """Two lines of the chord's slope. Between points of a grid of step h, a function whose second derivative is at
    most ``curvature`` leaves the straight line by no more than ``curvature · h² / 8``."""
    slope, width = _chord(x, function), x.upper - x.lower
    share = torch.linspace(0, 1, _GRID, dtype=x.dtype, device=x.device)
    grid = x.lower.unsqueeze(-1) + width.unsqueeze(-1) * share
    gap = function(grid) - slope.unsqueeze(-1) * grid
    margin = curvature * (width / (_GRID - 1)).square() / 8
    return _between(x, slope, gap.amin(-1) - margin, slope, gap.amax(-1) + margin)


@affine_rule("linear")
def linear(x: Affine, weight: Tensor, bias: Tensor | None = None) -> Affine:
    """Of the weights' signs."""
    found = _mapped(x, lambda t: F.linear(t, weight), lambda t: F.linear(t, weight.abs()))
    return found if bias is None else _shifted(found, bias, bias)


@affine_rule("add")
def add(x: Any, y: Any, *, alpha: float = 1) -> Affine:
    """Function to function."""
    x, y = _both(x, y)
    y = y if alpha == 1 else mul(y, alpha)
    return Affine(x.below.plus(y.below), x.above.plus(y.above))


@affine_rule("sub")
def sub(x: Any, y: Any) -> Affine:
    """Each function less the other's opposite one."""
    x, y = _both(x, y)
    return add(x, -y)


@affine_rule("mul")
def mul(x: Any, y: Any) -> Affine:
    """The mean of McCormick's two planes below, and of the two above."""
    if not isinstance(x, Box):
        return mul(y, x)
    if not isinstance(y, Box):
        return _mapped(_of(x, x), lambda t: t * y, lambda t: t * abs(y))
    x, y = _both(x, y)
    found = add(mul(x, y.center), mul(y, x.center))
    both, gap = x.center * y.center, x.radius * y.radius
    return _shifted(found, -both - gap, gap - both)


@affine_rule("div")
def div(x: Any, y: Any) -> Affine:
    """By a number or a tensor, or by a box that does not hold 0."""
    if not isinstance(y, Box):
        return mul(x, 1 / y)
    return mul(x, reciprocal(_both(x, y)[1]))


def reciprocal(x: Affine) -> Affine:
    """``1 / x`` where no number's box holds 0."""
    sign = torch.where(x.lower > 0, 1.0, -1.0).to(x.dtype)
    found = _convex(mul(x, sign).meet(x.plain * sign), torch.reciprocal, lambda t: -t.square().reciprocal())
    return mul(found, sign)


@affine_rule("matmul", "bmm")
def matmul(x: Any, y: Any) -> Affine:
    """Sums of the products' planes."""
    if not isinstance(y, Box):
        return _mapped(_of(x, x), lambda t: t @ y, lambda t: t @ y.abs())
    if not isinstance(x, Box):
        return _mapped(_of(y, y), lambda t: x @ t, lambda t: x.abs() @ t)
    x, y = _both(x, y)
    found = add(matmul(x, y.center), matmul(x.center, y))
    both, gap = x.center @ y.center, x.radius @ y.radius
    return _shifted(found, -both - gap, gap - both)


@affine_rule("relu", "relu_")
def relu(x: Affine, *args: Any, **kwargs: Any) -> Affine:
    """The line through 0 that leaves the smaller area, and the chord."""
    high = _chord(x, torch.relu)
    at = torch.maximum(x.lower.relu() - high * x.lower, x.upper.relu() - high * x.upper)
    low = (x.upper > -x.lower).to(x.dtype)
    return _between(x, low, torch.zeros_like(low), high, at)


@affine_rule("exp", "exp_")
def exp(x: Affine) -> Affine:
    """A tangent that is positive from the lower end on."""
    return _convex(x, torch.exp, torch.exp, torch.minimum(x.center, x.lower + _BELOW_ONE))


@affine_rule("square")
def square(x: Affine) -> Affine:
    """Tangent and chord."""
    return _convex(x, torch.square, lambda t: 2 * t)


def _smoothly(name: str, function: Callable[[Tensor], Tensor], curvature: float) -> None:
    @affine_rule(name, f"{name}_")
    def smooth(x: Affine, *args: Any, **kwargs: Any) -> Affine:
        return _smooth(x, function, curvature)


# The largest absolute second derivatives, rounded up: 4 / (3 √3), 1 / (6 √3), 2 φ(0), and 1/2, that of SiLU at 0.
for _name, _function, _most in (
    ("tanh", torch.tanh, 0.7699), ("sigmoid", torch.sigmoid, 0.0963), ("gelu", F.gelu, 0.7979), ("silu", F.silu, 0.5)
):  # fmt: skip
    _smoothly(_name, _function, _most)


@affine_rule("dropout", "dropout_", "feature_alpha_dropout")
def dropout(x: Affine, *args: Any, **kwargs: Any) -> Affine:
    """Nothing, outside of training."""
    return x


@affine_rule("mean")
def mean(x: Affine, dim: Any = None, keepdim: bool = False) -> Affine:
    """Function to function."""
    dims = tuple(range(x.ndim)) if dim is None else dim
    return _each_end(x, lambda t: t.mean(dims, keepdim))


@affine_rule("sum")
def sum_(x: Affine, dim: Any = None, keepdim: bool = False) -> Affine:
    """Function to function."""
    dims = tuple(range(x.ndim)) if dim is None else dim
    return _each_end(x, lambda t: t.sum(dims, keepdim))


@affine_rule("cat")
def cat(parts: Sequence[Any], dim: int = 0) -> Affine:
    """Side by side."""
    like = next(part for part in parts if isinstance(part, Affine))
    own = [_of(part, like) for part in parts]
    place = dim + 1 if dim >= 0 else dim
    below, above = (
        Form(torch.cat([form.slopes for form in side], place), torch.cat([form.at for form in side], dim), side[0].of)
        for side in ([part.below for part in own], [part.above for part in own])
    )
    return Affine(below, above)


@affine_rule("masked_fill")
def masked_fill(x: Affine, mask: Tensor, value: float) -> Affine:
    """Both functions become the value."""
    return Affine(x.below.filled(mask, value), x.above.filled(mask, value))


@affine_rule("layer_norm")
def layer_norm(
    x: Affine, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Affine:
    """Centred by its linear map, times the reciprocal root of the mean square."""
    width = shape[-1]
    center = torch.eye(width, dtype=x.dtype, device=x.device) - 1 / width
    centred = linear(x, center).meet(rules.linear(x.plain, center))
    mean_square = centred.square().mean(-1, keepdim=True) + eps
    mean_square = mean_square.meet(Box(mean_square.lower.clamp(min=eps), mean_square.upper.clamp(min=eps)))
    spread = _convex(mean_square, torch.rsqrt, lambda t: -0.5 * t.rsqrt() / t)
    normed = centred * spread.meet(Box.spanning(mean_square.lower.rsqrt(), mean_square.upper.rsqrt()))
    normed = normed if weight is None else normed * weight
    return _of(normed if bias is None else normed + bias, x)


@affine_rule("softmax")
def softmax(x: Affine, dim: int = -1, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Affine:
    """By the differences of scores; what is masked by -inf weighs nothing."""
    s = (x.to(dtype) if dtype is not None else x).movedim(dim, -1)
    allowed = s.upper > -torch.inf
    box = s.plain.softmax(-1)
    return weights(s.masked_fill(~allowed, 0.0), allowed, box, torch.ones_like(allowed)).movedim(-1, dim)


def weights(scores: Affine, kept: Tensor, box: Box, settled: Tensor) -> Affine:
    """The softmax over what is kept.

    Args:
        scores: (..., keys), finite.
        kept: bool of the same shape, the keys over which the softmax goes.
        box: holds the weights.
        settled: bool, broadcasts to ``scores``: where these keys are those that are kept, whatever moves; elsewhere the
            box is all that is known.
    """
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    others = kept.unsqueeze(-2) & ~own  # [..., key, other]
    apart = scores.unsqueeze(-2) - scores.unsqueeze(-1)
    told = kept & settled & (apart.upper.masked_fill(~others, 0.0) <= _STEEP).all(-1)
    ratios = apart.masked_fill(~(others & told.unsqueeze(-1)), 0.0).exp().masked_fill(~others, 0.0)
    return reciprocal(ratios.sum(-1) + 1.0).where(told, box).meet(box)


def mixed(weight: Affine, value: Any, some: Tensor) -> Affine:
    """``Σ_j p_j v_j``, as ``c + Σ_j p_j (v_j - c)`` with the values' mean c: weights sum to 1, so that what all values
    share is not multiplied by what is unknown of the weights.

    Args:
        weight: (..., q_len, kv_len).
        value: (..., kv_len, value_dim), any box or a tensor.
        some: bool (..., q_len), whether a row keeps anything.
    """
    value = _of(value, weight)
    common = value.center.mean(-2, keepdim=True)
    return weight @ (value - common) + common * some.unsqueeze(-1)
