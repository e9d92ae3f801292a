"""What a decoder's layer is given besides its hidden states, for the tokens that run it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynattn.pruning.tokens import Tokens


class OfTokens(NamedTuple):
    """The arguments of a layer that have an entry for each token.

    Attributes:
        attention_mask: bool (True: allowed) or added, (batch or 1, 1, length, length); None for a causal mask.
        position_ids: (batch or 1, length) int64, or None.
        position_embeddings: (batch or 1, length, head_dim) each, or None.
    """

    attention_mask: Tensor | None
    position_ids: Tensor | None
    position_embeddings: tuple[Tensor, ...] | None

    @classmethod
    def taken(cls, given: dict[str, Any]) -> OfTokens:
        """Take them out of a layer's arguments."""
        return cls(*(given.pop(name, None) for name in cls._fields))

    def gather(self, tokens: Tokens, full: Tensor) -> OfTokens:
        """Those of the tokens that run, at their true positions.

        Args:
            tokens: who runs.
            full: (batch, length, width), the states of all tokens.
        """
        batch, places, rotary = full.shape[0], self.position_ids, self.position_embeddings
        return OfTokens(
            _mask(self.attention_mask, tokens, full),
            None if places is None else places.expand(batch, -1).gather(1, tokens.position),
            None if rotary is None else tuple(tokens.gather(part.expand(batch, -1, -1)) for part in rotary),
        )

    def without_keys(self, runs: Tensor, full: Tensor) -> OfTokens:
        """Those of all tokens, where the keys of tokens that skip are seen by those tokens alone.

        Args:
            runs: (batch, length) bool.
            full: (batch, length, width).

        Raises:
            ValueError: the mask is not bool.
        """
        mask = _causal(full) if self.attention_mask is None else self.attention_mask
        if mask.dtype != torch.bool:
            raise ValueError(
                f"skipping: training needs masks that are bool: the model makes {mask.dtype}; call "
                "model.set_attn_implementation('sdpa')"
            )
        own = torch.eye(full.shape[1], dtype=torch.bool, device=full.device)
        return self._replace(attention_mask=(mask & runs[:, None, None, :]) | own)


def _mask(mask: Tensor | None, tokens: Tokens, full: Tensor) -> Tensor | None:
    """The attention mask for the tokens that run. Rows that are none may see nothing, and are not read."""
    if mask is None and bool(tokens.alive.all()):
        return None
    mask = _causal(full) if mask is None else mask
    at = tokens.position[:, None]  # [batch, 1, rows]
    batch, count, length = at.shape[0], at.shape[2], mask.shape[3]
    rows = mask.expand(batch, -1, -1, -1).gather(2, at.unsqueeze(3).expand(-1, mask.shape[1], -1, length))
    rows = rows.gather(3, at.unsqueeze(2).expand(-1, mask.shape[1], count, -1))
    alive = tokens.alive[:, None, None, :]
    return rows & alive if mask.dtype == torch.bool else rows.masked_fill(~alive, torch.finfo(mask.dtype).min)


def _causal(full: Tensor) -> Tensor:
    """(1, 1, length, length) bool."""
    length = full.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=full.device).tril()[None, None]
