"""The definition of dropout: known answers of the generator, and what it is for."""

import pytest
import torch

from dynattn.maths import dropout


def test_known_answers() -> None:
    """Random123's own test vectors for counters and keys of zeros, and of ones."""
    zero, ones = torch.tensor([0]), torch.tensor([0xFFFFFFFF])
    assert dropout.stream(0, 0, 0) == 0x6627E8D5
    assert int(dropout.words(zero.view(1, 1), zero, zero)) == 0xFF1DAE59
    assert int(dropout.words(ones.view(1, 1), ones, ones)) == 0x2C3F628B


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_share_of_dropped_weights(dropout_p: float) -> None:
    z = dropout.factors(3, dropout_p, 2, 3, range(200), 300, torch.device("cpu"))
    dropped = (z == 0).double().mean((-1, -2))
    deviation = (dropout_p * (1 - dropout_p) / 60000) ** 0.5
    assert (dropped - dropout_p).abs().max() < 5 * deviation
    torch.testing.assert_close(z[z > 0], torch.full_like(z[z > 0], 1 / (1 - dropout_p)))


def test_no_sample_has_no_factor() -> None:
    assert dropout.factors(3, 0.5, 0, 2, range(4), 5, torch.device("cpu")).shape == (0, 2, 4, 5)


def test_heads_samples_and_seeds_draw_apart() -> None:
    z = torch.cat([dropout.factors(seed, 0.5, 2, 2, range(64), 64, torch.device("cpu")) for seed in (1, 2, 1 << 40)])
    signs = (z.flatten(0, 1).flatten(1) > 0).double() * 2 - 1
    correlation = signs @ signs.T / signs.shape[1] - torch.eye(len(signs))
    assert correlation.abs().max() < 5 / 64


def test_rows_may_be_drawn_in_pieces() -> None:
    whole = dropout.factors(5, 0.3, 1, 2, range(20), 33, torch.device("cpu"))
    pieces = [dropout.factors(5, 0.3, 1, 2, rows, 33, torch.device("cpu")) for rows in (range(7), range(7, 20))]
    assert torch.equal(whole, torch.cat(pieces, dim=2))
