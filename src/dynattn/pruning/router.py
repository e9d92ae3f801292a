"""FTP's routers, which say of each token of a decoder whether it runs a layer, and what they look at.

    static    tokens in the order first, last, last but one, …; the first ⌈(1 - s_l) n⌉ of it run layer l
    learned   z = W_2 gelu(W_1 [position, log10(1 + score), rank, s_l] + b_1) + b_2
              the token runs  ⇔  z_run >= z_skip,  or it is the first one, or s_l = 0

One router serves all layers. Attention leans on the first token, hence its right to run: what a causal router sees
hardly tells it from the second one. Scores reach hundreds where the other inputs end at 1, hence the logarithm. Of n
tokens, the j-th (from 0) has, with P the dense attention of the last layer that it ran, the mean over the heads, among
the tokens that ran it:

    looking ahead   position = j / n,       score = Σ_i P_ij,         rank = |{i: score_i above score_j}| / n
    causal          position = j / length,  score = P_jj · (j' + 1),  rank = |{i < j: score_i >= score_j}| / (j + 1)

where j' counts the tokens before j that ran that layer. Both scores are 1 where attention is even, and before any layer
has run. Looking ahead, a choice knows later queries: it suits a prompt that is read as a whole. The causal inputs of a
token depend on it and on the tokens before it alone, so that scores of every token may be judged.

Source: arXiv:2412.11494 for the two routers and the four inputs. Their scales and the causal inputs are this library's.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from dynattn.functional import attention
from dynattn.maths.scores import arithmetic_dtype, per_head, scores
from dynattn.methods import NM
from dynattn.pruning.skipping import Ran

RUN, SKIP = 0, 1
"""The indices of the logits of running a layer and of skipping it."""

_INPUTS, _HIDDEN = 4, 64
_ROUNDING = 1e-9  # taken off before rounding up, since (1 - 0.9) · 10 is a little above 1
_WEIGHTS, _CONFIG = "router.safetensors", "router.json"


class Router(nn.Module):
    """The small network that all layers share.

    Args:
        length: what positions are divided by, where the router does not look ahead; about the length that it is trained
            on.
        look_ahead: whether tokens are judged by all queries, later ones too. Such choices suit a prompt that is read as
            a whole, and not the likelihood of each of its tokens.

    Raises:
        ValueError: the length is not positive.

    Source: arXiv:2412.11494.
    """

    def __init__(self, length: int = 1024, *, look_ahead: bool = False) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"Router: length must be at least 1: got {length}; pass the length that it is trained on")
        self.length, self.look_ahead = length, look_ahead
        self.logits = nn.Sequential(nn.Linear(_INPUTS, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, 2))

    def forward(self, alive: Tensor, score: Tensor, sparsity: float) -> Tensor:
        """The logits of running a layer and of skipping it.

        Args:
            alive: (batch, length) bool, False at padding.
            score: (batch, length), of :func:`score`.
            sparsity: the share of the tokens that the layer shall skip.

        Returns:
            (batch, length, 2), entries :data:`RUN` and :data:`SKIP`. Those of padding mean nothing.
        """
        inputs = self.inputs(alive, score, sparsity)
        weight = next(self.logits.parameters())
        return self.logits(inputs.to(weight.device, weight.dtype)).to(score.device)

    def inputs(self, alive: Tensor, score: Tensor, sparsity: float) -> Tensor:
        """What the network is given: position, the score's logarithm, rank and sparsity. The arguments are those above.

        Returns:
            (batch, length, 4), in the dtype of the scores.
        """
        place = (alive.cumsum(1) - 1).clamp(min=0)
        total = alive.sum(1, keepdim=True).clamp(min=1)
        if self.look_ahead:
            position, rank = place / total, _rank(score, alive) / total
        else:
            position, rank = place / self.length, _rank_before(score, alive) / (place + 1)
        return torch.stack([position, (1 + score).log10(), rank, torch.full_like(score, sparsity)], dim=-1)

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and arguments (JSON) into a folder, which is made if need be."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / _WEIGHTS)
        config = {"length": self.length, "look_ahead": self.look_ahead}
        (folder / _CONFIG).write_text(json.dumps(config) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Router:
        """Read what :meth:`save` wrote, in eval mode.

        Raises:
            ValueError: the folder holds no router, or a damaged one.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not all((folder / name).exists() for name in (_CONFIG, _WEIGHTS)):
            raise ValueError(
                f"Router: {folder} must hold {_CONFIG} and {_WEIGHTS}: it does not; train one, or check the path"
            )
        try:
            found = cls(**json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"Router: {folder / _CONFIG} must be what save wrote: {error}; train one again") from error
        try:
            found.load_state_dict(load_file(folder / _WEIGHTS))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"Router: {folder / _WEIGHTS} must be what save wrote: {error}; train one again"
            ) from error
        return found.eval()


