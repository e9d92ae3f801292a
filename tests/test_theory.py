import math
from pathlib import Path

import mpmath
import pytest
import torch
from torch import Tensor

from dynattn import NM, theory
from dynattn.methods.nm import choose

SIGMAS = torch.tensor([0.0, 0.3, 1.0, 2.0, 4.0], dtype=torch.float64)
SIGMAS_OFF_ZERO = SIGMAS[1:].tolist()


def exact_limit(n: int, m: int, sigma: float) -> float:
    """The order statistics' own densities, integrated by mpmath to 20 digits: no tilting, no binomial sum."""

    def weighted(z):
        above, below = mpmath.ncdf(-z), mpmath.ncdf(z)
        density = sum(  # of the rank-th largest of m
            mpmath.factorial(m) / (mpmath.factorial(rank - 1) * mpmath.factorial(m - rank))
            * above ** (rank - 1) * below ** (m - rank)
            for rank in range(1, n + 1)
        )  # fmt: skip
        return density * mpmath.npdf(z) * mpmath.exp(sigma * z)

    with mpmath.workdps(20):
        total = mpmath.quad(weighted, mpmath.linspace(-9, sigma + 9, 5))
        return float(str(total)) / m / math.exp(sigma**2 / 2)


def simulated(method: NM, sigma: float, kv_len: int, rows: int, seed: int) -> Tensor:
    """Kept mass of rows of Gaussian scores under the method's definition, float64."""
    generator = torch.Generator().manual_seed(seed)
    s = sigma * torch.randn(1, 1, rows, kv_len, dtype=torch.float64, generator=generator)
    return (s.softmax(-1) * choose(s, method)).sum(-1).flatten()


def assert_mean_is(samples: Tensor, expected: float, precision: float) -> None:
    """Within 4 standard errors (1 chance in 16000 by luck; seeds are fixed), and those small enough to tell."""
    error = float(samples.std()) / len(samples) ** 0.5
    assert error < precision
    assert abs(float(samples.mean()) - expected) < 4 * error + 1e-12


def test_one_of_two_is_phi_of_sigma_over_root_two():
    expected = [0.5, 0.7602499389065234, 0.9213503964748575]  # Φ(0), Φ(1/√2), Φ(√2)
    actual = theory.kept_mass(NM(1, 2), torch.tensor([0.0, 1.0, 2.0])).tolist()
    assert actual == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 3), (4, 8), (3, 8), (1, 32), (16, 32), (31, 32)])
def test_limit_matches_order_statistics(n, m):
    for sigma in SIGMAS.tolist() if m <= 8 else [1.0]:
        assert float(theory.kept_mass(NM(n, m), sigma)) == pytest.approx(exact_limit(n, m, sigma), abs=1e-8)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 16, 31, 32])
def test_limit_is_between_its_bounds_and_grows(m):
    sigma = torch.linspace(0, 8, 33, dtype=torch.float64)
    masses = torch.stack([theory.kept_mass(NM(n, m), sigma) for n in range(1, m + 1)])  # [n, sigma]
    ratios = torch.arange(1, m + 1, dtype=torch.float64) / m
    assert torch.allclose(masses[:, 0], ratios, atol=1e-12, rtol=0)  # equal scores: the keep ratio
    assert bool((masses >= ratios.unsqueeze(-1) - 1e-12).all())
    assert bool((masses.diff(dim=0) > -1e-12).all())  # keeping more
    assert bool((masses.diff(dim=1) > -1e-12).all())  # scores further apart
    best = torch.stack([theory.top_kept_mass(float(r), sigma) for r in ratios])
    assert bool((masses <= best + 1e-12).all())
    assert torch.allclose(masses[-1], torch.ones_like(sigma), atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4), NM(3, 8), NM(2, 4, stride=3)], ids=lambda method: method.name)
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kv_len", [3, 8, 9, 64, 127])
def test_finite_rows_match_simulation(method, sigma, kv_len):
    samples = simulated(method, sigma, kv_len, rows=max(200_000 // kv_len, 4000), seed=kv_len)
    assert_mean_is(samples, float(theory.kept_mass(method, sigma, kv_len)), precision=2e-3)


def test_long_rows_match_the_limit():
    samples = simulated(NM(2, 4), 1.0, kv_len=100_000, rows=10, seed=0)
    assert_mean_is(samples, float(theory.kept_mass(NM(2, 4), 1.0)), precision=1e-3)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 2.0, 4.0, 6.0])
