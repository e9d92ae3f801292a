"""Tokens are gathered to the front and put back in their places, whatever each sample keeps."""

from __future__ import annotations

import pytest
import torch

from dynattn.pruning.tokens import Tokens, key_mask, padding

ALIVE = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
CHOSEN = torch.tensor([[True, False, True, True, False, True], [False, True, True, False, True, True]])
FULL = torch.arange(24.0).view(2, 6, 2)


def test_what_is_chosen_goes_on_in_its_order() -> None:
    kept = Tokens.all(ALIVE).keep(CHOSEN)
    assert kept.position[0].tolist() == [0, 2, 3, 5]
    assert kept.position[1][kept.alive[1]].tolist() == [1, 2]  # padding is never kept
    assert kept.alive.tolist() == [[True] * 4, [True, True, False, False]]
    assert all(len(set(row)) == 4 for row in kept.position.tolist())  # no place is named twice
    again = kept.keep(torch.tensor([[False, True, True, False], [True, False, True, True]]))
    assert again.position[0].tolist() == [2, 3]
    assert again.position[1][again.alive[1]].tolist() == [1]


def test_nothing_is_gathered_where_nothing_is_pruned() -> None:
    everything = Tokens.all(ALIVE)
    assert everything.keep(torch.ones_like(ALIVE)) is everything
    assert everything.gather(FULL) is FULL
    assert everything.scatter(FULL, FULL + 1, FULL) is not FULL


def test_pruned_tokens_keep_their_states() -> None:
    kept = Tokens.all(ALIVE).keep(CHOSEN)
    before = kept.gather(FULL)
    assert torch.equal(before[0], FULL[0, [0, 2, 3, 5]])
    found = kept.scatter(FULL, before + 100, before)
    want = FULL + 100 * (CHOSEN & ALIVE).unsqueeze(-1)
    assert torch.equal(found, want)


@pytest.mark.parametrize("form", ["bool", "additive", "square"])
def test_padding_is_read_from_a_models_mask(form: str) -> None:
    mask = ALIVE[:, None, None]
    if form != "bool":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    if form == "square":
        mask = mask.expand(2, 1, 6, 6)
    assert torch.equal(padding(mask, FULL), ALIVE)
    assert bool(padding(None, FULL).all())


@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        (torch.ones(2, 6, dtype=torch.bool), r"must be \(batch, 1, length or 1, 6\)"),
        (torch.ones(2, 1, 1, 5, dtype=torch.bool), r"must be \(batch, 1, length or 1, 6\)"),
        (torch.ones(2, 1, 6, 6, dtype=torch.bool).tril(), "must forbid whole keys"),
        (torch.full((2, 1, 1, 6), -0.5), "must forbid whole keys"),
    ],
)
def test_other_masks_are_refused(mask: torch.Tensor, rule: str) -> None:
    with pytest.raises(ValueError, match=f"pruning: attention_mask {rule}"):
        padding(mask, FULL)


def test_the_mask_of_the_tokens_that_are_left() -> None:
    assert key_mask(ALIVE[:1], True, torch.float32) is None
    plain = key_mask(ALIVE, False, torch.float32)
    assert plain is not None
    assert torch.equal(plain, ALIVE[:, None, None])
    added = key_mask(ALIVE, True, torch.bfloat16)
    assert added is not None
    assert added.dtype == torch.bfloat16
    assert torch.equal(added == 0, plain)
    assert torch.equal(padding(added, FULL), ALIVE)
