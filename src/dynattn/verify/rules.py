"""The rules of single functions: each gives a box that holds every result.

A linear map moves the centre and takes the absolute values of its weights to the radius; a function that rises takes
the ends to the ends; a product is bounded by its four corners. Each is exact for its own output number by number; what
is lost is that numbers of one box do not move apart from each other.

Source: arXiv:1810.12715; the corners of products and LayerNorm, arXiv:2002.06622.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dynattn.verify.box import Box, rule

_AT_ONCE = 2**22  # numbers of an intermediate that a product of two boxes may make
# Where GELU and SiLU are least, and what they are there, rounded down in the last place given.
_GELU_LEAST, _GELU_THERE = -0.7517915246935645, -0.16997120747990369
_SILU_LEAST, _SILU_THERE = -1.2784645427610738, -0.2784645427610739


@rule("linear")
def linear(x: Box, weight: Tensor, bias: Tensor | None = None) -> Box:
    """``c' = W c + b``, ``r' = |W| r``."""
    center, radius = F.linear(x.center, weight, bias), F.linear(x.radius, weight.abs())
    return Box.spanning(center - radius, center + radius)


@rule("add")
def add(x: Any, y: Any, *, alpha: float = 1) -> Box:
    """Ends to ends."""
    x, y = _box(x, y), _box(y, x) if alpha == 1 else _box(y, x) * alpha
    return Box.spanning(x.lower + y.lower, x.upper + y.upper)


@rule("sub")
def sub(x: Any, y: Any) -> Box:
    """Each end less the other's opposite one."""
    return add(x, -_box(y, x))


@rule("mul")
def mul(x: Any, y: Any) -> Box:
    """The least and the largest of the four corners."""
    x, y = _box(x, y), _box(y, x)
    return Box.spanning(x.lower * y.lower, x.lower * y.upper, x.upper * y.lower, x.upper * y.upper)


@rule("div")
def div(x: Any, y: Any) -> Box:
    """By a number or a tensor, or by a box that does not hold 0."""
    y = _box(y, x)
    if bool(((y.lower <= 0) & (y.upper >= 0)).any()):
        raise ValueError("verify: a divisor must not reach 0: got a box that does; a quotient by it has no bound")
    return mul(x, Box.spanning(1 / y.lower, 1 / y.upper))


