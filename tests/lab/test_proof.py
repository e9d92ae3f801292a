"""The bound on a loss: true where it must be, found where it should be, and false no oftener than promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynattn.lab.proof import Proof, Verdict, p_value

RUNS = 1200
LOOKS = (40, 80, 120)
MARGIN = math.log1p(0.01)
RANKS, SHARES = np.array([1.0, 0.5, 1 / 3, 0.1, 0.0]), np.array([0.5, 0.15, 0.1, 0.15, 0.1])


def claimed(proof: Proof, dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
    """(runs,): whether any look proved it."""
    found = np.zeros(len(dense), bool)
    for number, items in enumerate(proof.looks):
        found |= proof.p_values(dense[:, :items], sparse[:, :items]) <= proof.spends(number)
    return found


def at_most(share: float) -> float:
    """A share of runs that is not exceeded by chance, but for 3 times in 10000."""
    return share + 3.4 * (share * (1 - share) / RUNS) ** 0.5


NATS = {
    "normal": lambda g, n: g.normal(MARGIN, 3 * MARGIN, n),
    "hardly any noise": lambda g, n: g.normal(MARGIN, 0.1 * MARGIN, n),
    "heavy tails": lambda g, n: MARGIN + 2 * MARGIN * g.standard_t(3, n),
    "exponential": lambda g, n: g.exponential(MARGIN, n),
    "log-normal": lambda g, n: MARGIN * g.lognormal(-(1.5**2) / 2, 1.5, n),
    "skewed the other way": lambda g, n: MARGIN * (6 - g.exponential(5, n)),
    "most are 0": lambda g, n: (g.random(n) < 0.2) * g.exponential(5 * MARGIN, n),
    "a few lose all": lambda g, n: (g.random(n) < 0.1) * MARGIN / 0.1,
    "two values": lambda g, n: np.where(g.random(n) < 0.5, 3 * MARGIN, -MARGIN),
}


@pytest.mark.parametrize("name", NATS)
def test_false_claims_of_perplexity_are_as_rare_as_promised(name):
    generator = np.random.default_rng(0)
    lost = NATS[name](generator, (RUNS, LOOKS[-1]))
    dense = generator.normal(3, 0.5, lost.shape)
    assert claimed(Proof(0.01, LOOKS, of="perplexity"), dense, dense + lost).mean() <= at_most(0.05)


def _lost(dense: np.ndarray, generator: np.random.Generator, loss: float, changed: float) -> np.ndarray:
    """Items that change become another's, or nothing, so that the loss is exact in the mean."""
    anew = generator.permuted(dense, axis=1) * (generator.random(dense.shape) < 1 - loss / changed)
    return np.where(generator.random(dense.shape) < changed, anew, dense)


SCORES = {
    "accuracy": lambda g, n: (g.random(n) < 0.9).astype(float),
    "all right": lambda g, n: np.ones(n),
    "reciprocal ranks": lambda g, n: g.choice(RANKS, n, p=SHARES),
    "between 0 and 1": lambda g, n: g.beta(4, 2, n),
    "mostly 0": lambda g, n: (g.random(n) < 0.2) * g.random(n),
}


@pytest.mark.parametrize("loss", [0.05, 0.2])
@pytest.mark.parametrize("changed", [1.0, 4.0])
@pytest.mark.parametrize("name", SCORES)
def test_false_claims_of_scores_are_as_rare_as_promised(name, changed, loss):
    generator = np.random.default_rng(1)
    dense = SCORES[name](generator, (RUNS, LOOKS[-1]))
    sparse = _lost(dense, generator, loss, changed * loss)
    assert claimed(Proof(loss, LOOKS), dense, sparse).mean() <= at_most(0.05)


def test_many_attempts_make_no_more_false_claims():
    generator = np.random.default_rng(2)
    found = np.zeros(RUNS, bool)
    for attempt in range(1, 6):
        lost = generator.normal(MARGIN, 2 * MARGIN, (RUNS, LOOKS[-1]))
        found |= claimed(Proof(0.01, LOOKS, of="perplexity", attempt=attempt), 3 + 0 * lost, 3 + lost)
    assert found.mean() <= at_most(0.05)


