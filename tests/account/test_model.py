"""The account of a model: a small BERT, counted by hand."""

from __future__ import annotations

import pytest
import torch

from dynattn.account import counting, of_model

transformers = pytest.importorskip("transformers")


@pytest.fixture
def model() -> torch.nn.Module:
    from dynattn.integrations.transformers import register

    register()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def test_counts_every_layer(model: torch.nn.Module) -> None:
    model.set_attn_implementation("dynattn:nm-1-2")  # pyright: ignore[reportCallIssue]
    found = of_model(model, {"input_ids": torch.arange(40).view(1, 40)})
    assert found.calls == 3
    assert found.attention.scores == 3 * 40 * 40 * 16
    assert found.attention.values == found.attention.scores / 2
    weights = 4 * 16 * 16 + 2 * 16 * 32
    assert found.linear.linear == 3 * 40 * weights
    assert found.linear.read == 3 * weights * 4
    assert found.total.multiply_adds == found.attention.multiply_adds + found.linear.linear


def test_heads_of_different_methods_are_counted_by_theirs(model: torch.nn.Module) -> None:
    from dynattn.integrations.transformers import register

    register("perhead(nm-1-2_nm-1-4)")
    inputs = {"input_ids": torch.arange(40).view(1, 40)}
    model.set_attn_implementation("dynattn:perhead(nm-1-2_nm-1-4)")  # pyright: ignore[reportCallIssue]
    found = of_model(model, inputs)
    assert found.calls == 3
    assert found.attention.scores == 3 * 40 * 40 * 16
    assert found.attention.values == 3 * 40 * 40 * (8 / 2 + 8 / 4)


def test_leaves_no_hook_and_needs_dynattn(model: torch.nn.Module) -> None:
    inputs = {"input_ids": torch.arange(40).view(1, 40)}
    with pytest.raises(ValueError, match="the model must call dynattn: BertModel made no call"):
        of_model(model, inputs)
    with pytest.raises(TypeError, match="inputs must be keyword arguments of the forward: got Tensor"):
        of_model(model, inputs["input_ids"])  # type: ignore[arg-type]
    with counting(model) as account:
        pass
    model.set_attn_implementation("dynattn:dense")  # pyright: ignore[reportCallIssue]
    model(**inputs)
    assert account.calls == 0
    assert account.linear.linear == 0


def test_counts_poolings_by_their_sizes() -> None:
    from dynattn.nn import PoNet

    found = of_model(PoNet(16, 2), {"x": torch.randn(3, 40, 16)})
    assert found.calls == 1
    assert found.linear.linear == 6 * 3 * 40 * 16 * 16
    assert found.attention.scores == 3 * 40 * 16
    assert found.attention.values == 2 * 3 * 40 * 16
    assert found.attention.exponentials == 3 * 40 * 2
    assert (found.attention.read, found.attention.written) == (5 * 3 * 40 * 16 * 4, 3 * 40 * 16 * 4)
