"""How often a proof of a small loss is false, and how often a true one is found: simulated.

    python benchmarks/proof.py          # a minute: benchmarks/results/proof.json
    python benchmarks/proof.py table    # the tables of docs/decisions/0015-proof-by-betting.md from the record

Betting looks after every item; the other ways look three times, and spend a part of alpha at each look but for "t,
peeking", which spends all of it each time.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from marked import markdown, rewritten
from scipy import stats

from dynattn.lab.proof import WORST_MARGINS, WORST_SEEN, Proof
from dynattn.lab.records import write_json

RECORD = Path(__file__).parent / "results" / "proof.json"
PAGE = Path(__file__).parent.parent / "docs" / "decisions" / "0015-proof-by-betting.md"
RUNS, SEED, AT_ONCE = 2000, 0, 250
LOOKS = (60, 100, 200)
SPENT = (0.25, 0.25, 0.5)  # of alpha, at each look
WAYS = ("betting", "Gaffke's bound", "Student's t", "bootstrap", "t, peeking")
PERPLEXITY, SCORE = Proof(0.01, of="perplexity"), Proof(0.05)
MARGIN = math.log1p(PERPLEXITY.max_loss)
RANKS = np.array([1.0, 0.5, 1 / 3, 0.25, 0.1, 0.0])  # reciprocal ranks, and how often they are found
SHARES = np.array([0.5, 0.15, 0.1, 0.05, 0.1, 0.1])

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
Pairs = tuple[np.ndarray, np.ndarray]


def null_of_perplexity() -> dict[str, Draw]:
    """Nats that items lose, ``MARGIN`` in the mean."""
    return {
        "normal": lambda g, shape: g.normal(MARGIN, 3 * MARGIN, shape),
        "t, 3 degrees of freedom": lambda g, shape: MARGIN + 2 * MARGIN * g.standard_t(3, shape),
        "exponential": lambda g, shape: g.exponential(MARGIN, shape),
        "log-normal, σ = 1.5": lambda g, shape: MARGIN * g.lognormal(-(1.5**2) / 2, 1.5, shape),
        "the other tail": lambda g, shape: MARGIN * (6 - g.exponential(5, shape)),
        "8 of 10 lose nothing": lambda g, shape: (g.random(shape) < 0.2) * g.exponential(5 * MARGIN, shape),
        "9 of 10 lose nothing": lambda g, shape: (g.random(shape) < 0.1) * g.exponential(10 * MARGIN, shape),
        "2 of 25 lose all": lambda g, shape: (g.random(shape) < 0.08) * (MARGIN / 0.08),
    }


def null_of_scores() -> dict[str, Callable[[np.random.Generator, tuple[int, int]], Pairs]]:
    """Scores of which ``SCORE.max_loss`` is lost in the mean."""
    loss = SCORE.max_loss

    def lost(dense: np.ndarray, g: np.random.Generator, changed: float) -> Pairs:
        """Each item with some probability anew, and lost often enough."""
        anew = g.permuted(dense, axis=1) * (g.random(dense.shape) < 1 - loss / changed)
        return dense, np.where(g.random(dense.shape) < changed, anew, dense)

    def mrr(g: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return g.choice(RANKS, shape, p=SHARES)

    return {
        "accuracy, answers lost": lambda g, s: lost((g.random(s) < 0.9).astype(float), g, loss),
        "MRR, answers lost": lambda g, s: lost(mrr(g, s), g, loss),
        "MRR, ranks changed both ways": lambda g, s: lost(mrr(g, s), g, 4 * loss),
        "scores between 0 and 1": lambda g, s: lost(g.beta(4, 2, s), g, 2 * loss),
    }


def true_claims() -> dict[str, tuple[Proof, Callable[[np.random.Generator, tuple[int, int]], Pairs]]]:
    """Losses below what is allowed."""

    def nats(draw: Draw) -> Callable[[np.random.Generator, tuple[int, int]], Pairs]:
        return lambda g, shape: (np.full(shape, 3.0), 3.0 + draw(g, shape))

    def mrr(g: np.random.Generator, shape: tuple[int, int], lost: float) -> Pairs:
        dense = g.choice(RANKS, shape, p=SHARES)
        return dense, dense * (g.random(shape) >= lost)

    return {
        "perplexity, no text changes": (PERPLEXITY, nats(lambda g, s: np.zeros(s))),
        "perplexity, 0.2% lost, texts ±0.5%": (PERPLEXITY, nats(lambda g, s: g.normal(0.002, 0.005, s))),
        "perplexity, 0.5% lost, texts ±1%": (PERPLEXITY, nats(lambda g, s: g.normal(0.005, 0.01, s))),
        "perplexity, 0.2% lost, by 1 text of 10": (PERPLEXITY, nats(lambda g, s: 0.02 * (g.random(s) < 0.1))),
        "MRR, no answer changes": (SCORE, lambda g, s: mrr(g, s, 0.0)),
        "MRR, 0.5% of answers lost": (SCORE, lambda g, s: mrr(g, s, 0.005)),
    }


def differences(proof: Proof, dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
    """x of the null."""
    return MARGIN - (sparse - dense) if proof.of == "perplexity" else sparse - (1 - proof.max_loss) * dense


def by_t(x: np.ndarray) -> np.ndarray:
    """P-values of Student's test; 0 where all items are alike."""
    deviation = x.std(1, ddof=1)
    alike = deviation <= 1e-12
    found = stats.t.sf(x.mean(1) / np.where(alike, 1.0, deviation) * x.shape[1] ** 0.5, x.shape[1] - 1)
    return np.where(alike, (x.mean(1) <= 0).astype(float), found)


