"""The account of a model: a small BERT, counted by hand."""

from __future__ import annotations

import pytest
import torch

from dynattn.account import Work, counting, of_model

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


def test_linear_layers_can_be_counted_alone(model: torch.nn.Module) -> None:
    """Whatever attention runs: so that they are counted beside a method whose choice is not made again."""
    from dynattn.integrations.transformers import register

    inputs = {"input_ids": torch.arange(40).view(1, 40)}
    register("nm-1-2")
    found = []
    for name in ("sdpa", "dynattn:nm-1-2"):
        model.set_attn_implementation(name)  # pyright: ignore[reportCallIssue]
        with counting(model, attention=False) as account:
            model(**inputs)
        assert account.calls == 0
        assert account.attention == Work()
        found.append(account.linear)
    whole = of_model(model, inputs)
    assert found == [whole.linear] * 2
    assert whole.calls > 0


def test_counts_poolings_by_their_sizes() -> None:
    from dynattn.nn import PoNet

    with counting(layer := PoNet(16, 2), attention=False) as account:
        layer(torch.randn(3, 40, 16))
    assert account.calls == 0
    assert account.linear.linear == 6 * 3 * 40 * 16 * 16
    found = of_model(PoNet(16, 2), {"x": torch.randn(3, 40, 16)})
    assert found.calls == 1
    assert found.linear.linear == 6 * 3 * 40 * 16 * 16
    assert found.attention.scores == 3 * 40 * 16
    assert found.attention.values == 2 * 3 * 40 * 16
    assert found.attention.exponentials == 3 * 40 * 2
    assert (found.attention.read, found.attention.written) == (5 * 3 * 40 * 16 * 4, 3 * 40 * 16 * 4)


@pytest.mark.parametrize("tokens", [1, 7])
def test_inputs_that_are_left_out_are_not_multiplied_and_their_weights_not_read(
    model: torch.nn.Module, tokens: int
) -> None:
    from dynattn.sparsity import NMActivations, Sparsity, observing

    model.set_attn_implementation("dynattn:dense")  # pyright: ignore[reportCallIssue]
    inputs, runs = {"input_ids": torch.arange(tokens).view(1, tokens)}, []
    dense = of_model(model, inputs)
    with Sparsity(mlp=NMActivations(1, 4), qkv=NMActivations(2, 4)).apply(model), observing(runs.append):
        found = of_model(model, inputs)
    mlp, qkv = 3 * 2 * 16 * 32, 3 * 3 * 16 * 16  # weights
    assert dense.linear.linear - found.linear.linear == tokens * (mlp * 3 / 4 + qkv / 2)
    assert found.linear.choosing == tokens * 3 * (16 + 16 + 32)  # queries, keys and values share one choice
    unread = sum(run.module.weight.shape[0] for run in runs for kept in run.keep.T.tolist() if not any(kept))
    assert dense.linear.read - found.linear.read == 4 * unread
    assert unread > 0
    if tokens == 1:
        assert unread == mlp * 3 / 4 + qkv / 2
    assert found.attention == dense.attention


def test_neurons_that_the_gate_does_not_ask_for_are_not_counted() -> None:
    from dynattn.integrations.transformers import register
    from dynattn.sparsity import CHESS, Calibrated, watching

    register()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.set_attn_implementation("dynattn:dense")
    inputs = {"input_ids": torch.arange(5).view(1, 5)}
    dense = of_model(model, inputs)
    limits = {f"{layer}.down": (0.01,) for layer in range(2)}
    with Calibrated(CHESS(0.5), limits).apply(model), watching() as seen:
        found = of_model(model, inputs)
    dropped = sum(one.entries - one.kept for name, one in seen.items() if name.endswith("down"))
    assert dropped > 0
    assert dense.linear.linear - found.linear.linear == dropped * 2 * 16  # one row of up, one column of down
    assert found.linear.choosing == 2 * 5 * 32
