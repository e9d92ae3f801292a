"""SpAtten: cascade token and head pruning, local value pruning, progressive quantisation.

    tokens      importance_j += Σ_h Σ_i P_hij             after every layer; the top ⌈ratio_l · n⌉ go on
    heads       importance_h += Σ_i Σ_d |out_hid|         after every layer; the top ⌈ratio_l · heads⌉ go on
    values      out_hi = Σ_{j ∈ top ⌈values · n⌉ of P_hi} P_hij v_j
    quantised   P_hi from the high bits of Q and K; from all bits where max_j P_hij < threshold

A pruned token or head is gone in all later layers, which are shorter and have fewer heads. Sums run over the tokens and
heads that are left. Value pruning and quantisation save memory traffic on hardware made for them; here they compute
exactly what that hardware would, and take longer than attention without them.

Source: arXiv:2012.09852, HPCA 2021. The schedule of the ratios over the layers is this library's
(:mod:`dynattn.pruning.schedule`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.methods import share
from dynattn.pruning import quantise
from dynattn.pruning.base import NUMBER, Pruning
from dynattn.pruning.course import Attended, Course, Decision, Seen, Start, highest, top
from dynattn.pruning.importance import probabilities, received
from dynattn.pruning.schedule import FRONT, check_ratio, counts, schedule

HEAD_FRONT = 0.3
"""The share of the layers, from the first on, that keep all heads: the importance of heads settles later than that of
tokens."""

_NAME = re.compile(
    rf"spatten-(?P<keep>{NUMBER})(?:-h(?P<heads>{NUMBER}))?(?:-v(?P<values>{NUMBER}))?"
    rf"(?:-q(?P<high>\d+)\.(?P<low>\d+)(?:-t(?P<threshold>{NUMBER}))?)?"
)


@final
@dataclass(frozen=True)
class SpAtten(Pruning):
    """Cascade token and head pruning, local value pruning, progressive quantisation.

    Args:
        keep: the keep ratio of the tokens at the last layer, above 0 and at most 1.
        heads: the keep ratio of the heads at the last layer.
        values: the share of a query's keys whose values are read.
        bits: how many high and low bits Q and K have, as in (8, 4). V is rounded to all of them together. None for no
            quantisation.
        threshold: between 0 and 1. A row whose largest probability is below it is computed again with the low bits.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.
    """

    keep: float
    heads: float = 1.0
    values: float = 1.0
    bits: tuple[int, int] | None = None
    threshold: float = 0.1

    def __post_init__(self) -> None:
        for field in ("keep", "heads", "values"):
            check_ratio("SpAtten", field, getattr(self, field))
        if self.bits is not None:
            quantise.check_bits("SpAtten", self.bits)
        if not isinstance(self.threshold, (int, float)) or not 0 <= self.threshold <= 1:
            raise ValueError(f"SpAtten: threshold must be between 0 and 1: got {self.threshold!r}; 0.1 is the paper's")
        if self.bits is None and self.threshold != 0.1:
            raise ValueError(
                "SpAtten: threshold belongs to quantisation, which is off: give bits too, as in bits=(8, 4)"
            )

    @property
    def prunes_heads(self) -> bool:
        """Whether ``heads`` is below 1."""
        return self.heads < 1

    @property
    def name(self) -> str:
        """``spatten-KEEP``, with ``-hHEADS``, ``-vVALUES``, ``-qHIGH.LOW`` and ``-tTHRESHOLD`` where they are set."""
        heads = f"-h{share.text(self.heads)}" if self.heads != 1 else ""
        values = f"-v{share.text(self.values)}" if self.values != 1 else ""
        bits = "" if self.bits is None else f"-q{self.bits[0]}.{self.bits[1]}"
        threshold = f"-t{share.text(self.threshold)}" if self.threshold != 0.1 else ""
        return f"spatten-{share.text(self.keep)}{heads}{values}{bits}{threshold}"

    @classmethod
    def from_name(cls, name: str) -> SpAtten | None:
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        ratios = {key: float(match[key]) for key in ("keep", "heads", "values", "threshold") if match[key]}
        bits = (int(match["high"]), int(match["low"])) if match["high"] else None
        return cls(bits=bits, **ratios)

    def course(self, start: Start) -> Course:
        return _Cascade(self, start)


class _Cascade(Course):
    """Accumulates the importance of tokens and heads over the layers of one forward, each at its place in the full
    model."""

    def __init__(self, method: SpAtten, start: Start) -> None:
        self.method = method
        self.ratios = schedule(method.keep, start.layers, FRONT)
        self.head_ratios = schedule(method.heads, start.layers, HEAD_FRONT)
        self.total = start.alive.sum(1)
        batch, length = start.alive.shape
        self.tokens = torch.zeros(batch, length, dtype=torch.float64, device=start.alive.device)
        self.heads = torch.zeros(batch, start.heads, dtype=torch.float64, device=start.alive.device)
        self.head_index = torch.arange(start.heads, device=start.alive.device).expand(batch, -1)
        self.sums: Tensor | None = None  # what each token receives in the layer at work, [batch, tokens left]
        self.found: dict[str, Tensor] = {}

    def attend(self, attended: Attended) -> Tensor:
        method, last = self.method, attended.layer + 1 == len(self.ratios)
        self.sums, self.found = None, {}
        if method.values < 1 or method.bits is not None:
            out, sums = self._written_out(attended)
        elif last or method.keep == 1:  # the importance of tokens decides nothing any more
            out, sums = attended.run(), None
        else:
            value = attended.value if attended.dense else None
            sums, out = received(attended.query, attended.key, attended.scale, attended.alive, value)
            out = attended.run() if out is None else out
        if sums is not None:
            self.sums = sums.sum(1)
        if method.heads < 1 and not last:
            if attended.heads is not None:
                self.head_index = attended.heads
            size = out.detach().abs().sum(-1)  # [batch, tokens left, heads left]
            if attended.alive is not None:
                size = size * attended.alive.unsqueeze(-1)
            self.heads = self.heads.scatter_add(1, self.head_index, size.sum(1).to(self.heads.dtype))
        return out

    def after(self, seen: Seen) -> Decision:
        following = seen.layer + 1
        if following == len(self.ratios):
            return Decision()
        tokens = heads = None
        if self.sums is not None:
            self.tokens = self.tokens.scatter_add(1, seen.position, self.sums.detach().to(self.tokens.dtype))
            if self.ratios[following] < 1:
                count = counts(self.ratios[following], self.total)
                tokens = top(self.tokens.gather(1, seen.position), seen, count)
        if self.head_ratios[following] < 1:
            left = self.heads.gather(1, self.head_index)
            all_heads = torch.full_like(self.total, self.heads.shape[1])
            count = counts(self.head_ratios[following], all_heads)
            heads = highest(left, torch.ones_like(left, dtype=torch.bool), count)
        return Decision(tokens, heads)

    def notes(self) -> dict[str, Tensor]:
        return self.found

    def _written_out(self, attended: Attended) -> tuple[Tensor, Tensor]:
        """Compute attention with quantised inputs and pruned values, all probabilities at once: its output and column
        sums."""
        if not attended.dense:
            raise ValueError(
                "SpAtten: value pruning and quantisation replace the model's attention, which must be dense: call "
                "model.set_attn_implementation('sdpa'), or use SpAtten for tokens and heads alone"
            )
        batch, heads, length, _ = attended.query.shape
        alive = attended.alive
        if alive is None:
            alive = torch.ones(batch, length, dtype=torch.bool, device=attended.query.device)
        p, value, again = self._probabilities(attended, alive)
        rows = alive[:, None, :].expand(-1, heads, -1)  # [batch, heads, length]
        count = alive.sum(1)
        if self.method.bits is not None:
            self.found["rows"] = rows.sum((1, 2))
            self.found["rows_again"] = (again & rows).sum((1, 2))
        kept = p
        if self.method.values < 1:
            read = counts(self.method.values, count)
            kept = p * highest(p, alive[:, None, None], read[:, None, None])
            self.found["values_read"] = read * count * heads
        return (kept @ value).transpose(1, 2), (p * rows.unsqueeze(-1)).sum(2)

    def _probabilities(self, attended: Attended, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P, V as it is read, and which rows were computed again, as bool (batch, heads, length)."""
        query, key, value, scale = attended.query, attended.key, attended.value, attended.scale
        if self.method.bits is None:
            p = probabilities(query, key, scale, alive)
            return p, value, torch.zeros_like(p[..., 0], dtype=torch.bool)
        high, low = self.method.bits
        q, k = (quantise.split(x, alive, high, low) for x in (query, key))
        first = probabilities(q.high, k.high, scale, alive)
        again = first.amax(-1) < self.method.threshold
        p = torch.where(again.unsqueeze(-1), probabilities(q.whole, k.whole, scale, alive), first)
        return p, quantise.split(value, alive, high, low).whole, again