def by_bootstrap(x: np.ndarray, resamples: int = 1000) -> np.ndarray:
    """P-values of the percentile bootstrap."""
    weights = np.random.default_rng(1).multinomial(x.shape[1], np.full(x.shape[1], 1 / x.shape[1]), resamples)
    return (x @ weights.T <= 0).mean(1)


def by_gaffke(x: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """P(w_0 worst + w_1 x_1 + … ≤ 0) for weights drawn evenly from those that sum to 1.

    Of sorted values, S(i, j) = (x_j S(i+1, j) − x_i S(i, j−1)) / (x_j − x_i) is P(w · x > 0) over values i to j, where
    x_i ≤ 0 < x_j.

    Source: Gaffke, Mathematical Methods of Statistics 14 (2005); Learned-Miller and Thomas, arXiv:1905.06208.
    """
    x = np.sort(np.concatenate([np.minimum(worst, x.min(1))[:, None], x], 1), 1)
    above = (x > 0).astype(np.float64)
    for length in range(1, x.shape[1]):
        low, high = x[:, :-length], x[:, length:]
        mixed = (low <= 0) & (high > 0)
        both = (high * above[:, 1:] - low * above[:, :-1]) / np.where(mixed, high - low, 1.0)
        above = np.where(mixed, both, (low > 0).astype(np.float64))
    return 1 - above[:, 0]


def proved_by(proof: Proof, dense: np.ndarray, sparse: np.ndarray) -> dict[str, np.ndarray]:
    """(runs, looks), whether each way had proved it by then."""
    x = differences(proof, dense, sparse)
    if proof.of == "perplexity":
        worst = MARGIN - np.maximum(WORST_MARGINS * MARGIN, WORST_SEEN * (sparse - dense).max(1))
    else:
        worst = np.full(len(x), proof.max_loss - 1)
    found: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    for items, share in zip(LOOKS, SPENT, strict=True):
        part, alpha = x[:, :items], share * proof.alpha
        t = by_t(part)
        found["betting"].append(proof.p_values(dense[:, :items], sparse[:, :items]) <= proof.alpha)
        found["Gaffke's bound"].append(by_gaffke(part, worst) <= alpha)
        found["Student's t"].append(t <= alpha)
        found["bootstrap"].append(by_bootstrap(part) <= alpha)
        found["t, peeking"].append(t <= proof.alpha)
    return {way: np.logical_or.accumulate(np.stack(each, 1), 1) for way, each in found.items()}


def shares(proof: Proof, draw: Callable[[np.random.Generator, tuple[int, int]], Pairs]) -> dict[str, list[float]]:
    """Shares of runs in which each way had proved it by each look."""
    generator = np.random.default_rng(SEED)
    parts = [proved_by(proof, *draw(generator, (AT_ONCE, LOOKS[-1]))) for _ in range(RUNS // AT_ONCE)]
    return {way: [float(share) for share in np.concatenate([part[way] for part in parts]).mean(0)] for way in parts[0]}


def measure() -> None:
    """Simulate and record."""
    false, true = {}, {}
    for name, draw in null_of_perplexity().items():
        false[f"perplexity: {name}"] = shares(PERPLEXITY, lambda g, shape, draw=draw: (np.zeros(shape), draw(g, shape)))
    for name, pairs in null_of_scores().items():
        false[name] = shares(SCORE, pairs)
    for name, (proof, pairs) in true_claims().items():
        true[name] = shares(proof, pairs)
    write_json(RECORD, {"runs": RUNS, "looks": list(LOOKS), "alpha": PERPLEXITY.alpha, "false": false, "true": true})


def tables(record: dict[str, Any]) -> str:
    """False claims at any look; true ones by each look."""
    false = [[name, *(f"{100 * found[way][-1]:.1f}%" for way in WAYS)] for name, found in record["false"].items()]
    true = [
        [name, *(" / ".join(f"{100 * share:.0f}" for share in found[way]) for way in WAYS)]
        for name, found in record["true"].items()
    ]
    return (
        f"False claims in {record['runs']} runs, the loss being exactly what is allowed:\n\n"
        f"{markdown(['null', *WAYS], false)}\n\n"
        f"Of 100 true claims, proved by {' / '.join(map(str, record['looks']))} items:\n\n"
        f"{markdown(['truth', *WAYS], true)}"
    )


def main() -> None:
    """Record, or write the page's tables."""
    if sys.argv[1:] == ["table"]:
        text = tables(json.loads(RECORD.read_text()))
        start, end = "<!-- written by benchmarks/proof.py -->", "<!-- end -->"
        PAGE.write_text(rewritten(PAGE.read_text(), start, text, end, "proof"))
    else:
        measure()


if __name__ == "__main__":
    main()
