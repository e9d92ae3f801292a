"""Dropout of kept weights in plain PyTorch: the specification that every kernel is held to.

    out_i = Σ_j Z_ij P_ij v_j,    Z_ij = 0 with probability p, else 1 / (1 - p)

Z comes from a counter-based generator. So forward and backward make it anew instead of storing it, and every device
makes the same Z. The pair (i, j) of a head is kept when a 32-bit word is at least ``p · 2³²``:

    stream(batch, head) = first word of Philox4x32-10(counter = (head, batch, 0, 0), key = seed)
    word(i, j)          = first word of Philox2x32-10(counter = (j, i), key = stream)

logsumexp and kept mass are those of the weights before dropout.

Source: Philox, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 10
_PART_BITS = 32  # the upper half of a seed, since the parts by head of a call change the lower
_WORD = 0xFFFFFFFF
_MULTIPLIERS_4 = (0xD2511F53, 0xCD9E8D57)
_WEYL_4 = (0x9E3779B9, 0xBB67AE85)
_MULTIPLIER_2 = 0xD256D193
_WEYL_2 = 0x9E3779B9


def seed_of_part(seed: int | Tensor, number: int) -> int | Tensor:
    """The seed of one of the parts that are computed each as a call of its own: ``seed ^ (number << 32)``.

    Args:
        seed: the seed of all parts, 64 bits.
        number: which part.
    """
    return seed ^ (number << _PART_BITS)


def threshold(dropout_p: float) -> int:
    """Words below this drop their pair: ``p · 2³²``, rounded down."""
    return int(dropout_p * 2**32)


def stream(seed: int, batch: int, head: int) -> int:
    """The key of one head's generator, a word of 32 bits.

    Args:
        seed: 64 bits.
        batch, head: which head.
    """
    counter = [head, batch, 0, 0]
    key = [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(_ROUNDS):
        low, high = _MULTIPLIERS_4[0] * counter[0], _MULTIPLIERS_4[1] * counter[2]
        counter = [high >> 32 ^ counter[1] ^ key[0], high & _WORD, low >> 32 ^ counter[3] ^ key[1], low & _WORD]
        key = [(word + step) & _WORD for word, step in zip(key, _WEYL_4, strict=True)]
    return counter[0]


def words(streams: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    """``word(i, j)`` for every stream, row and key.

    Args:
        streams: (batch, heads), int64 between 0 and 2³² - 1.
        rows: (q_len,), int64, positions i.
        keys: (kv_len,), int64, positions j.

    Returns:
        (batch, heads, q_len, kv_len), int64 between 0 and 2³² - 1.
    """
    key = streams[..., None, None]
    first, second = keys.expand(rows.numel(), -1), rows.unsqueeze(-1)
    for _ in range(_ROUNDS):
        product = first * _MULTIPLIER_2  # wraps around 2⁶⁴ as the unsigned product does
        first, second = (product >> 32) & _WORD ^ key ^ second, product & _WORD
        key = (key + _WEYL_2) & _WORD
    return first


def factors(
    seed: int, dropout_p: float, batch: int, heads: int, rows: range, kv_len: int, device: torch.device
) -> Tensor:
    """Z: what each weight is multiplied by.

    Args:
        seed: 64 bits.
        dropout_p: probability of dropping a kept weight, at least 0 and below 1.
        batch, heads: how many heads.
        rows: the queries.
        kv_len: the keys.
        device: the device of the result.

    Returns:
        (batch, heads, len(rows), kv_len), float32: 0 or ``1 / (1 - dropout_p)``.
    """
    keys = [[stream(seed, b, h) for h in range(heads)] for b in range(batch)]
    streams = torch.tensor(keys, dtype=torch.int64, device=device)  # of no head too
    positions = torch.arange(rows.start, rows.stop, device=device)
    drawn = words(streams.view(batch, heads), positions, torch.arange(kv_len, device=device))
    return (drawn >= threshold(dropout_p)).float() / (1 - dropout_p)