def test_two_keys_match_one_dimensional_integral(sigma):
    """E[max weight of two] = E[1 / (1 + e^(-√2 σ |z|))]."""
    expected = mpmath.quad(
        lambda z: 2 * mpmath.npdf(z) / (1 + mpmath.exp(-mpmath.sqrt(2) * sigma * z)), [0, 1, 2, 4, 8, 12]
    )
    for m in (2, 32):
        assert float(theory.kept_mass(NM(1, m), sigma, 2)) == pytest.approx(float(str(expected)), abs=1e-8)


@pytest.mark.parametrize("sigma", SIGMAS.tolist())
def test_keeping_all_of_a_row_keeps_all_its_mass(sigma):
    lengths = torch.tensor([1, 2, 3, 4, 5, 31, 1000])
    assert torch.allclose(theory.kept_mass(NM(4, 4), sigma, lengths), torch.ones(7).double(), atol=1e-8, rtol=0)
    assert float(theory.kept_mass(NM(3, 8), sigma, 3)) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("sigma", SIGMAS_OFF_ZERO)
def test_finite_rows_tend_to_the_limit(sigma):
    gap = theory.kept_mass(NM(2, 4), sigma, 4 ** torch.arange(2, 13)) - theory.kept_mass(NM(2, 4), sigma)
    assert bool((gap.abs().diff() < 1e-8).all())
    if sigma <= 2:
        assert abs(float(gap[-1])) < 1e-6


def test_finite_rows_of_equal_scores_keep_the_ratio():
    lengths = torch.tensor([1, 2, 3, 4, 7, 8])
    expected = [1, 1, 2 / 3, 1 / 2, 4 / 7, 1 / 2]
    assert theory.kept_mass(NM(2, 4), 0.0, lengths).tolist() == pytest.approx(expected)
    strided = [1, 1, 1, 1, 6 / 7, 6 / 8]  # of 8 keys, the groups are 0 3 6, 1 4 7 and 2 5
    assert theory.kept_mass(NM(2, 4, stride=3), 0.0, lengths).tolist() == pytest.approx(strided)
    assert theory.kept_mass(NM(2, 4), 1e-6, lengths).tolist() == pytest.approx(expected, abs=1e-5)


def test_sigma_and_length_broadcast():
    sigma, length = torch.tensor([[0.5], [1.5]]), torch.tensor([5, 64, 100])
    actual = theory.kept_mass(NM(1, 4), sigma, length)
    assert actual.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = theory.kept_mass(NM(1, 4), float(sigma[i, 0]), int(length[j]))
            assert float(actual[i, j]) == pytest.approx(float(one), abs=1e-8)


@pytest.mark.parametrize("keep_ratio", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_top_k_matches_simulation(keep_ratio, sigma):
    kv_len, rows = 20_000, 40
    s = sigma * torch.randn(rows, kv_len, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    samples = s.softmax(-1).topk(int(keep_ratio * kv_len)).values.sum(-1)
    assert_mean_is(samples, float(theory.top_kept_mass(keep_ratio, sigma)), precision=2e-3)


def test_top_k_at_its_ends():
    assert theory.top_kept_mass(1.0, SIGMAS).tolist() == [1.0] * 5
    assert theory.top_kept_mass(0.0, SIGMAS).tolist() == [0.0] * 5


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4)])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_output_error_matches_simulation(n, m, sigma):
    """Squared errors over independent values, summed over rows: a ratio of means, as the formula."""
    kv_len, rows, dim = 2048, 300, 16
    generator = torch.Generator().manual_seed(2)
    s = sigma * torch.randn(1, 1, rows, kv_len, dtype=torch.float64, generator=generator)
    value = torch.randn(rows, kv_len, dim, dtype=torch.float64, generator=generator)
    kept = choose(s, NM(n, m))[0, 0]
    dense = s[0, 0].softmax(-1)
    sparse = dense * kept / (dense * kept).sum(-1, keepdim=True)
    error = ((sparse - dense).unsqueeze(1) @ value).square().sum((1, 2))
    size = (dense.unsqueeze(1) @ value).square().sum((1, 2))
    expected = float(theory.output_error(NM(n, m), sigma)) ** 2
    assert_mean_is((error / expected - size) / size.mean(), 0.0, precision=0.05)