def test_bounds_hold_whatever_the_loss():
    generator = np.random.default_rng(3)
    proof = Proof(0.01, (60,), of="perplexity")
    outside = np.zeros(2)
    for _ in range(200):
        lost = generator.exponential(0.03, 60) - 0.01
        verdict = proof.look(np.zeros(60), lost)
        truth = math.expm1(0.02)
        outside += verdict.high < truth, verdict.low > truth
    assert (outside / 200 <= 0.05 + 3.4 * (0.05 * 0.95 / 200) ** 0.5).all()


def test_a_clear_effect_is_found():
    generator = np.random.default_rng(4)
    proof = Proof(0.01, LOOKS, of="perplexity")
    lost = generator.normal(0.002, 0.005, (RUNS, LOOKS[-1]))
    assert claimed(proof, 0 * lost, lost).mean() > 0.95
    ties = 0.02 * (generator.random((RUNS, LOOKS[-1])) < 0.1)  # 0.2% lost, by a text in ten
    assert claimed(proof, 0 * ties, ties).mean() > 0.75
    dense = generator.choice(RANKS, (RUNS, LOOKS[-1]), p=SHARES)
    assert claimed(Proof(0.1, LOOKS), dense, dense * (generator.random(dense.shape) > 0.01)).mean() > 0.75
    verdict = proof.look(np.zeros(40), np.full(40, 0.05))
    assert verdict.state == "refuted"
    assert verdict.low > 0.01


def test_p_values_are_those_of_the_definition():
    generator = np.random.default_rng(5)
    weights = generator.dirichlet(np.ones(13), 200_000)
    x = generator.normal(0.3, 1, (6, 12))
    x[3:] = np.round(x[3:])  # ties, and zeros
    worst = np.full(6, -4.0)
    sampled = (np.concatenate([worst[:, None], x], 1) @ weights.T <= 0).mean(1)
    np.testing.assert_allclose(p_value(x, worst), sampled, atol=0.006)


def test_items_kept_or_lost_are_the_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    for lost in range(4):
        dense, sparse = np.ones(100), (np.arange(100) >= lost).astype(float)
        expected = stats.binom.cdf(lost, 100, 0.1)
        assert Proof(0.1, (100,)).p_values(dense[None], sparse[None])[0] == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30), st.floats(0.01, 0.9))
def test_the_bound_is_where_the_p_value_is_what_may_be_spent(pairs, loss):
    dense, sparse = np.array(pairs).T
    verdict = Proof(loss, (len(pairs),)).look(dense, sparse)
    proved = Proof(loss, (len(pairs),)).p_values(dense[None], sparse[None])[0] <= 0.05
    assert (verdict.state == "proved") == proved
    if dense.max() > 0:
        assert verdict.low <= verdict.loss <= verdict.high
        assert (verdict.high <= loss) == proved


@pytest.mark.parametrize("of", ["perplexity", "score"])
@pytest.mark.parametrize("loss", [0.01, 0.05])
@pytest.mark.parametrize("attempt", [0, 3])
def test_fewest_is_where_a_proof_begins_when_nothing_is_lost(of, loss, attempt):
    fewest = Proof(loss, (9, 10), of=of, attempt=attempt).fewest
    for items, state in ((fewest, "proved"), (fewest - 1, "undecided")):
        proof = Proof(loss, (1, items), of=of, attempt=attempt)
        assert proof.look(np.ones(items), np.ones(items)).state == state


