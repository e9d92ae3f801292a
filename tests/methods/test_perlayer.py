import pytest
import torch

import dynattn
from dynattn import NM, PerHead, PerLayer, TopK, Window

DENSE, HALF = NM(1, 1), NM(1, 2)


def test_each_layer_has_its_method() -> None:
    method = PerLayer({range(4, 5): TopK(k=3), range(3): DENSE}, default=HALF)
    assert [method.at(layer) for layer in range(6)] == [DENSE, DENSE, DENSE, HALF, TopK(k=3), HALF]
    assert method == PerLayer(((range(3), DENSE), (range(4, 5), TopK(k=3))), HALF)
    assert hash(method) == hash(PerLayer({range(3): DENSE, range(4, 5): TopK(k=3)}, HALF))
    assert not method.keeps_everything
    assert not method.looks_at_positions
    assert PerLayer({range(2): PerHead((Window(3), DENSE))}, DENSE).looks_at_positions
    assert PerLayer({range(2): NM(4, 4)}, DENSE).keeps_everything


def test_attention_does_not_know_its_layer() -> None:
    query, key, value = torch.randn(3, 1, 1, 4, 8)
    method = PerLayer({range(3): DENSE}, HALF)
    with pytest.raises(
        ValueError, match=r"method must be one layer's: got perlayer\(nm-1-2_0-2=dense\); pass method.at"
    ):
        dynattn.attention(query, key, value, method)
    torch.testing.assert_close(
        dynattn.attention(query, key, value, method.at(1)),
        torch.nn.functional.scaled_dot_product_attention(query, key, value),
    )


@pytest.mark.parametrize(
    ("layers", "error", "text"),
    [
        ({range(3): DENSE, range(2, 4): HALF}, ValueError, "not overlap"),
        ({range(0, 6, 2): DENSE}, ValueError, "in steps of 1"),
        ({range(3, 3): DENSE}, ValueError, "hold a layer"),
        ({range(-1, 2): DENSE}, ValueError, "from 0 or more"),
        ({3: DENSE}, TypeError, "layers must be methods by ranges"),
        ({range(2): "dense"}, TypeError, "layers must be methods by ranges"),
        ({range(2): PerLayer({}, DENSE)}, ValueError, "a layer's method must not be PerLayer"),
    ],
)
def test_refusals(layers: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"PerLayer: .*{text}"):
        PerLayer(layers, HALF)
