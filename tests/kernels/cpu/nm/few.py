"""What few queries are tried on, whatever their numbers are."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dynattn.methods import NM

LONG = 1300


def identify(value: object) -> str:
    """The name of a parameter."""
    return value.name if isinstance(value, NM) else "x".join(map(str, value)) if isinstance(value, tuple) else ""


def check_not_finite(
    tensors: tuple[Tensor, Tensor, Tensor], places: tuple[int, int, int], check: Callable, method: NM, isa: str
) -> None:
    """Rows are weighed together, of which one does not keep what another keeps.

    Args:
        tensors: a query (1, heads, 1, head_dim), and key and value (1, 1, LONG, …), to be poisoned.
        places: the dimensions of values where.
    """
    query, key, value = tensors
    heads = query.shape[1]
    mask = torch.rand(1, heads, 1, LONG, generator=torch.Generator().manual_seed(1)) > 0.2
    mask[..., 1200:] = False  # slots of a cache that are not written yet
    mask[:, 0, :, 70], mask[:, -1, :, 71] = False, True
    key[..., 1200:, :], value[..., 1200:, :] = math.nan, math.inf
    for key_at, place, poison in zip((70, 71, 640), places, (math.nan, math.inf, -math.inf), strict=True):
        value[..., key_at, place] = poison
    check(query, key, value, method, isa, mask=mask)
    key[..., 90, 5] = math.nan
    mask[:, 0, :, 90] = False
    check(query, key, value, method, isa, mask=mask)


def check_masks(tensors: tuple[Tensor, Tensor, Tensor], share: float, check: Callable, method: NM, isa: str) -> None:
    """Masks that leave some keys, by truth values and added to the scores.

    Args:
        tensors: a query (2, 4, 2, head_dim), and key and value (2, 1, LONG, …).
        share: of the pairs that a mask leaves.
    """
    query, key, value = tensors
    mask = torch.rand(2, 4, 2, LONG, generator=torch.Generator().manual_seed(1)) < share
    mask[0, 1], mask[1, 2, 0, 64:], mask[1, 3, 1, :-1] = False, False, False
    check(query, key, value, method, isa, mask=mask)
    bias = torch.randint(-3, 4, (2, 4, 2, LONG), generator=torch.Generator().manual_seed(2)).float()
    check(query, key, value, method, isa, mask=bias.masked_fill(~mask, -math.inf))
