"""An arena on a toy task: what is learnt, in which order it is scored, and how batches are padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from dynattn.lab.lra.data import Data, Split
from dynattn.lab.lra.experiment import Arena, load
from dynattn.lab.training import Job
from dynattn.lab.training.run import run
from tests.lab.lra.toy import recipe, silent


@pytest.mark.parametrize("method", ["sdpa", "nm-1-2"])
def test_a_toy_is_learnt(arena, tmp_path, method):
    found = run(Job(method, 0, steps=60, batch=16, learning_rate=1e-2, evaluate_every=30, save_every=60),
                arena, tmp_path, silent, keep_model=True)  # fmt: skip
    losses = [point.value for point in found.losses]
    assert np.mean(losses[:5]) > 0.6
    assert np.mean(losses[-5:]) < 0.2
    assert found.score > 0.95
    assert [point.step for point in found.curve] == [30, 60]
    again = arena.evaluate(load(tmp_path / f"{method}-seed0" / "model", method), lambda: None)
    assert list(again) == found.scores


def test_an_encoder_of_poolings_is_saved_and_read_by_its_name(arena, tmp_path):
    model = arena.model("ponet-4").eval()
    arena.save(model, tmp_path)
    batch = arena.held_out(np.arange(4))
    assert torch.equal(load(tmp_path, "ponet-4")(**batch)["logits"], model(**batch)["logits"])
    with pytest.raises(ValueError, match="must hold a model's"):  # attention has other weights
        load(tmp_path, "nm-1-2")


class ByFirstToken(torch.nn.Module):
    """Says class 1 where the first token is above 4. Its scores show which item a batch's row belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, labels, attention_mask=None):
        one = (input_ids[:, :1] > 4).float()
        return {"logits": torch.cat([1 - one, one], 1)}


def test_scores_stand_in_the_order_of_the_items(arena):
    test, calls = arena.data.test, []
    scores = arena.evaluate(ByFirstToken(), lambda: calls.append(1))
    expected = [float((tokens[0] > 4) == label) for tokens, label in zip(test.tokens, test.labels, strict=True)]
    assert list(scores) == expected
    assert 0 < sum(expected) < len(expected)
    assert len(calls) == arena.steps() == 3


def test_a_batch_is_padded_to_its_longest_and_masked(arena):
    examples = [arena.dataset()[index] for index in range(4)]
    batch = arena.collate(examples)
    assert batch["input_ids"].shape[1] == max(len(tokens) for tokens, _ in examples)
    for row, (tokens, label) in enumerate(examples):
        assert batch["input_ids"][row, : len(tokens)].tolist() == tokens.tolist()
        assert batch["attention_mask"][row].sum() == len(tokens)
        assert batch["attention_mask"][row, : len(tokens)].all()
        assert batch["labels"][row] == label


def test_without_ragged_lengths_there_is_no_mask():
    tokens = [np.full(6, 3, np.uint16)] * 20
    part = Split(tokens, np.arange(20) % 2)
    data = Data(part, part, 9, 2, 6, False, "all alike")
    assert set(Arena("even", data, recipe()).held_out(np.arange(3))) == {"input_ids", "labels"}
