"""DynamicViT's predictor, which judges by each token, and by the mean of those left, whether the token is worth
keeping.

    z         = GELU(W · LayerNorm(x)),     z = [z_local, z_mixed],  two halves of the width
    z_global  = Σ_i D_i z_mixed_i / Σ_i D_i                    over the tokens kept so far, D in {0, 1}
    log π_i   = log_softmax(MLP([z_local_i, z_global]))        entry 0: keep, entry 1: drop
    D_i      <- D_i · [keep_i of a Gumbel-softmax sample of π_i]                          (training)

Source: arXiv:2106.02034, section 3.2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dynattn.pruning.schedule import check_ratio

KEEP = 0
"""The index of the log-probability that a token is kept."""

_SPREAD = 0.02  # the standard deviation of initial weights, as in vision transformers
_WEIGHTS, _CONFIG = "predictors.safetensors", "predictors.json"


class Predictor(nn.Module):
    """The small network of one stage.

    Args:
        width: the width of the model's hidden states, a multiple of 4.

    Raises:
        ValueError: the width is another one.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"Predictor: width must be a multiple of 4: got {width}; pass the model's hidden_size")
        self.width = width
        self.embed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU(),
            nn.Linear(width // 4, 2), nn.LogSoftmax(-1),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_SPREAD)
                nn.init.zeros_(module.bias)

    def forward(self, hidden: Tensor, kept: Tensor) -> Tensor:
        """Log-probabilities of keeping and of dropping each token.

        Args:
            hidden: (batch, tokens, width).
            kept: (batch, tokens), 1 for the tokens that the mean is over, else 0; bool, or float with a gradient.

        Returns:
            (batch, tokens, 2), entry :data:`KEEP` is that of keeping. Entries of tokens not kept mean nothing.
        """
        local, mixed = self.embed(hidden).chunk(2, dim=-1)  # [batch, tokens, width / 2] each
        weight = kept.to(mixed.dtype).unsqueeze(-1)
        mean = (mixed * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        return self.score(torch.cat([local, mean.expand_as(local)], dim=-1))


class Predictors(nn.Module):
    """A predictor for each stage, and how many tokens each stage leaves.

    Stage s = 1, 2, … stands before layer ``layers[s - 1]`` and leaves ``floor(keep_ratio^s · n)`` of n tokens.

    Args:
        width: the width of the model's hidden states.
        layers: the layers before which tokens are dropped, ascending, from 1. The default is the paper's, for 12
            layers.
        keep_ratio: the share of its tokens that a stage leaves, above 0, at most 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, width: int, layers: Sequence[int] = (3, 6, 9), keep_ratio: float = 0.7) -> None:
        super().__init__()
        layers = tuple(layers)
        if not layers or layers[0] < 1 or list(layers) != sorted(set(layers)):
            raise ValueError(f"Predictors: layers must ascend from 1: got {layers}; (3, 6, 9) suits 12 layers")
        check_ratio("Predictors", "keep_ratio", keep_ratio)
        self.width, self.layers, self.keep_ratio = width, layers, keep_ratio
        self.stages = nn.ModuleList(Predictor(width) for _ in layers)

    def log_probabilities(self, stage: int, hidden: Tensor, kept: Tensor) -> Tensor:
        """What the :class:`Predictor` of a stage, counted from 0, returns."""
        return self.stages[stage](hidden, kept)

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and arguments (JSON) into a folder, which is made if need be."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / _WEIGHTS)
        config = {"width": self.width, "layers": self.layers, "keep_ratio": self.keep_ratio}
        (folder / _CONFIG).write_text(json.dumps(config) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Predictors:
        """Read what :meth:`save` wrote, in eval mode.

        Raises:
            ValueError: the folder holds no predictors, or damaged ones.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not all((folder / name).exists() for name in (_CONFIG, _WEIGHTS)):
            raise ValueError(
                f"Predictors: {folder} must hold {_CONFIG} and {_WEIGHTS}: it does not; train some, or check the path"
            )
        try:
            found = cls(**json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
            found.load_state_dict(load_file(folder / _WEIGHTS))
        except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"Predictors: {folder} must hold what save wrote: {error}; train some again") from error
        return found.eval()


def left_after(tokens: int, keep_ratio: float, stage: int) -> int:
    """How many of ``tokens`` the stage, counted from 0, leaves: ``floor(keep_ratio^(stage + 1) · tokens)``, at least 1.

    A product that misses a whole number only by rounding counts as that number: 0.7² · 100 is 49.
    """
    return max(1, math.floor(keep_ratio ** (stage + 1) * tokens + 1e-9))


def draw(log_probabilities: Tensor, before: Tensor) -> Tensor:
    """Sample which tokens go on: straight-through Gumbel-softmax, cumulative.

        D_i = before_i · [log π_i,keep + g_i > log π_i,drop + g'_i],    g, g' ~ Gumbel(0, 1)

    The gradient is that of the softmax of the two perturbed values, at temperature 1.

    Args:
        log_probabilities: (batch, tokens, 2), of :class:`Predictor`.
        before: (batch, tokens), decisions so far, 0 or 1.

    Returns:
        (batch, tokens), 0 or 1, with a gradient for both arguments.

    Source: arXiv:2106.02034, equations 6 and 7; Gumbel-softmax: arXiv:1611.01144.
    """
    sample = nn.functional.gumbel_softmax(log_probabilities, hard=True)  # [batch, tokens, 2], one-hot
    return sample[..., KEEP] * before
