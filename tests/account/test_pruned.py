"""The costs of a forward that pruned, counted by hand."""

from __future__ import annotations

import torch

from dynattn.account.pruned import of_forward
from dynattn.account.work import Work
from dynattn.pruning.work import Forward, LayerWork


def layer(number: int, tokens: int, heads: int, **notes: int) -> LayerWork:
    counts = {name: torch.tensor([count]) for name, count in notes.items()}
    return LayerWork(number, torch.tensor([tokens]), tokens, torch.tensor([heads]), counts)


def forward(*layers: LayerWork) -> Forward:
    return Forward(layers, torch.zeros(1, 1, dtype=torch.int64))


def test_all_pairs_of_the_tokens_and_heads_that_are_left() -> None:
    found = of_forward(forward(layer(0, 10, 2), layer(1, 4, 1)), head_dim=8, itemsize=2)
    pairs, rows = 2 * 10 * 10 + 4 * 4, 2 * 10 + 4
    assert found == Work(
        scores=8 * pairs, values=8 * pairs, exponentials=pairs, read=3 * 8 * 2 * rows, written=8 * 2 * rows
    )


def test_every_sample_counts_for_itself() -> None:
    both = LayerWork(0, torch.tensor([10, 3]), 10, torch.tensor([2, 1]))
    alone = of_forward(forward(layer(0, 10, 2)), head_dim=8, itemsize=4) + of_forward(
        forward(layer(0, 3, 1)), head_dim=8, itemsize=4
    )
    assert of_forward(forward(both), head_dim=8, itemsize=4) == alone


def test_values_that_were_read_and_rows_that_were_computed_again() -> None:
    plain = of_forward(forward(layer(0, 10, 2)), head_dim=8, itemsize=2)
    found = of_forward(forward(layer(0, 10, 2, values_read=30, rows_again=5)), head_dim=8, itemsize=2)
    assert found.values == 8 * 30
    assert found.scores == plain.scores + 8 * 5 * 10
    assert found.exponentials == plain.exponentials + 5 * 10


def test_low_bits_are_read_where_a_row_asked_for_them() -> None:
    rows = 2 * 10
    high = of_forward(forward(layer(0, 10, 2, rows_again=0)), head_dim=8, itemsize=2, bits=(8, 4))
    both = of_forward(forward(layer(0, 10, 2, rows_again=1)), head_dim=8, itemsize=2, bits=(8, 4))
    assert (high.read, both.read) == (3 * rows * 8 * 1.0, 3 * rows * 8 * 1.5)
    assert high.written == both.written == rows * 8 * 2
