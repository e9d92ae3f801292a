"""Directions of random features are orthogonal and even."""

import torch

from dynattn.maths.random_features import directions


def test_orthogonal_directions() -> None:
    w = directions(20, 8, True, torch.Generator().manual_seed(0))
    unit = w / torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    for block in unit.split(8):
        torch.testing.assert_close(block @ block.T, torch.eye(len(block), dtype=torch.float64))
    many = directions(8000, 8, True, torch.Generator().manual_seed(1))
    torch.testing.assert_close(many.T @ many / 8000, torch.eye(8, dtype=torch.float64), rtol=0, atol=0.06)
    assert many.mean(0).abs().max() < 0.05
