"""The plain PyTorch definition against a loop that spells methods.md out, one row at a time."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dynattn import NM
from dynattn.methods.nm import choose
from dynattn.reference import pairs as reference

CASES = [
    NM(2, 4), NM(1, 2), NM(3, 7), NM(1, 32), NM(4, 4),
    NM(1, 2, window=3), NM(1, 4, sinks=2), NM(2, 5, window=2, sinks=1),
    NM(1, 2, stride=2), NM(2, 4, stride=3), NM(1, 2, stride=16), NM(2, 3, window=2, sinks=1, stride=2),
]  # fmt: skip


def loop(
    query: Tensor, key: Tensor, value: Tensor, method: NM, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, logsumexp, kept mass and the kept pairs, without a vector operation."""
    batch, heads, q_len, _ = query.shape
    kv_len, group = key.shape[2], heads // key.shape[1]
    out = torch.zeros(batch, heads, q_len, value.shape[3], dtype=torch.float64)
    logsumexp, mass = torch.zeros(2, batch, heads, q_len, dtype=torch.float64).unbind()
    kept_pairs = torch.zeros(batch, heads, q_len, kv_len, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            for i in range(q_len):
                row = {}
                for j in range(kv_len):
                    bias = 0.0
                    if mask is not None:
                        entry = mask.expand(batch, heads, q_len, kv_len)[b, h, i, j].item()
                        bias = entry if mask.dtype != torch.bool else (0.0 if entry else -math.inf)
                    if bias != -math.inf and not (causal and j > i + kv_len - q_len):
                        row[j] = scale * sum(
                            x * y for x, y in zip(query[b, h, i].tolist(), key[b, h // group, j].tolist(), strict=True)
                        ) + bias  # fmt: skip
                kept = set()
                block = method.m * method.stride
                for start, residue in itertools.product(range(0, kv_len, block), range(method.stride)):
                    members = [j for j in range(start + residue, start + block, method.stride) if j in row]
                    kept |= set(sorted(members, key=lambda j: (-row[j], j))[: method.n])
                kept |= {j for j in row if abs(i + kv_len - q_len - j) < method.window or j < method.sinks}
                total, everything = (sum(math.exp(row[j]) for j in keys) for keys in (kept, row))
                logsumexp[b, h, i] = math.log(total) if kept else -math.inf
                mass[b, h, i] = total / everything if kept else 1.0
                for j in kept:
                    out[b, h, i] += math.exp(row[j]) / total * value[b, h // group, j]
                    kept_pairs[b, h, i, j] = True
    return out, logsumexp, mass, kept_pairs


@pytest.mark.parametrize("method", CASES, ids=lambda method: method.name)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask_kind", ["none", "bool", "padding", "bias"])
def test_equals_the_loop(method: NM, causal: bool, mask_kind: str) -> None:
    generator = torch.Generator().manual_seed(hash((method.name, causal, mask_kind)) % 1000)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    query, key, value = draw(2, 4, 5, 3), draw(2, 2, 11, 3), draw(2, 2, 11, 2)
    mask = {
        "none": None,
        "bool": draw(2, 1, 5, 11) > 0.5,
        "padding": torch.arange(11).expand(2, 1, 1, 11) < torch.tensor([11, 6]).view(2, 1, 1, 1),
        "bias": draw(4, 5, 11).masked_fill(draw(4, 5, 11) > 1, -math.inf),
    }[mask_kind]
    result = reference.forward(query, key, value, method, mask, causal, scale=-0.7)
    out, logsumexp, mass, kept = loop(query, key, value, method, mask, causal, scale=-0.7)
    torch.testing.assert_close(result.out, out)
    torch.testing.assert_close(result.logsumexp, logsumexp)
    torch.testing.assert_close(result.kept_mass, mass)
    assert torch.equal(result.kept, kept.sum(-1, dtype=torch.int32))
    chosen = choose(reference.scores(query, key, mask, causal, -0.7, offset=6), method, offset=6)
    assert torch.equal(chosen, kept)


def test_ties_go_to_the_lower_index() -> None:
    kept = choose(torch.zeros(1, 1, 1, 10), NM(2, 4))
    assert kept.flatten().nonzero().flatten().tolist() == [0, 1, 4, 5, 8, 9]
    kept = choose(torch.zeros(1, 1, 1, 17), NM(1, 2, stride=3))  # groups 0 3, 1 4, 2 5; …; 12 15, 13 16, 14
    assert kept.flatten().nonzero().flatten().tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]


def test_masked_keys_never_win_and_tails_keep_what_they_have() -> None:
    s = torch.tensor([-math.inf, -5.0, -math.inf, -math.inf, 1.0])
    assert choose(s.view(1, 1, 1, 5), NM(2, 4)).flatten().tolist() == [False, True, False, False, True]


def test_kept_mass_of_rows_under_the_lowest_bias() -> None:
    """Scores so low that a difference of logarithms loses the mass: all are equal, so N of M hold N/M of it."""
    query, key, value = torch.randn(3, 1, 1, 4, 8, generator=torch.Generator().manual_seed(0)).unbind()
    bias = torch.full((4, 4), torch.finfo(torch.float32).min)
    assert torch.equal(reference.forward(query, key, value, NM(1, 2), bias).kept_mass, torch.full((1, 1, 4), 0.5))


def test_nan_is_kept_and_reaches_only_its_rows() -> None:
    query, key, value = torch.randn(3, 1, 1, 4, 8, generator=torch.Generator().manual_seed(0)).unbind()
    key[0, 0, 1, 0] = math.nan  # every query scores key 1 as NaN
    out = reference.forward(query, key, value, NM(1, 2), causal=True).out[0, 0]
    assert not out[0].isnan().any()  # query 0 does not see key 1
    assert out[1:].isnan().all()


def test_nan_in_a_value_reaches_only_the_rows_that_keep_it() -> None:
    query, key, value = torch.randn(3, 1, 1, 8, 8, generator=torch.Generator().manual_seed(1)).unbind()
    value[0, 0, 2] = math.nan
    s = reference.scores(query, key, None, False, 8**-0.5)
    keeps = choose(s, NM(1, 2))[0, 0, :, 2]
    assert 0 < keeps.sum() < 8
    out = reference.forward(query, key, value, NM(1, 2)).out[0, 0]
    assert torch.equal(out.isnan().all(-1), keeps)
    assert torch.equal(out.isnan().any(-1), keeps)


def test_backward_is_the_derivative_with_the_choice_held_fixed() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    query, key, value, bias = (
        x.requires_grad_() for x in (draw(1, 4, 6, 5), draw(1, 2, 9, 5), draw(1, 2, 9, 3), draw(1, 4, 6, 9))
    )
    result = reference.forward(query, key, value, NM(2, 4), bias, causal=True)
    d_out, d_logsumexp = draw(1, 4, 6, 3), draw(1, 4, 6)
    by_autograd = torch.autograd.grad((result.out, result.logsumexp), (query, key, value, bias), (d_out, d_logsumexp))
    by_formula = reference.backward(d_out, d_logsumexp, query, key, value, NM(2, 4), bias, causal=True)
    for expected, got in zip(by_autograd, by_formula, strict=True):
        torch.testing.assert_close(got, expected)
