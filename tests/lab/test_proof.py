"""The bound on a loss: true where it must be, found where it should be, and false no oftener than promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynattn.lab.proof import Proof, Verdict, _p

RUNS = 1200
ITEMS = 150
MARGIN = math.log1p(0.01)
RANKS, SHARES = np.array([1.0, 0.5, 1 / 3, 0.1, 0.0]), np.array([0.5, 0.15, 0.1, 0.15, 0.1])


def claimed(proof: Proof, dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
    """(runs,): whether it is proved for someone who looks after every item, and stops as soon as it is."""
    return proof.p_values(dense, sparse) <= proof.spends


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
    "fewer lose more": lambda g, n: (g.random(n) < 0.06) * MARGIN / 0.06,
    "most are 0, and few lose much": lambda g, n: (g.random(n) < 0.1) * g.exponential(10 * MARGIN, n),
    "two values": lambda g, n: np.where(g.random(n) < 0.5, 3 * MARGIN, -MARGIN),
}


@pytest.mark.parametrize("name", NATS)
def test_false_claims_of_perplexity_are_as_rare_as_promised(name):
    generator = np.random.default_rng(0)
    lost = NATS[name](generator, (RUNS, ITEMS))
    dense = generator.normal(3, 0.5, lost.shape)
    assert claimed(Proof(0.01, of="perplexity"), dense, dense + lost).mean() <= at_most(0.05)


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
    dense = SCORES[name](generator, (RUNS, ITEMS))
    sparse = _lost(dense, generator, loss, changed * loss)
    assert claimed(Proof(loss), dense, sparse).mean() <= at_most(0.05)


def test_many_attempts_make_no_more_false_claims():
    generator = np.random.default_rng(2)
    found = np.zeros(RUNS, bool)
    for attempt in range(1, 6):
        lost = generator.normal(MARGIN, 2 * MARGIN, (RUNS, ITEMS))
        found |= claimed(Proof(0.01, of="perplexity", attempt=attempt), 3 + 0 * lost, 3 + lost)
    assert found.mean() <= at_most(0.05)


def test_bounds_hold_whatever_the_loss():
    generator = np.random.default_rng(3)
    runs, truth, beyond, refuted = 200, math.expm1(0.02), 0, 0
    for _ in range(runs):
        lost = generator.exponential(0.03, 60) - 0.01
        beyond += Proof(0.01, of="perplexity").look(np.zeros(60), lost).high < truth
        refuted += Proof(truth, of="perplexity").look(np.zeros(60), lost).state == "refuted"
    assert max(beyond, refuted) / runs <= 0.05 + 3.4 * (0.05 * 0.95 / runs) ** 0.5


def test_a_clear_effect_is_found():
    generator = np.random.default_rng(4)
    proof = Proof(0.01, of="perplexity")
    lost = generator.normal(0.002, 0.005, (RUNS, ITEMS))
    assert claimed(proof, 0 * lost, lost).mean() > 0.95
    ties = 0.02 * (generator.random((RUNS, ITEMS)) < 0.1)  # 0.2% lost, by a text in ten
    assert claimed(proof, 0 * ties, ties).mean() > 0.75
    dense = generator.choice(RANKS, (RUNS, ITEMS), p=SHARES)
    assert claimed(Proof(0.1), dense, dense * (generator.random(dense.shape) > 0.01)).mean() > 0.75
    verdict = proof.look(np.zeros(40), np.full(40, 0.05))
    assert verdict.state == "refuted"


def test_wealth_is_that_of_a_bettor_who_goes_item_by_item():
    generator = np.random.default_rng(5)
    lost = np.round(generator.normal(0.01, 0.03, 30), 2)  # ties, and zeros
    wealth, most, before = 1.0, 1.0, []
    for x in MARGIN - lost:
        worst = max(20 * MARGIN, 3 * max([0.0, *(MARGIN - each for each in before)])) - MARGIN
        kelly = sum(before) / sum(each * each for each in before) if before else 0.45 / worst
        wealth *= 1 + min(max(kelly, 0), 0.9 / worst) * x
        before.append(x)
        most = max(most, wealth)
    assert Proof(0.01, of="perplexity").p_values(np.zeros((1, 30)), lost[None])[0] == pytest.approx(1 / most)


def test_an_item_does_not_bear_on_its_own_bet():
    generator = np.random.default_rng(6)
    x, worst = generator.normal(0.1, 1, (1, 20)), np.full((1, 20), 5.0)
    best = _p(x, worst)[0]
    changed = np.concatenate([x, [[-4.99]]], 1)
    assert _p(changed, np.full((1, 21), 5.0))[0] == best


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30), st.floats(0.01, 0.9))
def test_the_bound_is_below_what_is_allowed_where_it_is_proved(pairs, loss):
    dense, sparse = np.array(pairs).T
    verdict = Proof(loss).look(dense, sparse)
    proved = Proof(loss).p_values(dense[None], sparse[None])[0] <= 0.05
    assert (verdict.state == "proved") == proved == (verdict.high <= loss)
    assert verdict.high >= 0


@pytest.mark.parametrize("of", ["perplexity", "score"])
@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_where_a_proof_ends(seed, of):
    generator = np.random.default_rng(seed)
    lost, dense = generator.normal(0.004, 0.01, 100), generator.choice(RANKS, 100, p=SHARES)
    pair = (0 * lost, lost) if of == "perplexity" else (dense, dense * (generator.random(100) > 0.05))
    high = Proof(0.01, of=of, worst=0.1).look(*pair).high
    assert Proof(1.01 * high, of=of, worst=0.1).look(*pair).state == "proved"
    assert Proof(0.99 * high, of=of, worst=0.1).look(*pair).state != "proved"


@pytest.mark.parametrize("of", ["perplexity", "score"])
@pytest.mark.parametrize("loss", [0.01, 0.05])
@pytest.mark.parametrize("attempt", [0, 3])
def test_fewest_is_where_a_proof_begins_when_nothing_is_lost(of, loss, attempt):
    proof = Proof(loss, of=of, attempt=attempt)
    for items, state in ((proof.fewest, "proved"), (proof.fewest - 1, "undecided")):
        assert proof.look(np.ones(items), np.ones(items)).state == state


def test_what_attempts_spend_is_no_more_than_alpha():
    found = [Proof(0.5, attempt=attempt).look(np.ones(40), np.ones(40)) for attempt in (0, 1, 2, 3)]
    assert [verdict.alpha for verdict in found] == pytest.approx([0.05, 0.025, 0.0125, 0.00625])
    assert [verdict.spent for verdict in found] == pytest.approx([0.05, 0.025, 0.0375, 0.04375])
    assert {verdict.level for verdict in found} == {0.95}


def test_attempts_may_have_shares_of_their_own():
    found = [Proof(0.5, attempt=attempt, shares=(0.8, 0.2)).look(np.ones(40), np.ones(40)) for attempt in (1, 2)]
    assert [verdict.alpha for verdict in found] == pytest.approx([0.04, 0.01])
    assert [verdict.spent for verdict in found] == pytest.approx([0.04, 0.05])


def test_of_scores_a_worst_that_is_known_makes_the_bound_tighter_and_no_more_false_claims():
    generator = np.random.default_rng(7)
    dense = generator.uniform(0.6, 1, (RUNS, ITEMS))
    lost = 0.01 * dense * generator.uniform(0, 2, dense.shape)  # 1% in the mean, and 2% at the most
    for worst in (0.02, 0.1, None):
        assert claimed(Proof(0.01, worst=worst), dense, dense - lost).mean() <= at_most(0.05)
    half = dense - lost / 2
    found = [claimed(Proof(0.01, worst=worst), dense, half).mean() for worst in (0.02, 0.1, None)]
    assert found[0] > 0.99
    assert found[2] == 0
    proof = Proof(0.01, worst=0.04)
    assert proof.look(np.ones(proof.fewest), np.ones(proof.fewest)).state == "proved"
    assert proof.look(np.ones(proof.fewest - 1), np.ones(proof.fewest - 1)).state == "undecided"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_prove_nothing(bad):
    sparse = np.ones(400)
    sparse[7] = bad
    for of in ("perplexity", "score"):
        for pair in ((np.ones(400), sparse), (sparse, np.ones(400))):
            verdict = Proof(0.05, of=of).look(*pair)
            assert verdict.state == "undecided"
            assert "no bound" in verdict.claim


def test_a_dense_model_that_scores_nothing_proves_nothing():
    assert Proof(0.05).look(np.zeros(400), np.zeros(400)).state == "undecided"


def test_the_scale_of_scores_makes_no_difference():
    dense, sparse = np.linspace(0.2, 1, 200), np.linspace(0.2, 1, 200) - 0.001
    shifted = Proof(0.05, lowest=-1.0).look(2 * dense - 1, 2 * sparse - 1)
    assert shifted.high == pytest.approx(Proof(0.05).look(dense, sparse).high)
    percent = Proof(0.05, highest=100.0).look(100 * dense, 100 * sparse)
    assert percent.high == pytest.approx(Proof(0.05).look(dense, sparse).high)


def test_a_worst_that_is_known_makes_the_bound_tighter_or_looser():
    lost = np.random.default_rng(6).normal(0.001, 0.002, 60)
    high = [Proof(0.01, of="perplexity", worst=worst).look(0 * lost, lost).high for worst in (0.02, None, 1.0)]
    assert high == sorted(high)
    assert high[0] < high[2]


def test_claims_say_what_was_found():
    kinds = {
        "proved": Verdict("proved", 0.002, 0.00711, 0.01, 80, 0.025, 0.025, 0.95, "perplexity"),
        "refuted": Verdict("refuted", 0.05, 0.09, 0.01, 80, 0.025, 0.025, 0.95, "perplexity"),
        "undecided": Verdict("undecided", 0.005, 0.0123, 0.01, 80, 0.025, 0.025, 0.95, "score"),
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
        "looks must be ascending numbers of items: got \\(0,": {"looks": (0, 10)},
        "of must be": {"of": "speed"},
        "alpha must be": {"alpha": 1.0},
        "attempt must": {"attempt": -1},
        "attempt must be one of those that have shares": {"attempt": 3, "shares": (0.8, 0.2)},
        "shares must be above 0, and 1 in all": {"attempt": 1, "shares": (0.8, 0.3)},
        "worst must be": {"worst": 0.0},
        "highest must be": {"lowest": 1.0},
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
    with pytest.raises(ValueError, match=r"between 0 and 1: got -0\.5 to 1"):
        proof.look(np.ones(10), np.full(10, -0.5))
