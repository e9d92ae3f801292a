"""Routers: the static order, and the four inputs of the learned one, by loops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dynattn.pruning import Router
from dynattn.pruning.router import score, static
from dynattn.pruning.skipping import Ran

ALIVE = torch.tensor([[True] * 7, [False] * 3 + [True] * 4, [True] * 5 + [False] * 2])


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_static_keeps_the_first_token_and_the_last_ones(sparsity: float) -> None:
    found = static(ALIVE, sparsity)
    for sample in range(3):
        places = ALIVE[sample].nonzero().flatten().tolist()
        order = [places[0], *reversed(places[1:])]
        count = -(-round((1 - sparsity) * 10) * len(places) // 10)  # rounded up, in whole tenths
        assert sorted(found[sample].nonzero().flatten().tolist()) == sorted(order[:count])


def attention_of(masked: str | None) -> Ran:
    """A layer on seven tokens of which some run; the second sample has four rows that do."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    runs = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    allowed = (causal & runs[:, None, None, :]) | torch.eye(7, dtype=torch.bool)
    mask = None
    if masked == "bool":
        mask = allowed
    elif masked == "added":
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return Ran(1, query, key, mask, 0.3, torch.arange(7).expand(2, -1), runs)


def weights(ran: Ran, sample: int, head: int, rows: int) -> list[list[float]]:
    """P of one head, row by row, among the first ``rows`` rows."""
    q, k = ran.query[sample, head], ran.key[sample, head // 2]
    found = []
    for i in range(rows):
        exponentials = [float((ran.scale * q[i] @ k[j]).exp()) for j in range(i + 1)]
        found.append([e / sum(exponentials) for e in exponentials])
    return found


@pytest.mark.parametrize("masked", [None, "bool", "added"])
@pytest.mark.parametrize("look_ahead", [True, False])
def test_scores_by_loops(look_ahead: bool, masked: str | None) -> None:
    ran = attention_of(masked)
    found = score(ran, look_ahead)
    for sample, rows in enumerate((7, 4)):
        if masked is None and sample == 1:
            continue  # without a mask every row runs
        heads = [weights(ran, sample, head, rows) for head in range(4)]
        for j in range(rows):
            if look_ahead:
                expected = sum(p[i][j] for p in heads for i in range(j, rows)) / 4
            else:
                expected = sum(p[j][j] for p in heads) / 4 * (j + 1)
            assert float(found[sample, j]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("look_ahead", [True, False])
def test_even_attention_scores_one(look_ahead: bool) -> None:
    ran = attention_of(None)
    found = score(ran._replace(query=torch.zeros_like(ran.query)), look_ahead)
    expected = [sum(1 / (i + 1) for i in range(j, 7)) if look_ahead else 1.0 for j in range(7)]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert float(found[0].mean()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("look_ahead", [True, False])
def test_the_four_inputs(look_ahead: bool) -> None:
    torch.manual_seed(0)
    scores = torch.randint(3, ALIVE.shape).float()  # with ties
    found = Router(50, look_ahead=look_ahead).inputs(ALIVE, scores, 0.25)
    for sample in range(3):
        places = ALIVE[sample].nonzero().flatten().tolist()
        its, n = [float(scores[sample, place]) for place in places], len(places)
        for j, place in enumerate(places):
            if look_ahead:
                above = sum(its[i] > its[j] or (its[i] == its[j] and i < j) for i in range(n))
                expected = [j / n, math.log10(1 + its[j]), above / n, 0.25]
            else:
                expected = [j / 50, math.log10(1 + its[j]), sum(its[i] >= its[j] for i in range(j)) / (j + 1), 0.25]
            assert found[sample, place].tolist() == pytest.approx(expected)


def test_causal_inputs_do_not_know_what_follows() -> None:
    torch.manual_seed(0)
    scores, alive = torch.rand(1, 9), torch.ones(1, 9, dtype=torch.bool)
    for look_ahead in (False, True):
        router = Router(look_ahead=look_ahead)
        whole, begun = router(alive, scores, 0.3)[:, :5], router(alive[:, :5], scores[:, :5], 0.3)
        assert torch.allclose(whole, begun) != look_ahead


def test_a_router_is_saved_and_read(tmp_path: Path) -> None:
    router = Router(77, look_ahead=True)
    router.save(tmp_path / "there")
    again = Router.load(tmp_path / "there")
    assert (again.length, again.look_ahead, again.training) == (77, True, False)
    assert torch.equal(again(ALIVE, torch.rand(ALIVE.shape), 0.2).isnan(), torch.zeros(3, 7, 2, dtype=torch.bool))
    for name, weight in router.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    assert sum(weight.numel() for weight in router.parameters()) == 4 * 64 + 64 + 64 * 2 + 2
    with pytest.raises(ValueError, match=r"must hold router.json and router.safetensors: it does not"):
        Router.load(tmp_path)
    (tmp_path / "there" / "router.json").write_text('{"width": 3}')
    with pytest.raises(ValueError, match="must be what save wrote"):
        Router.load(tmp_path / "there")
    router.save(tmp_path / "there")
    weights = tmp_path / "there" / "router.safetensors"
    for damaged in (b"", weights.read_bytes()[:100], b"no tensors at all"):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"router\.safetensors must be what save wrote"):
            Router.load(tmp_path / "there")
    (tmp_path / "there" / "router.safetensors").unlink()
    with pytest.raises(ValueError, match=r"must hold router.json and router.safetensors"):
        Router.load(tmp_path / "there")
    with pytest.raises(ValueError, match="length must be at least 1: got 0"):
        Router(0)
