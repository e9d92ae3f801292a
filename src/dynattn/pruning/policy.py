"""Dense attention in which each key carries a decision, as a differentiable stand-in for dropping tokens.

    G_ij  = D_j for i ≠ j,  1 for i = j                          (a token always attends to itself)
    P_ij  = G_ij e^{s_ij} / Σ_k G_ik e^{s_ik},    out = P V

For decisions of 0 and 1 this is attention with the dropped keys masked, so the tokens that are left see what they would
see if the others were gone. Unlike with a mask, a dropped token's decision has a gradient: what the output would gain
if the token came back.

Source: arXiv:2106.02034, equations 10 and 11.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynattn.maths.scores import scores

# A dropped key may score far above all that are left. Its weight is 0 whatever it scores, but its decision's gradient
# would be e^{gap}. The authors' code bounds it too, by adding 1e-6 to the sum of the weights.
_MOST = math.log(1e6)


def attend(query: Tensor, key: Tensor, value: Tensor, decisions: Tensor, scale: float) -> Tensor:
    """Attention under the decisions. Quadratic in memory.

    Args:
        query: (batch, heads, length, head_dim).
        key: likewise.
        value: (batch, heads, length, value_dim).
        decisions: (batch, length), 1 for a token that is kept, 0 for one that is dropped, or between.
        scale: factor of the scores.

    Returns:
        (batch, heads, length, value_dim) in the dtype of ``query``. Rows of dropped tokens attend to the kept ones and
        to themselves.

    Raises:
        ValueError: queries and keys are not of the same tokens.
    """
    if query.shape[2] != key.shape[2] or decisions.shape != (key.shape[0], key.shape[2]):
        raise ValueError(
            "attend: decisions must be (batch, length) of query and key alike: got query "
            f"{tuple(query.shape)}, key {tuple(key.shape)}, decisions {tuple(decisions.shape)}; use self-attention"
        )
    s = scores(query, key, None, False, scale)  # [batch, heads, length, length]
    others = decisions.to(s.dtype)[:, None, None, :]
    diagonal = torch.eye(key.shape[2], dtype=torch.bool, device=key.device)
    gate = torch.where(diagonal, 1.0, others)  # [batch, 1, length, length]
    highest = s.detach().masked_fill(gate == 0, -math.inf).amax(-1, keepdim=True)
    weights = gate * (s - highest).clamp(max=_MOST).exp()  # the largest is 1: the sum cannot vanish
    return (weights / weights.sum(-1, keepdim=True) @ value.to(s.dtype)).to(query.dtype)
