"""Budgets are kept as measured: the search on closed forms, and what methods keep on a tiny model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")

from dynattn.integrations.transformers import Call
from dynattn.lab.frontier import budgets, store, sweep
from dynattn.lab.frontier.budgets import CLOSE, Scale, one_head, solve
from dynattn.lab.frontier.cell import Exam, Search
from dynattn.lab.frontier.methods import FAMILIES, taking_part
from dynattn.lab.frontier.sweep import Settings, plan
from dynattn.lab.models import load
from dynattn.lab.tasks import make
from dynattn.methods import NM
from tests.lab.frontier.running import here, settings_for, silent


def blocks_of_a_row(k: int, blocks: int) -> float:
    """The density of k blocks in every row of causal blocks: the formula of block-sparse attention."""
    return (k * (k + 1) / 2 + (blocks - k) * k) / (blocks * (blocks + 1) / 2)


FORMULAS = {
    "share": lambda share: share,
    "window": lambda share: share * (2 - share),
    "steep": lambda share: share**3,
    "flat": lambda share: share**0.5,
    "rising late": lambda share: math.exp(-0.1 / share),
}


@pytest.mark.parametrize("budget", [1 / 2, 1 / 5, 1 / 10, 1 / 15, 1 / 20])
@pytest.mark.parametrize("formula", FORMULAS)
def test_a_budget_is_found_on_any_density_that_grows(formula: str, budget: float):
    density = FORMULAS[formula]
    asked: list[str] = []

    def kept(name: str) -> float:
        asked.append(name)
        return density(float(name))

    found = solve(lambda share: f"{share:.4g}", kept, budget)
    assert found is not None
    assert found[1] == density(float(found[0])) == pytest.approx(budget, rel=CLOSE)
    assert len(asked) == len(set(asked)) <= 10


@pytest.mark.parametrize("budget", [1 / 2, 1 / 5, 1 / 10, 1 / 20])
def test_a_count_is_found_that_comes_nearest(budget: float):
    """Counts leave gaps; each is asked for what it keeps once."""
    asked: list[str] = []

    def kept(name: str) -> float:
        asked.append(name)
        return blocks_of_a_row(int(name), 128)

    found = solve(lambda share: str(max(1, round(share * 128))), kept, budget)
    assert found is not None
    nearest = min(range(1, 129), key=lambda k: abs(math.log(blocks_of_a_row(k, 128) / budget)))
    assert found[1] == blocks_of_a_row(int(found[0]), 128)
    assert abs(found[1] / budget - 1) <= max(CLOSE, abs(blocks_of_a_row(nearest, 128) / budget - 1))
    assert len(asked) == len(set(asked))


def test_what_is_out_of_reach_gives_the_nearest_and_shares_without_a_method_are_passed_over():
    found = solve(str, lambda name: max(0.3, float(name)), 0.1)
    assert found is not None
    assert found[1] == 0.3

    def name(share: float) -> str:
        if share < 0.15:
            raise ValueError("no method for so little")
        return str(share)

    found = solve(name, float, 0.1)
    assert found is not None
    assert found[1] == pytest.approx(0.15, rel=0.1)
    assert solve(name, lambda _: None, 0.5) is None
    assert solve(lambda share: name(0.0), float, 0.5) is None


def test_heads_take_turns_and_keep_their_mask():
    query, key = torch.randn(2, 6, 3, 4), torch.randn(2, 3, 5, 4)
    mask = torch.randn(1, 6, 3, 5)
    call = Call(0, torch.nn.Identity(), query, key, key + 1, NM(1, 1), mask, False, None)
    for number, head in ((0, 0), (2, 2), (4, 1)):
        found = one_head(call, number)
        assert torch.equal(found.query, query[:, 2 * head : 2 * head + 2])
        assert torch.equal(found.key, key[:, head : head + 1])
        assert torch.equal(found.value, key[:, head : head + 1] + 1)
        assert torch.equal(found.attn_mask, mask[:, 2 * head : 2 * head + 2])  # type: ignore[arg-type]
    one = one_head(call._replace(attn_mask=mask[:, :1]), 1)
    assert torch.equal(one.attn_mask, mask[:, :1])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scales(tiny_decoder: Path, texts: Path) -> dict[str, Scale]:
    """Of both phases, on one task."""
    from dynattn.lab.tasks.texts import read

    pretrained = load(str(tiny_decoder))
    data = make("passkey", pretrained, items=2, tokens=224, texts=read(texts)).prepare(pretrained)
    exam = Exam(model="m", phase="prefill", task="passkey", tokens=224, items=2, texts=None)
    decode = exam.model_copy(update={"phase": "decode"})
    return {each.phase: Scale(pretrained, each, data) for each in (exam, decode)}


@pytest.mark.parametrize("family", ["block top-k", "block mass", "N:M", "window", "threshold"])
def test_families_keep_their_budget_of_pairs(scales: dict[str, Scale], family: str):
    found = scales["prefill"].solved(Search(exam=scales["prefill"]._exam, family=family, budget=0.5))
    assert found is not None
    assert found.in_reach
    assert scales["prefill"].kept(found.name) == found.kept
    exact = budgets.work.look(scales["prefill"]._pretrained, found.name, scales["prefill"]._data.examples[:1]).pairs
    assert exact == pytest.approx(found.kept * 2 * 4 * 224 * 225 / 2, rel=0.1)  # all heads, with their own errors


@pytest.mark.parametrize("family", ["Scatterbrain", "magnitude", "N:M weights"])
def test_a_method_that_drops_no_pairs_has_no_budget(scales: dict[str, Scale], family: str):
    search = Search(exam=scales["prefill"]._exam, family=family, budget=0.5)
    assert scales["prefill"].solved(search) is None


def test_while_decoding_bytes_of_the_cache_are_kept(scales: dict[str, Scale]):
    scale = scales["decode"]
    assert scale.kept("dense") == pytest.approx(1.0)
    assert scale.kept("nm-1-2") == pytest.approx(0.875, abs=0.03)  # all keys, and the values that one of two heads kept
    found = scale.solved(Search(exam=scale._exam, family="cache: window", budget=0.5))
    assert found is not None
    assert found.in_reach
    start = 224 - scale._data.payload[0][1] - 64 + 1  # the keys of the step, the new one with them
    window = int(found.name.split("-")[2])
    assert found.kept == pytest.approx((window + 4 + 1) / start, abs=1 / start)
    pages = scale.kept("cache-quest-64")
    assert pages is not None
    assert 64 / start + 1 / 16 <= pages <= (64 + 2 * 16) / start + 2 / 16  # pages, and the bounds of all
    keys = scale.solved(Search(exam=scale._exam, family="top-k", budget=0.25))
    assert keys is not None
    assert not keys.in_reach  # it reads every key to choose


def test_a_sweep_measures_what_keeps_the_budgets_and_goes_on(tiny_decoder: Path, texts: Path, tmp_path: Path):
    fields = {"families": ("block top-k", "top-k", "Scatterbrain"), "budgets": (0.5, 0.25), "methods": ()}
    settings = settings_for(
        tiny_decoder, texts, tasks=("passkey",), tokens=(120,), items=2, measured=True, seconds=0, **fields
    )
    path = tmp_path / "record.json"
    first = sweep(settings, path, silent, here)
    assert first.measured
    assert first.failures == {}
    assert {(one.search.family, one.search.budget) for one in first.solved.values()} == {
        ("block top-k", 0.5), ("block top-k", 0.25), ("top-k", 0.5), ("top-k", 0.25),
    }  # fmt: skip
    assert store.load(path) == first
    labels = {grade.cell.entry.label: grade for grade in first.grades.values()}
    for one in first.solved.values():
        grade = labels.get(f"{one.search.family} 1/{1 / one.search.budget:.0f}")
        assert (grade is not None) == one.in_reach
        if grade is not None:
            assert grade.cell.entry.name == one.name
            assert grade.work.pairs is not None
            assert grade.work.pairs / (2 * 4 * 120 * 121 / 2) == pytest.approx(one.search.budget, rel=0.15)
    again = sweep(settings, path, lambda title, steps: lambda: None, lambda job, cells: pytest.fail("measured again"))
    assert (again.grades, again.solved) == (first.grades, first.solved)
    with pytest.raises(ValueError, match="budgets must be meant alike in a record"):
        sweep(dataclasses.replace(settings, measured=False), path, silent, here)


def test_only_what_is_in_reach_is_planned():
    settings = Settings("m", families=("top-k", "block mass"), budgets=(0.5,), measured=True, tasks=("needle",))
    assert {cell.entry.name for cell in plan(settings, "decoder")[0]} == {"sdpa"}
    exam = plan(settings, "decoder")[0][0].exam
    solved = {
        search.key: budgets.Solved(search=search, name=name, kept=kept)
        for family, name, kept in (("top-k", "topk-0.4", 0.52), ("block mass", "blockmass-0.5-b16", 0.6))
        if (search := Search(exam=exam, family=family, budget=0.5))
    }
    cells, timed = plan(settings, "decoder", solved)
    assert [(cell.entry.name, cell.entry.label) for cell in cells if cell.exam == exam] == [
        ("sdpa", "sdpa"), ("topk-0.4", "top-k 1/2"),
    ]  # fmt: skip
    assert [entry.name for _, entry in timed] == ["topk-0.4"]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"families": ("riddles",)}, "family must be one of N:M, .*'riddles'"),
        ({"methods": ("nm-1-2",), "measured": True}, "methods that are named have no budget to look for"),
        ({"methods": ("nm-1-2",), "families": ("top-k",)}, "methods that are named have no budget to look for"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict, match: str):
    with pytest.raises(ValueError, match=match):
        Settings(**fields)


def test_every_family_can_be_asked_for_shares_between_its_budgets():
    """The knob of the search: finer than the table's names, and monotone enough to be searched."""
    for family in taking_part("decoder", "prefill"):
        names = []
        for share in (0.03, 0.0301, 0.2, 0.35, 0.6, 0.9):
            try:
                names.append(budgets.asked(family, share, "decoder", 2048))
            except ValueError:
                assert family.startswith("N:M"), family  # M is a whole number, and has a limit
        assert len(set(names)) >= 3, (family, names)
    assert set(taking_part("decoder", "prefill")) <= set(FAMILIES)
