"""What a method keeps for every tensor of a box of scores: surely, possibly, and between which sums.

Scores lie in [l, u], and top_n is the sum of the n largest. In a group of M keys that keeps N, that sum rises with
every score, so that what the group keeps weighs between top_N(e^l) and top_N(e^u); and

    j is surely dropped  ⇔  at least N others i have l_i > u_j (l_i >= u_j for i < j),
    j is surely kept     ⇔  fewer than N others i have u_i >= l_j (u_i > l_j for i > j).

Keys that positions keep (a window, sinks) are kept beside the N largest. Top-k is one group of all keys.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dynattn.maths.positions import near_or_first
from dynattn.methods import NM, Method, TopK, Window
from dynattn.verify.box import Box


class Groups(NamedTuple):
    """The keys of a row in the groups that compete.

    Attributes:
        place: int64 (groups, size), the key at each place, in rising order; kv_len where there is none.
        count: int64, broadcasts to (batch, heads, q_len, 1): how many of a group are kept.
        always: bool (q_len, kv_len), the keys that are kept beside them.
    """

    place: Tensor
    count: Tensor
    always: Tensor


class Kept(NamedTuple):
    """What is kept for every tensor of a box; all but ``kept_mass`` and ``settled`` are (batch, heads, q_len, kv_len).

    Attributes:
        weight: box of the softmax weights, 0 where a key is dropped.
        surely: bool, kept whatever the scores are.
        possibly: bool, kept for some of them, as far as the bounds can tell.
        kept_mass: (batch, heads, q_len), a lower bound of the dense weights' share that is kept.
        settled: (batch, heads, q_len), the share of groups whose choice is the same over all of the box.
    """

    weight: Box
    surely: Tensor
    possibly: Tensor
    kept_mass: Tensor
    settled: Tensor


def groups_of(method: Method, allowed: Tensor, offset: int) -> Groups:
    """The groups in which a method chooses.

    Args:
        method: ``NM``, ``TopK`` or ``Window``.
        allowed: bool (batch, heads, q_len, kv_len).
        offset: the position of the first query on the key axis.

    Raises:
        NotImplementedError: another method.
    """
    kv_len, device = allowed.shape[-1], allowed.device
    keys = torch.arange(kv_len, device=device)
    window, sinks = (method.window, method.sinks) if isinstance(method, (NM, Window)) else (0, 0)
    always = near_or_first(allowed, offset, window, sinks)
    if isinstance(method, NM):
        block = method.m * method.stride
        padded = torch.full((-(-kv_len // block) * block,), kv_len, device=device)
        padded[:kv_len] = keys
        place = padded.view(-1, method.m, method.stride).transpose(1, 2).reshape(-1, method.m)
        return Groups(place, torch.tensor(method.n, device=device), always)
    if isinstance(method, TopK):
        return Groups(keys[None], method.count(allowed.sum(-1)).unsqueeze(-1), always)
    if isinstance(method, Window):
        return Groups(keys[None], torch.tensor(0, device=device), always)
    raise NotImplementedError(
        f"verify: method must be NM, TopK or Window: got {method.name}; there are no bounds for its choice"
    )


def kept(scores: Box, allowed: Tensor, groups: Groups) -> Kept:
    """Bounds of the softmax over what is kept, for all scores of a box.

    Args:
        scores: (batch, heads, q_len, kv_len); what they are where nothing is allowed does not matter.
        allowed: bool of the same shape.
        groups: where they compete.
    """
    dtype, kv_len = scores.dtype, allowed.shape[-1]
    lower, upper = (_placed(end.double(), groups.place, -math.inf, allowed) for end in (scores.lower, scores.upper))
    its_allowed = lower > -math.inf
    always = _placed(groups.always.expand(allowed.shape).double(), groups.place, 0.0, allowed) > 0
    count = groups.count.unsqueeze(-1).expand(*lower.shape[:-1], 1)
    surely = its_allowed & (always | (_beaten_by(upper, lower, its_allowed) < count))
    possibly = its_allowed & (always | (_beaten_by(lower, upper, its_allowed) < count))

    low, low_shift = _exponentials(lower)
    high, high_shift = _exponentials(upper)
    least = torch.maximum(_top(low, count), _sum(low, surely))
    most = torch.minimum(_top(high, count) + _sum(high, always), _sum(high, possibly))
    # The rest of the denominator: other groups, and the own one without the key itself.
    own_least = torch.maximum(_top_of_others(low, (count - 1).expand_as(low)), _others(low, surely))
    own_most = torch.minimum(
        _top_of_others(high, count - (~always).long()) + _others(high, always), _others(high, possibly)
    )
    against_least = _log(_other_groups(least) + own_least) + low_shift
    against_most = _log(_other_groups(most) + own_most) + high_shift
    least_weight = torch.sigmoid(lower - against_most).masked_fill(~surely, 0.0)
    most_weight = torch.sigmoid(upper - against_least).masked_fill(~possibly, 0.0)

    dropped = torch.minimum(_sum(high, its_allowed & ~surely), _rest(high, count)).sum((-1, -2))
    mass = torch.sigmoid(_log(least.sum((-1, -2))) + low_shift[..., 0, 0] - _log(dropped) - high_shift[..., 0, 0])
    some = its_allowed.any(-1)
    settled = ((surely == possibly).all(-1) & some).sum(-1) / some.sum(-1).clamp(min=1)
    none = ~some.any(-1)
    back = lambda x: _back(x, groups.place, kv_len)  # noqa: E731
    return Kept(
        Box.spanning(back(least_weight).to(dtype), back(most_weight).to(dtype)),
        back(surely),
        back(possibly),
        mass.masked_fill(none, 1.0).to(dtype),
        settled.masked_fill(none, 1.0).to(dtype),
    )


def _placed(x: Tensor, place: Tensor, fill: float, allowed: Tensor) -> Tensor:
    """(..., kv_len) as (..., groups, size), with ``fill`` where there is no key or none is allowed."""
    return F.pad(x.masked_fill(~allowed, fill), (0, 1), value=fill)[..., place]


def _back(x: Tensor, place: Tensor, kv_len: int) -> Tensor:
    """The other way round."""
    order = place.flatten().argsort()[:kv_len]
    return x.flatten(-2)[..., order]


def _beaten_by(others: Tensor, its: Tensor, allowed: Tensor) -> Tensor:
    """By how many others of its group each key is beaten, at these scores; ties go to the lower index."""
    size = its.shape[-1]
    before = torch.ones(size, size, dtype=torch.bool, device=its.device).tril(-1)  # [its, other]: the other is before
    other, own = others.unsqueeze(-2), its.unsqueeze(-1)
    beats = (other > own) | ((other == own) & before)
    beats = beats & allowed.unsqueeze(-2) & ~torch.eye(size, dtype=torch.bool, device=its.device)
    return beats.sum(-1)


def _exponentials(scores: Tensor) -> tuple[Tensor, Tensor]:
    """``e^(s - shift)`` with the row's largest score as the shift, (batch, heads, q_len, 1, 1)."""
    shift = scores.detach().amax((-1, -2), keepdim=True)
    shift = shift.masked_fill(shift == -math.inf, 0.0)
    return (scores - shift).exp(), shift