def test_what_looks_and_attempts_spend_is_alpha():
    looks = (10, 20, 40)
    first = [Proof(0.01, looks, attempt=1).spends(each) for each in range(3)]
    assert first == pytest.approx([0.00625, 0.00625, 0.0125])
    assert sum(Proof(0.01, looks).spends(each) for each in range(3)) == pytest.approx(0.05)
    assert Proof(0.01, (10,)).spends(0) == 0.05
    spent = [Proof(0.5, looks, attempt=attempt).look(np.ones(40), np.ones(40)).spent for attempt in (1, 2, 3)]
    assert spent == pytest.approx([0.025, 0.0375, 0.04375])
    assert Proof(0.5, looks).look(np.ones(20), np.ones(20)).spent == pytest.approx(0.025)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_prove_nothing(bad):
    sparse = np.ones(400)
    sparse[7] = bad
    for of in ("perplexity", "score"):
        for pair in ((np.ones(400), sparse), (sparse, np.ones(400))):
            verdict = Proof(0.05, (400,), of=of).look(*pair)
            assert verdict.state == "undecided"
            assert "no bound" in verdict.claim


def test_a_dense_model_that_scores_nothing_proves_nothing():
    assert Proof(0.05, (400,)).look(np.zeros(400), np.zeros(400)).state == "undecided"


def test_a_lowest_score_shifts_the_scale():
    dense, sparse = np.linspace(0.2, 1, 200), np.linspace(0.2, 1, 200) - 0.001
    shifted = Proof(0.05, (200,), lowest=-1.0).look(2 * dense - 1, 2 * sparse - 1)
    assert shifted.high == pytest.approx(Proof(0.05, (200,)).look(dense, sparse).high)


def test_a_worst_that_is_known_makes_the_bound_tighter_or_looser():
    lost = np.random.default_rng(6).normal(0.001, 0.002, 60)
    high = [Proof(0.01, (60,), of="perplexity", worst=worst).look(0 * lost, lost).high for worst in (0.02, None, 1.0)]
    assert high == sorted(high)
    assert high[0] < high[2]


def test_claims_say_what_was_found():
    kinds = {
        "proved": Verdict("proved", 0.002, -0.01, 0.00711, 0.01, 80, 0.0125, 0.025, 0.95, "perplexity"),
        "refuted": Verdict("refuted", 0.05, 0.02, 0.09, 0.01, 80, 0.0125, 0.025, 0.95, "perplexity"),
        "undecided": Verdict("undecided", 0.005, -0.01, 0.0123, 0.01, 80, 0.0125, 0.025, 0.95, "score"),
    }
    assert {kind: verdict.claim for kind, verdict in kinds.items()} == {
        "proved": "the loss of perplexity is at most 0.72%, with 95% confidence (allowed: 1%; 80 items)",
        "refuted": "the loss of perplexity is more than 1%, with 95% confidence (80 items)",
        "undecided": "not proved: the loss of score could be as much as 1.23% at 95% confidence (allowed: 1%; "
        "80 items)",
    }


@pytest.mark.parametrize(
    ("said", "given_"),
    {
        "max_loss must be": {"max_loss": 0.0},
        "max_loss must be above 0 and below 1: got 1": {"max_loss": 1.0},
        "max_loss must be above 0 and below 1: got nan": {"max_loss": math.nan},
        "looks must be": {"looks": (10, 10)},
        "looks must be ascending numbers of items: got \\(\\)": {"looks": ()},
        "looks must be ascending numbers of items: got \\(0,": {"looks": (0, 10)},
        "of must be": {"of": "speed"},
        "alpha must be": {"alpha": 1.0},
        "attempt must": {"attempt": -1},
        "worst must be": {"worst": 0.0},
    }.items(),
)
def test_plans_that_make_no_sense_are_refused(said, given_):
    with pytest.raises(ValueError, match=f"Proof: {said}"):
        Proof(**{"max_loss": 0.01, "looks": (10, 20), **given_})


def test_looks_that_were_not_planned_are_refused():
    proof = Proof(0.01, (10, 20))
    with pytest.raises(ValueError, match="looks were planned at \\(10, 20\\) items: got 15"):
        proof.look(np.ones(15), np.ones(15))
    with pytest.raises(ValueError, match="must be paired"):
        proof.look(np.ones(10), np.ones(20))
    with pytest.raises(ValueError, match=r"below the lowest, 0: got -0\.5"):
        proof.look(np.ones(10), np.full(10, -0.5))