def static(alive: Tensor, sparsity: float) -> Tensor:
    """Who runs a layer by the static router: the first token and the last ones, ``⌈(1 - sparsity) · n⌉`` of n.

    Args:
        alive: (batch, length) bool, False at padding.
        sparsity: the share of the tokens that skip.

    Returns:
        (batch, length) bool.
    """
    total = alive.sum(1, keepdim=True)
    place = alive.cumsum(1) - 1
    order = torch.where(place == 0, 0, total - place)  # the last one is 1, the one before it 2
    count = ((1 - sparsity) * total.double() - _ROUNDING).ceil()
    return alive & (order < count)


@torch.no_grad()
def score(ran: Ran, look_ahead: bool) -> Tensor:
    """What the tokens of a layer receive: from all queries that ran it, or of their own attention alone.

    Args:
        ran: the layer's attention. Its rows are in the order of their positions.
        look_ahead: as :class:`Router` takes it.

    Returns:
        (batch, rows), float32 or float64. Rows that do not run mean nothing.
    """
    return _received(ran) if look_ahead else _kept_to_itself(ran)


def _received(ran: Ran) -> Tensor:
    """``Σ_i P_ij``, the mean over the heads; a head at a time."""
    heads = ran.query.shape[1]
    key, found = per_head(ran.key, heads), []
    for head in range(heads):
        s = scores(ran.query[:, head : head + 1], key[:, head : head + 1], ran.mask, ran.mask is None, ran.scale)
        found.append(s.softmax(-1).masked_fill(~ran.runs[:, None, :, None], 0.0).sum((1, 2)))
    return torch.stack(found).mean(0)


def _kept_to_itself(ran: Ran) -> Tensor:
    """``P_jj · (j' + 1)``, the mean over the heads, in memory linear in length."""
    dtype = arithmetic_dtype(ran.query.dtype)
    key = per_head(ran.key, ran.query.shape[1])
    # The values decide nothing here: a number of each is enough to get the normalisers of the rows.
    _, aux = attention(
        ran.query, ran.key, ran.key[..., :1], NM(1, 1), attn_mask=ran.mask, causal=ran.mask is None, scale=ran.scale,
        return_aux=True,
    )  # fmt: skip
    own = ran.scale * (ran.query.to(dtype) * key.to(dtype)).sum(-1)
    return (own - aux.logsumexp).exp().mean(1) * ran.runs.cumsum(1)


def _rank(score: Tensor, alive: Tensor) -> Tensor:
    """How many tokens of the sample have a higher score, or the same and come before; (batch, length) int64."""
    order = score.masked_fill(~alive, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _rank_before(score: Tensor, alive: Tensor) -> Tensor:
    """How many tokens before it have as high a score; (batch, length) int64."""
    above = score.unsqueeze(1) >= score.unsqueeze(2)  # [batch, length, length], of j and i
    return (above & alive.unsqueeze(1)).tril(-1).sum(-1)
