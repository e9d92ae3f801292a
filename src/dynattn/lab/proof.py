"""Proves that a model loses no more than was allowed, by a one-sided bound on its loss, from paired scores.

    scores:      x_i = sparse_i − (1 − loss) · dense_i           the loss is at most ``loss`` where E[x] ≥ 0
    perplexity:  x_i = log(1 + loss) − (sparse_i − dense_i)      of negative log-likelihoods, nats per token

Someone bets on x, item after item, and sets each bet by the items before: wealth = ∏ (1 + bet_i · x_i). If the loss
were at least ``loss``, no way to bet would ever bring wealth to 1/alpha with a probability above alpha. So wealth that
gets there is a proof, whenever one stops. The items need not be normal, and no variance is estimated, so that ties,
zeros and rare harm do not deceive it.

Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", arXiv:2010.09686. The choice
is docs/decisions/0015-proof-by-betting.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

WORST_MARGINS = 20.0
"""Where nothing else is known, an item of perplexity may lose at least so many times the allowed loss."""
WORST_SEEN = 3.0
"""Where nothing else is known, an item may lose at least so many times what the worst item before it lost."""
_STAKE = 0.9  # the largest share of wealth that the worst possible item may take
_FIRST = 0.5  # the share of the largest bet that is staked before any item is known
_LOST = 1e-300  # the wealth after an item that is worse than it may be: what is lost stays lost
_STEP = 0.95  # the ratio of one loss that is tried to the next lower one
_HALVINGS = 20  # how often the last step is halved
_MOST = 700.0  # nats; the exponential of more is no number
_FAR = 20.0  # nats; no bound beyond this is looked for


@dataclass(frozen=True)
class Verdict:
    """The result of a look; ``print(verdict.claim)`` shows it as a sentence.

    Attributes:
        state: ``proved`` (the loss is at most what is allowed), ``refuted`` (it is more), or ``undecided``.
        loss: the loss of these items, relative; below 0 for a gain.
        high: the loss is at most this, with the confidence of the attempt; 0 at least, inf where nothing can be said.
        max_loss: what is allowed.
        items: that were looked at.
        alpha: what the attempt may spend.
        spent: what this and earlier attempts may spend.
        level: confidence of the claim, over all looks and attempts: one less all of alpha.
        of: what is lost: ``perplexity`` or ``score``.
    """

    state: Literal["proved", "refuted", "undecided"]
    loss: float
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
            bound = f"{_upwards(self.high)}%" if self.high > 0 else "0"
            return f"the loss of {self.of} is at most {bound}, with {sure} (allowed: {asked}; {self.items} items)"
        if self.state == "refuted":
            return f"the loss of {self.of} is more than {asked}, with {sure} ({self.items} items)"
        high = f"could be as much as {_upwards(self.high)}%" if math.isfinite(self.high) else "has no bound yet"
        return f"not proved: the loss of {self.of} {high} at {sure} (allowed: {asked}; {self.items} items)"


@dataclass(frozen=True)
class Proof:
    """What is to be proved, and what it may spend of the chance to be wrong.

        proof = Proof(0.01, of="perplexity")
        verdict = proof.look(dense[:50], sparse[:50])              # proved: stop; undecided: score more items

    It may be looked at after any number of items. They are independent draws, in an order that does not depend on
    their scores. Attempt k, counted from 1, may spend alpha / 2^k where several are made, so that all together spend
    no more than alpha; where it is known how many there will be, ``shares`` divides alpha otherwise. Settings that are
    tried one after the other come from a list that was made without the held-out scores.

    Args:
        max_loss: what is allowed, relative: 0.01 for 1% of the score, or of perplexity.
        looks: numbers of items at which to look, ascending, where there is a plan: others are refused then.
        of: ``score`` (higher is better, between ``lowest`` and ``highest``) or ``perplexity`` (of NLL, nats per token).
        alpha: how often a false claim may be made, over all looks and attempts.
        attempt: which setting this is, where others may be tried; 0 where it is the only one.
        lowest: the lowest score that there can be.
        highest: the highest score that there can be.
        worst: the most that an item may lose, in nats per token or in score; the claim is conditional on it. For
            perplexity None takes the larger of 20 times what is allowed and three times what the worst item before it
            lost, which is a guess as well. For scores None takes all that there is to lose.
        shares: of alpha, of each attempt, where it is known how many there are; empty for a half of what is left.

    Raises:
        ValueError: an argument is out of its range.
    """

    max_loss: float
    looks: tuple[int, ...] = ()
    of: Literal["score", "perplexity"] = "score"
    alpha: float = 0.05
    attempt: int = 0
    lowest: float = 0.0
    highest: float = 1.0
    worst: float | None = None
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.max_loss < 1:
            raise ValueError(f"Proof: max_loss must be above 0 and below 1: got {self.max_loss}; try 0.01")
        if any(b <= a for a, b in zip((0, *self.looks), self.looks, strict=False)):
            raise ValueError(f"Proof: looks must be ascending numbers of items: got {self.looks}; try (50, 100, 200)")
        if self.of not in ("score", "perplexity"):
            raise ValueError(f"Proof: of must be 'score' or 'perplexity': got {self.of!r}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"Proof: alpha must be above 0 and below 1: got {self.alpha}; try 0.05")
        if self.attempt < 0:
            raise ValueError(f"Proof: attempt must count from 1, or be 0 for the only one: got {self.attempt}")
        if self.shares and not (min(self.shares) > 0 and sum(self.shares) <= 1 + 1e-12):
            raise ValueError(f"Proof: shares must be above 0, and 1 in all at most: got {self.shares}; try (0.8, 0.2)")
        if self.shares and not 1 <= self.attempt <= len(self.shares):
            raise ValueError(
                f"Proof: attempt must be one of those that have shares, from 1 on: got {self.attempt} of "
                f"{len(self.shares)}"
            )
        if not -math.inf < self.lowest < self.highest < math.inf:
            raise ValueError(f"Proof: highest must be above lowest: got {self.highest} and {self.lowest}")
        if self.worst is not None and not 0 < self.worst < math.inf:
            raise ValueError(f"Proof: worst must be above 0 and finite: got {self.worst}; leave it out")

    @property
    def spends(self) -> float:
        """What this attempt may spend."""
        return self.alpha * (self.shares[self.attempt - 1] if self.shares else 2.0**-self.attempt)

    @property
    def _earlier(self) -> float:
        """What the attempts before this one may spend."""
        if self.shares:
            return self.alpha * sum(self.shares[: self.attempt - 1])
        return self.alpha * (1 - 2.0 ** -(self.attempt - 1)) if self.attempt else 0.0

    @property
    def fewest(self) -> int:
        """Items below which nothing is proved, even where not one item loses anything.

        Rare harm can hide in fewer: an item in a hundred that is lost whole is a loss of 1%. Of scores that are lower
        than the highest more are needed.
        """
        gain, worst = self.max_loss, min(1 - self.max_loss, (self.worst or math.inf) / (self.highest - self.lowest))
        if self.of == "perplexity":
            gain = math.log1p(self.max_loss)
            worst = max(self.worst or WORST_MARGINS * gain, gain) - gain
        if worst <= 0:
            return 1
        most = _STAKE / worst
        rest = math.log(1 / self.spends) - math.log1p(_FIRST * most * gain)
        return 1 + max(0, math.ceil(rest / math.log1p(most * gain)))

    def look(self, dense: np.ndarray, sparse: np.ndarray) -> Verdict:
        """What the items so far say.

        Args:
            dense: (items,), scores of the model as it was, or its NLL.
            sparse: (items,), of the tuned one, item by item.

        Returns:
            The verdict. A NaN or infinite score proves nothing.

        Raises:
            ValueError: the number of items is not one of the planned ones, or a score is out of its range.
        """
        dense, sparse = np.asarray(dense, np.float64), np.asarray(sparse, np.float64)
        if dense.shape != sparse.shape or dense.ndim != 1 or not len(dense):
            raise ValueError(f"Proof.look: scores must be paired: got {dense.shape} and {sparse.shape}")
        if self.looks and len(dense) not in self.looks:
            raise ValueError(f"Proof.look: looks were planned at {self.looks} items: got {len(dense)}")
        state, loss, high = "undecided", math.nan, math.inf
        if np.isfinite(dense).all() and np.isfinite(sparse).all():
            dense, sparse = dense[None], sparse[None]
            loss, high = self._loss(dense, sparse), self._bound(dense, sparse)
            if self.p_values(dense, sparse)[0] <= self.spends:
                state, high = "proved", min(high, self.max_loss)  # a bound is found to a rounding
            else:
                state = "refuted" if self._p_of_harm(dense, sparse) <= self.spends else "undecided"
                high = max(high, math.nextafter(self.max_loss, 1))
        return Verdict(
            state, loss, high, self.max_loss, dense.size, self.spends, self._earlier + self.spends, 1 - self.alpha,
            self.of,
        )  # fmt: skip

    def foresee(self, dense: np.ndarray, sparse: np.ndarray, items: int) -> Verdict:
        """What so many items would say, were they like these ones over and over.

        Args:
            dense, sparse: as :meth:`look` takes them.
            items: as many as are planned.
        """
        return self.look(np.resize(dense, items), np.resize(sparse, items))

    def p_values(self, dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
        """P-values of "the loss is at least max_loss", of looks at every number of items.

        Args:
            dense: (runs, items), finite.
            sparse: (runs, items), finite.

        Returns:
            (runs,): the claim is proved, by this number of items or before, where it is at most :attr:`spends`.
        """
        self._check_range(dense, sparse)
        return self._p_of(self.max_loss, dense, sparse)

    def _p_of(self, loss: float | np.ndarray, dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
        """(runs,): p-values of "the loss is at least this", one loss or (runs, 1)."""
        if self.of == "perplexity":
            nats, worst = np.log1p(loss), self._worst(sparse - dense)
            return _p(nats - (sparse - dense), np.maximum(worst - nats, worst / 100))
        x = (sparse - self.lowest) - (1 - loss) * (dense - self.lowest)
        most = np.minimum((1 - loss) * (self.highest - self.lowest), math.inf if self.worst is None else self.worst)
        return _p(x, np.broadcast_to(most, x.shape))

    def _p_of_harm(self, dense: np.ndarray, sparse: np.ndarray) -> float:
        """P-value of "the loss is at most max_loss"."""
        if self.of == "perplexity":
            nats, worst = math.log1p(self.max_loss), self._worst(dense - sparse)
            return float(_p(sparse - dense - nats, worst + nats)[0])
        x = (1 - self.max_loss) * (dense - self.lowest) - (sparse - self.lowest)
        return float(_p(x, np.full(x.shape, self.highest - self.lowest))[0])

    def _check_range(self, dense: np.ndarray, sparse: np.ndarray) -> None:
        least, most = min(dense.min(), sparse.min()), max(dense.max(), sparse.max())
        if self.of == "score" and (least < self.lowest or most > self.highest):
            raise ValueError(
                f"Proof: scores must be between {self.lowest:g} and {self.highest:g}: got {least:g} to {most:g}; give "
                "lowest and highest, or of='perplexity' for NLL"
            )

    def _worst(self, lost: np.ndarray) -> np.ndarray:
        """(runs, items): the most nats that each item is taken to lose."""
        if self.worst is not None:
            return np.full(lost.shape, self.worst)
        seen = np.maximum.accumulate(np.concatenate([np.zeros_like(lost[:, :1]), lost[:, :-1]], 1), 1)
        return np.maximum(WORST_MARGINS * math.log1p(self.max_loss), WORST_SEEN * seen)

    def _loss(self, dense: np.ndarray, sparse: np.ndarray) -> float:
        if self.of == "perplexity":
            return math.expm1(min(float((sparse - dense).mean()), _MOST))
        mean = float(dense.mean()) - self.lowest
        return 1 - (float(sparse.mean()) - self.lowest) / mean if mean > 0 else math.nan

    def _bound(self, dense: np.ndarray, sparse: np.ndarray) -> float:
        """The least loss from which on all are refuted, as far as steps of a twentieth of the rest can tell."""
        self._check_range(dense, sparse)
        most = 1 - 1e-9
        if self.of == "perplexity":
            most = math.expm1(min(float(self._worst(sparse - dense).max()), _FAR))
        losses = most * _STEP ** np.arange(max(1.0, math.log(self.max_loss / 1000 / most) / math.log(_STEP)))
        held = self._p_of(losses[:, None], dense, sparse) > self.spends
        first = int(held.argmax())
        if not held[first]:
            return 0.0
        if first == 0:
            return math.inf
        high, low = losses[first - 1], losses[first]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            holds = self._p_of(middle, dense, sparse)[0] > self.spends
            low, high = (middle, high) if holds else (low, middle)
        return float(high)


def _p(x: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """(runs,): one over the most wealth that there ever was, of bets on x; 1 at most.

    Bets are Kelly's for the mean and the mean square of the items before.

    Args:
        x: (runs, items).
        worst: (runs, items), how far below 0 each item may be, by what is known before it.
    """
    most = _STAKE / worst
    total, square = np.cumsum(x, 1)[:, :-1], np.cumsum(x * x, 1)[:, :-1]
    kelly = np.divide(total, square, out=np.zeros_like(total), where=square > 0)
    bets = _FIRST * most
    bets[:, 1:] = np.clip(kelly, 0, most[:, 1:])
    wealth = np.cumsum(np.log(np.maximum(1 + bets * x, _LOST)), 1).max(1)
    return np.exp(-np.maximum(wealth, 0))


def _upwards(share: float) -> str:
    """Percent to two decimals, never less than the share."""
    return f"{math.ceil(round(10000 * share, 6)) / 100:.2f}"
