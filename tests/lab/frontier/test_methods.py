"""The table of methods: names that are methods', at equal densities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("pydantic")
pytest.importorskip("transformers")

from dynattn import attention, pruning, sparsity
from dynattn.lab.frontier.apply import applied, canonical
from dynattn.lab.frontier.methods import BUDGETS, FAMILIES, baselines, check, entries, is_baseline, named
from dynattn.lab.models import Kind, load
from dynattn.methods import PairMethod, parse

# follows the data; adds a window; has blocks of up to 128 keys, of which the diagonal leaves parts
_BESIDE = {
    "threshold": (0.3, 3.0), "mass": (1.0, 4.0), "N:M, window": (1.0, 1.8), "N:M, stride 16": (1.0, 1.8),
    "block mass": (1.0, 8.0), "blocks with a proof": (1.0, 8.1), "skips": (0.3, 8.1), "clustered": (0.9, 1.4),
    "vertical-slash": (0.6, 2.0), "FlexPrefill": (0.6, 8.1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "length"), [("encoder", 512), ("decoder", 1024)]
)  # floors are more than an eighth of less
def test_every_name_is_a_methods_own_and_keeps_the_budget(kind: Kind, length: int):
    torch.manual_seed(0)

    query, key = torch.randn(1, 1, length, 16), torch.randn(1, 1, length, 16)
    for entry in entries(kind, "prefill", length, BUDGETS):
        assert canonical(entry.name) == entry.name
        if pruning.find(entry.name) is not None or sparsity.find(entry.name) is not None:
            continue
        method = parse(entry.name)
        if not isinstance(method, PairMethod) or entry.budget is None:
            continue
        _, aux = attention(query, key, key, method, causal=kind == "decoder", return_aux=True)
        density = aux.density.item() / entry.budget
        low, high = _BESIDE.get(entry.family, (0.95, 1.4))
        assert low <= density < high, entry


def test_every_family_is_there_at_every_budget_and_so_are_the_baselines():
    found = entries("encoder", "prefill", 128, (0.25, 0.125))
    there = [name for name, family in FAMILIES.items() if "prefill" in family.phases and "encoder" in family.kinds]
    expected = [(family, budget) for family in there for budget in (0.25, 0.125)]
    assert [(entry.family, entry.budget) for entry in found] == [*expected, ("efficient", None)]
    for name, family in FAMILIES.items():
        assert set(family.baselines) <= set(FAMILIES)
        assert is_baseline(name) == (baselines(name) == ())
    assert "SpAtten" not in {entry.family for entry in entries("decoder", "prefill", 128, (0.25,))}
    decoding = {entry.name for entry in entries("decoder", "decode", 1024, (0.25,))}
    assert {"cache-window-256-s4", "cache-spatten-flat-0.25", "cache-quest-256", "nm-1-4"} <= decoding
    assert not any(name.startswith(("scatterbrain", "blocktopk", "spatten")) for name in decoding)


def test_what_looks_at_the_end_of_a_text_is_not_judged_by_every_token():
    ahead = {"vertical-slash", "FlexPrefill"}
    of_task = {
        task: {entry.family for entry in entries("decoder", "prefill", 1024, (0.25,), task)}
        for task in ("perplexity", "needle")
    }
    assert of_task["needle"] - of_task["perplexity"] == ahead
    assert {"blocks with a proof", "skips", "block mass"} <= of_task["perplexity"]


def test_windows_follow_the_length():
    names = {length: {e.name for e in entries("encoder", "prefill", length, (0.25,))} for length in (128, 512)}
    assert "window-17-s1" in names[128]
    assert "window-69-s1" in names[512]


def test_budgets_are_shares_that_every_family_can_keep():
    check((0.5, 1 / 3, 0.0625))
    for wrong in (1.0, 0.3, 0.0, -0.5):
        with pytest.raises(ValueError, match="a budget must be 1 over a whole number"):
            check((wrong,))


def test_methods_by_name_are_families_of_their_own_and_named_once():
    found = named(["nm-2-4", "nm-1-2", "nm-2-4"])
    assert [(entry.name, entry.family, entry.budget) for entry in found] == [
        ("nm-2-4", "nm-2-4", None), ("nm-1-2", "nm-1-2", None),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no-method"):
        named(["no-method"])


def test_a_method_works_while_it_is_applied_and_not_after(tiny_encoder: Path):
    pretrained = load(str(tiny_encoder))
    inputs = {"input_ids": torch.randint(0, 60, (1, 64), generator=torch.Generator().manual_seed(0))}

    @torch.inference_mode()
    def states(name: str) -> torch.Tensor:
        with applied(pretrained, name):
            return pretrained.model(**inputs).last_hidden_state

    dense = states("sdpa")
    assert not torch.equal(states("spatten-0.25"), dense)
    assert not torch.equal(states("nm-1-4"), dense)
    assert torch.equal(states("sdpa"), dense)


def test_a_method_that_refuses_its_name_says_why() -> None:
    with pytest.raises(ValueError, match=r"SpAtten: keep must be"):
        canonical("spatten-1.5")
