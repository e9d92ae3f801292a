"""Tiny random models of diffusers by dynattn: dense is their own attention, and they are as before afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers", reason="needs diffusers")

from dynattn import NM  # noqa: E402
from dynattn.integrations import diffusers as dynattn_diffusers  # noqa: E402
from dynattn.integrations.transformers import observing  # noqa: E402

Case = tuple[Any, dict[str, Any]]


def flux() -> Case:
    model = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 16, 4), "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 8), "timestep": torch.tensor([3.0]),
        "img_ids": torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], -1),
        "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip


def wan() -> Case:
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=24, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 4, 2, 8, 8), "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 6, 16),
    }  # fmt: skip


def dit() -> Case:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        norm_type="ada_norm_zero",
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 4]), "class_labels": torch.tensor([1, 2])
    }  # fmt: skip


def sd3() -> Case:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 8), "timestep": torch.tensor([3]),
    }  # fmt: skip


def unet() -> Case:
    model = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    mask = torch.ones(2, 6)
    mask[1, 4:] = 0
    return model, {
        "sample": torch.randn(2, 4, 8, 8), "timestep": 3, "encoder_hidden_states": torch.randn(2, 6, 16),
        "encoder_attention_mask": mask,
    }  # fmt: skip


def autoencoder() -> Case:
    model = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    return model, {"sample": torch.randn(1, 3, 8, 8)}


CASES: dict[str, tuple[Callable[[], Case], int]] = {
    "flux": (flux, 2), "wan": (wan, 4), "dit": (dit, 2), "sd3": (sd3, 2), "unet": (unet, 8),
    "autoencoder": (autoencoder, 2),
}  # fmt: skip
"""Models, and the number of their attention modules."""


def made(name: str) -> tuple[Any, Callable[[], torch.Tensor]]:
    torch.manual_seed(0)
    model, inputs = CASES[name][0]()
    for parameter in model.parameters():  # not near zero, so that what attention keeps is seen in the output
        nn.init.normal_(parameter, std=0.3)
    return model.eval(), lambda: model(**inputs, return_dict=False)[0]


def state(model: nn.Module) -> list[Any]:
    return [
        (name, type(one), dict(vars(one)), dict(vars(getattr(one, "processor", one))))
        for name, one in model.named_modules()
    ]


@pytest.mark.parametrize("name", CASES)
def test_dense_is_the_model_s_own_and_it_is_undone(name: str) -> None:
    model, run = made(name)
    with torch.no_grad():
        expected, before, calls = run(), str(state(model)), []
        with dynattn_diffusers.apply(model, "dense") as found, observing(calls.append):
            torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-4)
        with dynattn_diffusers.apply(model, NM(1, 4)):
            assert not torch.allclose(run(), expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(run(), expected)
    assert str(state(model)) == before
    assert {call.module for call in calls} == {model.get_submodule(part.name) for part in found.taking_part}
    assert len(found.taking_part) == CASES[name][1]
    assert not found.own


@pytest.mark.parametrize("name", ["flux", "unet"])
def test_gradients(name: str) -> None:
    model, run = made(name)
    parameters = [one for one in model.parameters() if one.requires_grad]
    expected = torch.autograd.grad(run().sin().sum(), parameters, allow_unused=True)
    with dynattn_diffusers.apply(model, "dense"):
        found = torch.autograd.grad(run().sin().sum(), parameters, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_backend_that_was_set_is_as_before_afterwards() -> None:
    """diffusers sets it for the processors, and for all models."""
    from diffusers.models import attention_dispatch  # pyright: ignore[reportMissingImports]

    model, run = made("flux")
    calls: list[Any] = []
    try:
        model.set_attention_backend("_native_flash")
        with dynattn_diffusers.apply(model, "dense"), observing(calls.append), torch.no_grad():
            run()
        backends = {one.processor._attention_backend.value for one in model.modules() if hasattr(one, "processor")}
        del type(model.transformer_blocks[0].attn.processor)._attention_backend
        vars(model.transformer_blocks[0].attn.processor).pop("_attention_backend")
        with pytest.raises(ValueError, match="must be native for FluxAttnProcessor: got _native_flash; leave"):
            dynattn_diffusers.apply(model, "dense").__enter__()
    finally:
        native = attention_dispatch.AttentionBackendName.NATIVE
        attention_dispatch._AttentionBackendRegistry.set_active_backend(native)
        type(model.transformer_blocks[0].attn.processor)._attention_backend = None
    assert len(calls) == 2
    assert backends == {"_native_flash"}


def test_processors_of_their_own_are_named() -> None:
    from diffusers.models.attention_processor import AttnProcessor  # pyright: ignore[reportMissingImports]

    model, run = made("dit")
    model.transformer_blocks[0].attn1.set_processor(AttnProcessor())
    expected = run()
    with pytest.warns(UserWarning, match=r"in part: 1 of its attention modules keep .* \(Attention\)"):  # noqa: SIM117
        with dynattn_diffusers.apply(model, "dense") as found:
            torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-4)
    assert [part.name for part in found.own] == ["transformer_blocks.0.attn1"]
    for block in model.transformer_blocks:
        block.attn1.set_processor(AttnProcessor())
    with pytest.raises(ValueError, match=r"DiTTransformer2DModel keep attention of their own \(Attention\)"):
        dynattn_diffusers.apply(model, "dense").__enter__()


def test_it_compiles_whole() -> None:
    torch.compiler.reset()
    model, _ = made("flux")
    block = model.transformer_blocks[0].attn
    x, text = torch.randn(1, 9, 32), torch.randn(1, 5, 32)
    with dynattn_diffusers.apply(block, "nm-1-4"), torch.no_grad():
        compiled = torch.compile(block, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, text), block(x, text))


def test_bad_input_gets_a_clear_error() -> None:
    with pytest.raises(TypeError, match=r"model must be a module: got str; of a pipeline pass .* pipe.transformer"):
        dynattn_diffusers.apply("flux", "dense").__enter__()  # type: ignore[arg-type]
    model, _ = made("dit")
    with dynattn_diffusers.apply(model, "dense"), pytest.raises(RuntimeError, match="must not be copied"):
        copy.deepcopy(model)
    model.transformer_blocks[0].attn1.processor._parallel_config = object()
    with pytest.raises(ValueError, match="must not run in context parallel: DiTTransformer2DModel does"):
        dynattn_diffusers.apply(model, "dense").__enter__()
