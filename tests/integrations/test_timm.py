"""Tiny random models of timm by dynattn: dense is their own attention, and they are as before afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm", reason="needs timm")

from dynattn import NM  # noqa: E402
from dynattn.integrations import timm as dynattn_timm  # noqa: E402
from dynattn.integrations import torch as dynattn_torch  # noqa: E402
from dynattn.integrations.transformers import observing  # noqa: E402

PLAIN: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
WINDOWS: dict[str, Any] = {
    "img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "vit_tiny_patch16_224": (PLAIN, 2, 0),
    "deit_tiny_distilled_patch16_224": (PLAIN, 2, 0),
    "deit3_small_patch16_224": (PLAIN, 2, 0),
    "vit_relpos_small_patch16_224": (PLAIN, 2, 0),
    "vit_small_patch14_reg4_dinov2": (PLAIN, 2, 0),
    "vit_base_patch16_siglip_224": (PLAIN, 3, 0),  # its pooling attends too
    "beit_base_patch16_224": (PLAIN, 2, 0),
    "eva02_tiny_patch14_224": (PLAIN, 2, 0),
    "cait_xxs24_224": (PLAIN, 2, 2),
    "xcit_nano_12_p16_224": (
        {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2},
        4,
        0,
    ),  # across channels too
    "swin_tiny_patch4_window7_224": (WINDOWS, 4, 0),
}
"""Models, their sizes, and the numbers of modules that take part and that keep attention of their own."""


def made(name: str, sizes: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=5, **sizes).eval()
    for parameter in model.parameters():  # not near zero, so that what attention keeps is seen in the output
        nn.init.normal_(parameter, std=0.4)
    return model, torch.randn(2, 3, 32, 32)


def state(model: nn.Module) -> str:
    return str([(name, type(one), dict(vars(one))) for name, one in model.named_modules()])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:apply. .* in part")
def test_dense_is_the_model_s_own_and_it_is_undone(name: str) -> None:
    sizes, taking_part, own = CASES[name]
    model, images = made(name, sizes)
    with torch.no_grad():
        expected, before, calls = model(images), state(model), []
        with dynattn_timm.apply(model, "dense") as found, observing(calls.append):
            torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
        with dynattn_timm.apply(model, NM(1, 4)):
            assert not torch.allclose(model(images), expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(model(images), expected)
    assert state(model) == before
    assert (len(found.taking_part), len(found.own)) == (taking_part, own)
    assert {call.module for call in calls} == {model.get_submodule(part.name) for part in found.taking_part}


def test_modules_that_timm_does_not_fuse_are_fused_meanwhile() -> None:
    from timm.layers import set_fused_attn  # pyright: ignore[reportMissingImports]

    set_fused_attn(False)
    try:
        model, images = made("vit_tiny_patch16_224", PLAIN)
    finally:
        set_fused_attn(True)
    expected, calls = model(images), []
    with dynattn_torch.apply(model, "nm-1-4"), pytest.raises(RuntimeError, match=r"blocks.0.attn .* called a softmax"):
        model(images)
    first, second = dynattn_timm.apply(model, "nm-1-4"), dynattn_timm.apply(model, "dense")
    first.__enter__()
    with second, observing(calls.append):
        first.__exit__(None, None, None)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2
    assert not any(block.attn.fused_attn for block in model.blocks)


def test_features_and_gradients() -> None:
    model, images = made("vit_tiny_patch16_224", PLAIN)
    parameters = list(model.parameters())
    features = model.forward_intermediates(images, intermediates_only=True)
    expected = torch.autograd.grad(model(images).sin().sum(), parameters)
    with dynattn_timm.apply(model, "dense"):
        torch.testing.assert_close(
            model.forward_intermediates(images, intermediates_only=True), features, rtol=1e-4, atol=1e-4
        )  # fmt: skip
        found = torch.autograd.grad(model(images).sin().sum(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_it_compiles_whole() -> None:
    torch.compiler.reset()
    model, images = made("vit_tiny_patch16_224", {**PLAIN, "depth": 1})
    with dynattn_timm.apply(model, "nm-1-4"), torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), model(images))


def test_attention_of_its_own_is_named() -> None:
    model, _ = made("cait_xxs24_224", PLAIN)
    with pytest.warns(UserWarning, match=r"Cait attends by nm-1-2 in part: 2 of .* \(TalkingHeadAttn\)"):  # noqa: SIM117
        with dynattn_timm.apply(model, "nm-1-2") as found:
            pass
    assert "2 attention modules keep attention of their own\n  blocks.*.attn: TalkingHeadAttn (2)" in str(found)


@pytest.mark.parametrize(
    ("name", "sizes", "text"),
    [
        ("swinv2_tiny_window8_256", WINDOWS, r"of SwinTransformerV2 keep attention of their own \(WindowAttention\)"),
        ("resnet10t", {}, "those of ResNet do not attend; leave it as it is"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_model_of_which_nothing_takes_part_is_refused(name: str, sizes: dict[str, Any], text: str) -> None:
    model, _ = made(name, sizes)
    before = state(model)
    with pytest.raises(ValueError, match=text):
        dynattn_timm.apply(model, "nm-1-2").__enter__()
    assert state(model) == before


def test_bad_input_gets_a_clear_error() -> None:
    with pytest.raises(TypeError, match="model must be a module: got str; pass what create_model returns"):
        dynattn_timm.apply("vit_tiny_patch16_224", "dense").__enter__()  # type: ignore[arg-type]
