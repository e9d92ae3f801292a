"""Proof that a model loses no more than was allowed: a one-sided bound on its loss, from paired scores.

    scores:      x_i = sparse_i − (1 − loss) · dense_i           the loss is at most ``loss`` where E[x] ≥ 0
    perplexity:  x_i = log(1 + loss) − (sparse_i − dense_i)      of negative log-likelihoods, nats per token

The null, "the loss is at least ``loss``", has the p-value P(w_0 a + w_1 x_1 + … + w_n x_n ≤ 0) for weights drawn evenly
from those that sum to 1, where a is the worst that x can be. For items that are lost or kept whole it is the binomial
test; it needs neither normal differences nor a variance, so ties, zeros and rare harm do not deceive it.

Whoever looks several times, or tries several settings, spends a part of alpha on each.

Source: Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable",
Mathematical Methods of Statistics 14 (2005); Learned-Miller and Thomas, arXiv:1905.06208. The choice is
docs/decisions/0015-proof-by-gaffkes-bound.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

WORST_MARGINS = 10.0
"""How many times the allowed loss an item may lose at least, where nothing is known of it."""
WORST_SEEN = 2.0
"""How many times what the worst item lost another one may lose, where nothing is known of it."""
_HALVINGS = 50  # of the interval in which a bound lies


@dataclass(frozen=True)
class Verdict:
    """What was found at a look; ``print(verdict.claim)``.

    Attributes:
        state: ``proved`` (the loss is at most what is allowed), ``refuted`` (it is more), or ``undecided``.
        loss: the loss of these items, relative; below 0 for a gain.
        low: the loss is at least this, with the confidence of the look; -inf where nothing can be said.
        high: the loss is at most this, with the confidence of the look; inf where nothing can be said.
        max_loss: what is allowed.
        items: that were looked at.
        alpha: what this look could spend.
        spent: what this and all looks before could spend, in this and earlier attempts.
        level: confidence of the claim, over all looks and attempts: one less all of alpha.
        of: what is lost: ``perplexity`` or ``score``.
    """

    state: Literal["proved", "refuted", "undecided"]
    loss: float
    low: float
    high: float
    max_loss: float
    items: int
    alpha: float
    spent: float
    level: float
    of: str

    @property
    def claim(self) -> str:
        """The finding as a sentence, for a page."""
        asked, sure = f"{100 * self.max_loss:g}%", f"{100 * self.level:g}% confidence"
        if self.state == "proved":
            bound = f"{100 * self.high:.2f}%" if self.high > 0 else "0"
            return f"the loss of {self.of} is at most {bound}, with {sure} (allowed: {asked}; {self.items} items)"
        if self.state == "refuted":
            return f"the loss of {self.of} is more than {asked}, with {sure} ({self.items} items)"
        high = f"could be as much as {100 * self.high:.2f}%" if math.isfinite(self.high) else "has no bound yet"
        return f"not proved: the loss of {self.of} {high} at {sure} (allowed: {asked}; {self.items} items)"


@dataclass(frozen=True)
class Proof:
    """A plan, made before the first look at the held-out items, of when to look and what each look may spend.

        proof = Proof(0.01, looks=(50, 100, 200), of="perplexity")
        verdict = proof.look(dense[:50], sparse[:50])              # proved: stop; undecided: score more items

    Of what an attempt may spend, half is for the last look, and the others share the other half. Attempt k, counted
    from 1, may spend alpha / 2^k where several are made, so that all together spend no more than alpha. Settings that
    are tried one after the other must come from a list that was made without the held-out scores.

    Args:
        max_loss: what is allowed, relative: 0.01 for 1% of the score, or of perplexity.
        looks: numbers of items at which to look, ascending.
        of: ``score`` (higher is better, from ``lowest`` on) or ``perplexity`` (of NLL, nats per token).
        alpha: how often a false claim may be made, over all looks and attempts.
        attempt: which setting this is, where others may be tried; 0 where it is the only one.
        lowest: of scores. 0 for accuracy, MRR and their like.
        worst: of perplexity, the most nats per token that an item may lose. None takes the larger of 10 times what is
            allowed and twice what the worst item lost: a guess, and the claim is conditional on it.

    Raises:
        ValueError: an argument is out of its range.
    """

    max_loss: float
    looks: tuple[int, ...]
    of: Literal["score", "perplexity"] = "score"
    alpha: float = 0.05
    attempt: int = 0
    lowest: float = 0.0
    worst: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.max_loss < 1:
            raise ValueError(f"Proof: max_loss must be above 0 and below 1: got {self.max_loss}; try 0.01")
        if not self.looks or self.looks[0] < 1 or any(b <= a for a, b in zip(self.looks, self.looks[1:], strict=False)):
            raise ValueError(f"Proof: looks must be ascending numbers of items: got {self.looks}; try (50, 100, 200)")
        if self.of not in ("score", "perplexity"):
            raise ValueError(f"Proof: of must be 'score' or 'perplexity': got {self.of!r}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"Proof: alpha must be above 0 and below 1: got {self.alpha}; try 0.05")
        if self.attempt < 0:
            raise ValueError(f"Proof: attempt must count from 1, or be 0 for the only one: got {self.attempt}")
        if self.worst is not None and not 0 < self.worst < math.inf:
            raise ValueError(f"Proof: worst must be above 0 and finite: got {self.worst}; leave it out")

    def spends(self, look: int) -> float:
        """What a look may spend, counted from 0."""
        attempt = self.alpha / 2**self.attempt
        if len(self.looks) == 1:
            return attempt
        return attempt / 2 if look == len(self.looks) - 1 else attempt / 2 / (len(self.looks) - 1)

    @property
    def fewest(self) -> int:
        """Items below which the last look proves nothing, even where not one item loses anything.

        Rare harm can hide in fewer: an item in a hundred that is lost whole is a loss of 1%.
        """
        share = self.max_loss
        if self.of == "perplexity":
            margin = math.log1p(self.max_loss)
            share = margin / max(self.worst or WORST_MARGINS * margin, margin)
            if share == 1:
                return 1
        return math.ceil(math.log(self.spends(len(self.looks) - 1)) / math.log1p(-share))

    def look(self, dense: np.ndarray, sparse: np.ndarray) -> Verdict:
        """What the items so far say.

        Args:
            dense: (items,), scores of the model as it was, or its NLL.
            sparse: (items,), of the tuned one, item by item.

        Returns:
            The verdict. A NaN or infinite score proves nothing.

        Raises:
            ValueError: the number of items is none at which a look was planned, or a score is below the lowest.
        """
        dense, sparse = np.asarray(dense, np.float64), np.asarray(sparse, np.float64)
        if dense.shape != sparse.shape or dense.ndim != 1:
            raise ValueError(f"Proof.look: scores must be paired: got {dense.shape} and {sparse.shape}")
        if len(dense) not in self.looks:
            raise ValueError(
                f"Proof.look: looks were planned at {self.looks} items: got {len(dense)}; looks that are not planned "
                "make the bound untrue"
            )
        number = self.looks.index(len(dense))
        alpha = self.spends(number)
        loss, low, high = math.nan, -math.inf, math.inf
        state = "undecided"
        if np.isfinite(dense).all() and np.isfinite(sparse).all():
            find = self._of_perplexity if self.of == "perplexity" else self._of_score
            loss, low, high = find(dense, sparse, alpha)
            if self.p_values(dense[None], sparse[None])[0] <= alpha:
                state, high = "proved", min(high, self.max_loss)  # a bound is found to a rounding
            elif low > self.max_loss:
                state = "refuted"
        earlier = self.alpha * (1 - 2.0 ** -(self.attempt - 1)) if self.attempt else 0.0
        spent = earlier + sum(self.spends(each) for each in range(number + 1))
        return Verdict(state, loss, low, high, self.max_loss, len(dense), alpha, spent, 1 - self.alpha, self.of)

    def p_values(self, dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
        """P-values of "the loss is at least max_loss"; a look proves it where its own is at most what it may spend.

        Args:
            dense: (runs, items), finite.
            sparse: (runs, items), finite.

        Returns:
            (runs,).
        """
        if self.of == "perplexity":
            nats, lost = math.log1p(self.max_loss), sparse - dense
            return p_value(nats - lost, nats - self._worst(lost))
        self._check_lowest(dense, sparse)
        return _p_of_kept(self.max_loss, dense - self.lowest, sparse - self.lowest)

    def _worst(self, lost: np.ndarray) -> np.ndarray:
        """(runs,): the most nats that an item is taken to lose."""
        most = lost.max(1)
        if self.worst is not None:
            return np.maximum(self.worst, most)
        return np.maximum(WORST_MARGINS * math.log1p(self.max_loss), WORST_SEEN * most)

    def _of_perplexity(self, dense: np.ndarray, sparse: np.ndarray, alpha: float) -> tuple[float, float, float]:
        """Loss, and its bounds."""
        lost = sparse - dense
        bounds = []
        for each in (lost, -lost):
            worst = self._worst(each[None])
            bounds.append(
                _root(lambda nats, x=each, a=worst: p_value((nats - x)[None], nats - a), each.mean(), worst[0], alpha)
            )
        high, low = bounds
        return tuple(float(np.expm1(nats)) for nats in (lost.mean(), -low, high))  # type: ignore[return-value]

    def _of_score(self, dense: np.ndarray, sparse: np.ndarray, alpha: float) -> tuple[float, float, float]:
        """Loss, and its bounds."""
        self._check_lowest(dense, sparse)
        dense, sparse = dense - self.lowest, sparse - self.lowest
        mean, best = float(dense.mean()), max(float(dense.max()), float(sparse.max()))
        if mean == 0:
            return math.nan, -math.inf, math.inf
        loss = 1 - float(sparse.mean()) / mean

        def of_gained(gain: float) -> np.ndarray:
            return p_value(((1 + gain) * dense - sparse)[None], np.array([-best]))

        high = _root(lambda share: _p_of_kept(share, dense[None], sparse[None]), loss, 1.0, alpha)
        return loss, -_root(of_gained, -loss, best / mean, alpha), high

    def _check_lowest(self, dense: np.ndarray, sparse: np.ndarray) -> None:
        least = min(float(dense.min()), float(sparse.min()))
        if least < self.lowest:
            raise ValueError(
                f"Proof: scores must not be below the lowest, {self.lowest:g}: got {least:g}; give lowest, or "
                "of='perplexity' for scores of which lower is better"
            )


def p_value(x: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """P-values of "the mean of x is 0 or less".

        S(i, j) = ((x_j) S(i+1, j) + (−x_i) S(i, j−1)) / (x_j − x_i)       of sorted values, x_i < 0 < x_j

    is P(w · x > 0) for even weights over values i to j: a convex combination at each step, so that it is exact to
    rounding, with ties too.

    Args:
        x: (runs, items).
        worst: (runs,), the least that x can be; what is above the least of a run's x counts as that.

    Returns:
        (runs,).
    """
    least = np.minimum(worst, x.min(1))
    x = np.sort(np.concatenate([least[:, None], x], 1), 1)
    above = (x > 0).astype(np.float64)  # P(w · x > 0) over runs of one value
    for length in range(1, x.shape[1]):
        low, high = x[:, :-length], x[:, length:]
        mixed = (low <= 0) & (high > 0)
        span = np.where(mixed, high - low, 1.0)
        both = (high * above[:, 1:] - low * above[:, :-1]) / span
        above = np.where(mixed, both, (low > 0).astype(np.float64))
    return 1 - above[:, 0]


def _p_of_kept(loss: float, dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
    """(runs,): p-values of "the loss is at least this", of scores that are 0 at worst."""
    return p_value(sparse - (1 - loss) * dense, -(1 - loss) * dense.max(1))


def _root(p: Callable[[float], np.ndarray], start: float, end: float, alpha: float) -> float:
    """The least loss between two whose p-value is at most alpha; inf where there is none."""
    low, high = float(start), float(end)
    if high <= low or p(high)[0] > alpha:
        return math.inf
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if p(middle)[0] <= alpha else (middle, high)
    return high