def _top(x: Tensor, count: Tensor) -> Tensor:
    """The sum of the ``count`` largest of each group, (..., groups, 1)."""
    sums = F.pad(x.sort(dim=-1, descending=True).values.cumsum(-1), (1, 0))
    return sums.gather(-1, count.clamp(0, x.shape[-1]))


def _rest(x: Tensor, count: Tensor) -> Tensor:
    """The sum of all but the ``count`` largest of each group, (..., groups, 1)."""
    ordered = x.sort(dim=-1).values  # the least first, so that small sums do not drown in large ones
    return F.pad(ordered.cumsum(-1), (1, 0)).gather(-1, (x.shape[-1] - count).clamp(min=0))


def _top_of_others(x: Tensor, count: Tensor) -> Tensor:
    """For each number, the sum of the ``count`` largest others of its group."""
    rank = x.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    its, other = rank.unsqueeze(-1), rank.unsqueeze(-2)  # [its, other]; no sum is taken off another: it would drown
    among = (other != its) & (other < count.unsqueeze(-1) + (other > its).long())
    return (x.unsqueeze(-2) * among).sum(-1)


def _sum(x: Tensor, where: Tensor) -> Tensor:
    return x.masked_fill(~where, 0.0).sum(-1, keepdim=True)


def _others(x: Tensor, where: Tensor) -> Tensor:
    """For each number, the sum of the others of its group that are ``where``."""
    return _sums_of_others(x.masked_fill(~where, 0.0), -1)


def _log(sums: Tensor) -> Tensor:
    """The logarithm, and of 0 one so low that nothing is added to it: -inf has no gradient."""
    return sums.clamp(min=torch.finfo(sums.dtype).tiny).log()


def _other_groups(sums: Tensor) -> Tensor:
    """For each group, the sum over the others, (..., groups, 1)."""
    return _sums_of_others(sums, -2)


def _sums_of_others(x: Tensor, dim: int) -> Tensor:
    """For each number along ``dim``, the sum of the others, from what is before and behind it."""
    x = x.movedim(dim, -1)
    before = F.pad(x.cumsum(-1)[..., :-1], (1, 0))
    behind = F.pad(x.flip(-1).cumsum(-1)[..., :-1], (1, 0)).flip(-1)
    return (before + behind).movedim(-1, dim)
