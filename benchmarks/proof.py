"""How often a proof of a small loss is false, and how often a true one is found: simulated.

    python benchmarks/proof.py          # a minute or two: benchmarks/results/proof.json
    python benchmarks/proof.py table    # the tables of docs/decisions/0015-proof-by-gaffkes-bound.md from the record

Each way to prove looks at the same items at the same three times. "Peeking" spends all of alpha at each look.
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

from dynattn.lab.proof import Proof
from dynattn.lab.records import write_json

RECORD = Path(__file__).parent / "results" / "proof.json"
PAGE = Path(__file__).parent.parent / "docs" / "decisions" / "0015-proof-by-gaffkes-bound.md"
RUNS, SEED, AT_ONCE = 2000, 0, 250
LOOKS = (40, 80, 160)
PERPLEXITY, SCORE = Proof(0.01, LOOKS, of="perplexity"), Proof(0.05, LOOKS)
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


def by_betting(x: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """(runs, items): one over the wealth so far of a bettor on x, the half of Kelly's share by the items before.

    Source: Waudby-Smith and Ramdas, arXiv:2010.09686.
    """
    count = np.arange(1, x.shape[1])
    mean = np.cumsum(x, 1)[:, :-1] / count
    square = np.cumsum(x * x, 1)[:, :-1] / count
    share = np.zeros_like(x)
    share[:, 1:] = np.clip(mean / np.maximum(square, 1e-12), 0, 0.9 / -worst[:, None])
    share[:, 0] = 0.25 / -worst
    return np.exp(-np.cumsum(np.log1p(share * x), 1))


def proved_by(proof: Proof, dense: np.ndarray, sparse: np.ndarray) -> dict[str, np.ndarray]:
    """(runs, looks), whether each way had proved it by then."""
    x = differences(proof, dense, sparse)
    worst = np.minimum(-(1 - proof.max_loss) * dense.max(1), -1e-9)
    betting = by_betting(x, worst) if proof.of == "score" else None
    found: dict[str, list[np.ndarray]] = {}
    for number, items in enumerate(proof.looks):
        alpha, part = proof.spends(number), x[:, :items]
        t = by_t(part)
        found.setdefault("Gaffke's bound", []).append(proof.p_values(dense[:, :items], sparse[:, :items]) <= alpha)
        found.setdefault("Student's t", []).append(t <= alpha)
        found.setdefault("bootstrap", []).append(by_bootstrap(part) <= alpha)
        found.setdefault("t, peeking", []).append(t <= proof.alpha)
        if betting is not None:
            found.setdefault("betting", []).append(betting[:, :items].min(1) <= proof.alpha)
    return {way: np.logical_or.accumulate(np.stack(each, 1), 1) for way, each in found.items()}


def shares(proof: Proof, draw: Callable[[np.random.Generator, tuple[int, int]], Pairs]) -> dict[str, list[float]]:
    """Shares of runs in which each way had proved it by each look."""
    generator = np.random.default_rng(SEED)
    parts = [proved_by(proof, *draw(generator, (AT_ONCE, proof.looks[-1]))) for _ in range(RUNS // AT_ONCE)]
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
    ways = ["Gaffke's bound", "Student's t", "bootstrap", "t, peeking", "betting"]
    false = [
        [name, *(f"{100 * found[way][-1]:.1f}%" if way in found else "" for way in ways)]
        for name, found in record["false"].items()
    ]
    true = [
        [name, *(" / ".join(f"{100 * share:.0f}" for share in found[way]) if way in found else "" for way in ways)]
        for name, found in record["true"].items()
    ]
    return (
        f"False claims in {record['runs']} runs, the loss being exactly what is allowed:\n\n"
        f"{markdown(['null', *ways], false)}\n\n"
        f"Of 100 true claims, proved by {' / '.join(map(str, record['looks']))} items:\n\n"
        f"{markdown(['truth', *ways], true)}"
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
