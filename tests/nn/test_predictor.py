import math

import pytest
import torch

from dynattn.methods.dsa import projection
from dynattn.nn import DSAPredictor, prediction_loss


def test_is_the_definition() -> None:
    torch.manual_seed(0)
    predictor = DSAPredictor(width=10, heads=2, rank=4, bits=8, seed=3)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(3, 5, 10)
    found = predictor(x).detach()
    r = projection(10, 4, 3).float()

    def rounded(row: torch.Tensor) -> torch.Tensor:
        step = max(abs(float(y)) for y in row) / 127
        return torch.tensor([round(float(y) / step) * step for y in row])

    for b in range(3):
        for h in range(2):
            for i in range(5):
                for j in range(5):
                    q = rounded(x[b, i] @ r @ predictor.query_map[h].detach())
                    k = rounded(x[b, j] @ r @ predictor.key_map[h].detach())
                    assert math.isclose(float(found[b, h, i, j]), float(q @ k), rel_tol=1e-3, abs_tol=1e-3)


def test_gradients_pass_straight_through_the_rounding() -> None:
    torch.manual_seed(0)
    predictor = DSAPredictor(10, 2, 4)
    x = torch.randn(1, 6, 10)
    weights = torch.randn(1, 2, 6, 6)
    (predictor(x) * weights).sum().backward()
    low = (x @ predictor.projection).unsqueeze(1)
    q, k = (predictor._rounded(low @ m).detach() for m in (predictor.query_map, predictor.key_map))
    assert predictor.query_map.grad is not None
    assert predictor.key_map.grad is not None
    torch.testing.assert_close(predictor.query_map.grad, (low.mT @ weights @ k).sum(0))
    torch.testing.assert_close(predictor.key_map.grad, (low.mT @ weights.mT @ q).sum(0))


def test_projection_is_fixed_and_seeded() -> None:
    one, same, other = DSAPredictor(10, 1, 4, seed=1), DSAPredictor(10, 1, 4, seed=1), DSAPredictor(10, 1, 4, seed=2)
    assert torch.equal(one.projection, same.projection)
    assert not torch.equal(one.projection, other.projection)
    assert {name for name, _ in one.named_parameters()} == {"query_map", "key_map"}
    assert "projection" in one.state_dict()


def test_loss_is_the_mean_over_allowed_pairs() -> None:
    scores = torch.tensor([[[[1.0, -math.inf], [2.0, 5.0]]]])
    predicted = torch.tensor([[[[0.0, 7.0], [4.0, 5.0]]]], requires_grad=True)
    loss = prediction_loss(predicted, scores)
    assert loss.item() == pytest.approx((1 + 4 + 0) / 3)
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad[0, 0, 0, 1] == 0
    assert prediction_loss(predicted, torch.full_like(scores, -math.inf)).item() == 0


@pytest.mark.parametrize(
    ("sizes", "bits", "text"),
    [((4, 1, 5), 4, "rank at most width"), ((4, 0, 2), 4, "at least 1"), ((4, 1, 2), 5, "bits")],
)
def test_wrong_values_are_refused(sizes: tuple[int, int, int], bits: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DSAPredictor(*sizes, bits=bits)