@rule("matmul", "bmm")
def matmul(x: Any, y: Any) -> Box:
    """Products of matrices; of two boxes the sums of the corners of each product."""
    if isinstance(x, Tensor):
        return matmul(Box.of(y).mT, x.mT).mT
    if isinstance(y, Tensor):
        center, radius = x.center @ y, x.radius @ y.abs()
        return Box.spanning(center - radius, center + radius)
    rows = max(1, _AT_ONCE // max(1, y.lower.numel()))
    found = [_corners(part, y) for part in x.split(rows, dim=-2)]
    return Box(torch.cat([part.lower for part in found], -2), torch.cat([part.upper for part in found], -2))


def _corners(x: Box, y: Box) -> Box:
    product = mul(x.unsqueeze(-1), y.unsqueeze(-3))  # [..., rows, terms, columns]
    return Box(product.lower.sum(-2), product.upper.sum(-2))


def _rising(name: str, function: Callable[..., Tensor]) -> None:
    @rule(name, f"{name}_")
    def rises(x: Box, *args: Any, **kwargs: Any) -> Box:
        return Box.spanning(function(x.lower), function(x.upper))


for _name, _function in (("relu", torch.relu), ("tanh", torch.tanh), ("sigmoid", torch.sigmoid), ("exp", torch.exp)):
    _rising(_name, _function)


def _one_valley(x: Box, function: Callable[[Tensor], Tensor], least: float, there: float) -> Box:
    """Of a function that falls to one least value and rises from it."""
    ends = Box.spanning(function(x.lower), function(x.upper))
    across = (x.lower <= least) & (x.upper >= least)
    lower = torch.minimum(ends.lower, ends.lower.masked_fill(across, there))
    return Box(lower, torch.maximum(ends.upper, lower))  # beside the valley an end may round below it


@rule("gelu")
def gelu(x: Box, approximate: str = "none") -> Box:
    """``x Φ(x)``, which falls to its least value near -0.75 and rises from there."""
    if approximate != "none":
        raise NotImplementedError(
            f"verify: gelu's approximate must be 'none': got {approximate!r}; there is no rule for it"
        )
    return _one_valley(x, F.gelu, _GELU_LEAST, _GELU_THERE)


@rule("silu")
def silu(x: Box, inplace: bool = False) -> Box:
    """``x σ(x)``, which falls to its least value near -1.28 and rises from there."""
    return _one_valley(x, F.silu, _SILU_LEAST, _SILU_THERE)


@rule("dropout", "dropout_", "feature_alpha_dropout")
def dropout(x: Box, p: float = 0.5, training: bool = True, inplace: bool = False) -> Box:
    """Nothing, outside of training."""
    if training and p:
        raise ValueError("verify: dropout must be off: got a module in training; call model.eval() first")
    return x


@rule("layer_norm")
def layer_norm(
    x: Box, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Box:
    """Centred by its linear map, over a standard deviation between its bounds, and never beyond ``√(d - 1)``."""
    if len(shape) != 1:
        raise NotImplementedError(f"verify: layer_norm must be over the last dimension: got {tuple(shape)}; flatten it")
    width = shape[0]
    center, radius = x.center - x.center.mean(-1, keepdim=True), x.radius
    radius = radius * (1 - 2 / width) + radius.mean(-1, keepdim=True)  # |1 - 1/d| of its own, 1/d of each other
    centred = Box.spanning(center - radius, center + radius)
    squares = square(centred)
    ends = (squares.lower.mean(-1, keepdim=True), squares.upper.mean(-1, keepdim=True))
    spread = Box.spanning(*((end + eps).rsqrt() for end in ends))
    normed = mul(centred, spread)
    most = math.sqrt(max(width - 1, 0))
    normed = Box(normed.lower.clamp(-most, most), normed.upper.clamp(-most, most))
    if weight is not None:
        normed = mul(normed, weight)
    return normed if bias is None else add(normed, bias)


@rule("square")
def square(x: Box) -> Box:
    """From 0 where the box holds it."""
    ends = Box.spanning(x.lower.square(), x.upper.square())
    return Box(ends.lower.masked_fill((x.lower <= 0) & (x.upper >= 0), 0.0), ends.upper)


@rule("softmax")
def softmax(x: Box, dim: int = -1, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Box:
    """``p_j`` is least where ``x_j`` is and all others are largest, and the other way round: exact for a box."""
    x = x.to(dtype) if dtype is not None else x
    return Box.spanning(_against(x.lower, x.upper, dim), _against(x.upper, x.lower, dim))


def _against(its: Tensor, others: Tensor, dim: int) -> Tensor:
    """``e^its / (e^its + Σ e^others)`` with all others but its own."""
    size = its.shape[dim]
    its, others = its.movedim(dim, -1), others.movedim(dim, -1)
    own = torch.eye(size, dtype=torch.bool, device=its.device)
    rest = others.unsqueeze(-2).masked_fill(own, -math.inf).logsumexp(-1) if size > 1 else its - math.inf
    return torch.sigmoid(its - rest).nan_to_num(0.0).movedim(-1, dim)


@rule("mean")
def mean(x: Box, dim: Any = None, keepdim: bool = False) -> Box:
    """Ends to ends."""
    dims = tuple(range(x.ndim)) if dim is None else dim
    return Box.spanning(x.lower.mean(dims, keepdim), x.upper.mean(dims, keepdim))


@rule("sum")
def sum_(x: Box, dim: Any = None, keepdim: bool = False) -> Box:
    """Ends to ends."""
    dims = tuple(range(x.ndim)) if dim is None else dim
    return Box.spanning(x.lower.sum(dims, keepdim), x.upper.sum(dims, keepdim))


@rule("cat")
def cat(parts: Sequence[Any], dim: int = 0) -> Box:
    """Side by side."""
    like = next(part for part in parts if isinstance(part, Box))
    boxes = [_box(part, like) for part in parts]
    return Box(torch.cat([box.lower for box in boxes], dim), torch.cat([box.upper for box in boxes], dim))


@rule("masked_fill")
def masked_fill(x: Box, mask: Tensor, value: float) -> Box:
    """Both ends become the value."""
    return Box(x.lower.masked_fill(mask, value), x.upper.masked_fill(mask, value))


def _box(x: Any, like: Any) -> Box:
    """A number or a tensor as the box that holds it alone."""
    if isinstance(x, Box):
        return x
    return Box.of(torch.as_tensor(x, dtype=like.dtype, device=like.device))