def test_output_error_at_its_ends():
    assert float(theory.output_error(NM(1, 2), 0.0)) == pytest.approx(1.0)
    assert float(theory.output_error(NM(2, 2), 1.0)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf])
def test_bad_sigma_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be finite and not negative"):
        theory.kept_mass(NM(2, 4), sigma)
    with pytest.raises(ValueError, match="sigma must be finite and not negative"):
        theory.top_kept_mass(0.5, sigma)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="kv_len must be a whole number"):
        theory.kept_mass(NM(2, 4), 1.0, 0)
    with pytest.raises(ValueError, match="kv_len must be a whole number"):
        theory.kept_mass(NM(2, 4), 1.0, torch.tensor(2.5))
    with pytest.raises(TypeError, match="method must be an NM"):
        theory.kept_mass("nm-2-4", 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="keep_ratio must be between 0 and 1"):
        theory.top_kept_mass(1.5, 1.0)


def test_kept_squares_have_closed_forms():
    assert float(theory.kept_squares(NM(1, 2))) == pytest.approx((1 + 2 / math.pi) / 2, abs=1e-9)
    assert float(theory.kept_squares(NM(1, 2), "laplace")) == pytest.approx(0.875, abs=1e-9)
    for entries in ("normal", "laplace"):
        assert float(theory.kept_squares(NM(4, 4), entries)) == pytest.approx(1, abs=1e-9)
        assert float(theory.top_kept_squares(1.0, entries)) == pytest.approx(1)


@pytest.mark.parametrize("entries", ["normal", "laplace"])
def test_kept_squares_are_those_of_drawn_entries(entries):
    torch.manual_seed(0)
    drawn = torch.randn(4096, 64) if entries == "normal" else torch.distributions.Laplace(0.0, 1.0).sample((4096, 64))
    squares = drawn.double().square()
    for n, m in ((1, 2), (2, 4), (8, 16), (2, 8)):
        kept = squares.where(choose(squares, NM(n, m)), 0)
        share = float(theory.kept_squares(NM(n, m), entries))
        assert_mean_is((kept - share * squares).mean(1), 0.0, 2e-3)
    for ratio in (0.25, 0.5):
        line = squares.flatten().kthvalue(round((1 - ratio) * squares.numel())).values
        share = float(squares[squares > line].sum() / squares.sum())
        assert float(theory.top_kept_squares(ratio, entries)) == pytest.approx(share, abs=5e-3)
        assert float(theory.kept_squares(NM(int(16 * ratio), 16), entries)) < share


def test_kept_squares_refuses_what_is_out_of_range():
    with pytest.raises(ValueError, match="entries must be 'normal' or 'laplace'"):
        theory.kept_squares(NM(1, 2), "uniform")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="keep_ratio must be above 0"):
        theory.top_kept_squares(0.0)


def test_the_page_of_the_theory_shows_the_kept_squares():
    page = (Path(__file__).parents[1] / "docs" / "theory.md").read_text(encoding="utf-8")
    patterns = [(1, 2), (2, 4), (4, 8), (8, 16), (16, 32), 0.5, (1, 4), (2, 8), 0.25]
    of_entries: tuple[tuple[theory.Entries, str], ...] = (("normal", "normal"), ("laplace", "Laplace"))
    for entries, title in of_entries:
        shares = [
            theory.top_kept_squares(one, entries) if isinstance(one, float) else theory.kept_squares(NM(*one), entries)
            for one in patterns
        ]
        assert f"| {title} | {' | '.join(f'{float(share):.3f}' for share in shares)} |" in page
