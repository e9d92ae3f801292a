"""The output gate of gated attention, and the layout in which trained gates are published.

    Y'_h = Y_h ∘ c · sigmoid(X W_gᵀ + b)_h             between the attention of head h and the output projection

X is the input of the query projection, after the same normalisation. A gate is a number for each query and head
(``headwise``), or one for each number of the head's output (``elementwise``). It looks at nothing of the attention, so
that it stands behind any method.

The ceiling c is 1 as published. A gate that is put into a trained model has c = 2 and starts with weights of 0: its
factor is then 1 exactly, and the model is what it was (this library's choice).

Source: arXiv:2505.06708.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from dynattn.maths.scores import arithmetic_dtype

Form = Literal["headwise", "elementwise"]
"""How many numbers a gate has: one for each head, or one for each number of its output."""

_NEUTRAL = 2.0  # times sigmoid(0)


class OutputGate(nn.Module):
    """What the output of each head is multiplied by: ``ceiling · sigmoid(x W_gᵀ + b)``.

    Args:
        embed_dim: the width of the input of the query projection.
        heads: query heads.
        head_dim: the width of a head's output.
        form: ``headwise`` or ``elementwise``.
        neutral: start with weights of 0 and a ceiling of 2, which is a factor of 1 everywhere. Else weights are drawn
            as those of a linear layer, and the ceiling is 1.
        bias: whether the projection has a bias.
        device: the device of the weights.
        dtype: the dtype of the weights.

    Attributes:
        projection: the linear layer of W_g and b.
        ceiling: what no factor exceeds, a number in the ``state_dict``, so that weights come with the form in which
            they were trained.

    Raises:
        ValueError: there is no such form.

    Source: arXiv:2505.06708.
    """

    ceiling: Tensor

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        head_dim: int,
        form: Form = "elementwise",
        *,
        neutral: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f"OutputGate: form must be headwise or elementwise: got {form!r}; choose one of them")
        self.heads, self.form = heads, form
        self.projection = nn.Linear(embed_dim, heads * (head_dim if form == "elementwise" else 1), bias, device, dtype)
        ceiling = torch.full((), _NEUTRAL if neutral else 1.0, device=device, dtype=self.projection.weight.dtype)
        self.register_buffer("ceiling", ceiling)
        if neutral:
            for parameter in self.projection.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """The factors of the heads' outputs.

        Args:
            x: (batch, q_len, embed_dim), what the query projection reads.

        Returns:
            (batch, heads, q_len, 1 or head_dim), float32, or float64 for float64 inputs, as a sigmoid in half precision
            has steps of 1/256 near 1.
        """
        logits = self.projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        wide = arithmetic_dtype(logits.dtype)
        return torch.sigmoid(logits.to(wide)) * self.ceiling.to(wide)

    def extra_repr(self) -> str:
        return f"form={self.form}"


class GatedQuery(NamedTuple):
    """The rows of a query projection and of its gates, each in the order of the heads.

    Attributes:
        query: (heads · head_dim, …).
        gate: (heads, …) or (heads · head_dim, …).
    """

    query: Tensor
    gate: Tensor


def split_gated(rows: Tensor, heads: int, head_dim: int, groups: int) -> GatedQuery:
    """Take a published query projection apart, whose rows hold the gates too.

        rows = for each group: [queries of its heads | gates of its heads]

    Args:
        rows: (rows, …): a weight, or a bias.
        heads: query heads.
        head_dim: the width of a head.
        groups: into how many groups the heads are laid out. The paper's code has one for each key head; Transformers'
            Qwen3-Next has one for each query head.

    Returns:
        The two parts. The gates are headwise where there is one row for each head, else elementwise.

    Raises:
        ValueError: ``groups`` does not divide ``heads``, or there are too many or too few rows for a gate.
    """
    _check_groups("split_gated", heads, groups)
    gates = rows.shape[0] - heads * head_dim
    if gates not in (heads, heads * head_dim):
        raise ValueError(
            f"split_gated: rows must be {heads * head_dim} of queries and {heads} or {heads * head_dim} of gates: got "
            f"{rows.shape[0]}; check heads and head_dim, or load the projection as it is where it has no gate"
        )
    query, gate = rows.unflatten(0, (groups, -1)).split((heads * head_dim // groups, gates // groups), dim=1)
    return GatedQuery(query.flatten(0, 1), gate.flatten(0, 1))


def join_gated(query: Tensor, gate: Tensor, heads: int, groups: int) -> Tensor:
    """Put queries and gates together as they are published; :func:`split_gated` takes them apart.

    Args:
        query: (heads · head_dim, …), in the order of the heads.
        gate: (heads or heads · head_dim, …), in the order of the heads.
        heads: query heads.
        groups: as :func:`split_gated` takes it.

    Returns:
        (rows, …).

    Raises:
        ValueError: ``groups`` does not divide ``heads``.
    """
    _check_groups("join_gated", heads, groups)
    return torch.cat([part.unflatten(0, (groups, -1)) for part in (query, gate)], dim=1).flatten(0, 1)


def _check_groups(function: str, heads: int, groups: int) -> None:
    if groups < 1 or heads % groups:
        raise ValueError(f"{function}: groups must divide heads: got {groups}, {heads}; pass the number of key heads")
