"""DynamicViT on vision transformers with random weights, against layers called one by one on explicit tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import observing, register  # noqa: E402
from dynattn.pruning.course import highest  # noqa: E402
from dynattn.pruning.dynamicvit import DynamicViT  # noqa: E402
from dynattn.pruning.predictor import Predictors, left_after  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "image_size": 20, "patch_size": 4}
STAGES = (1, 3)
RATIO = 0.7
KINDS = ("vit", "dinov2", "dinov2_with_registers")


def steep(module: torch.nn.Module, factor: float) -> Any:
    """With matrices so large that attention and predictors are far from uniform; float64."""
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(factor)
    return module.double().eval()


def model(kind: str) -> Any:
    torch.manual_seed(0)
    made = {
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL, intermediate_size=48)),
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, mlp_ratio=2)),
        "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2, num_register_tokens=3)
        ),
    }[kind]()
    made = steep(made, 6)
    made.set_attn_implementation("sdpa")
    return made


def predictors(seed: int = 0, ratio: float = RATIO) -> Predictors:
    torch.manual_seed(seed)
    return steep(Predictors(32, STAGES, ratio), 20)


def pictures(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layers(vit: Any) -> Any:
    return vit.layers if hasattr(vit, "layers") else vit.encoder.layer


@torch.no_grad()
def oracle(vit: Any, chosen: Predictors, pixels: Tensor, leading: int) -> tuple[Tensor, list[list[int]]]:
    """One picture at a time, each layer called on exactly the tokens that are left."""
    rows, seen = [], []
    for picture in pixels:
        full = vit.embeddings(picture[None])[0]
        left, n, lengths = list(range(len(full))), len(full) - leading, []
        for index, layer in enumerate(layers(vit)):
            if index in STAGES:
                stage = STAGES.index(index)
                tokens = [i for i in left if i >= leading]
                scores = chosen.log_probabilities(stage, full[tokens][None], torch.ones(1, len(tokens)))[0, :, 0]
                order = sorted(range(len(tokens)), key=lambda i: (-float(scores[i]), i))
                kept = {tokens[i] for i in order[: left_after(n, chosen.keep_ratio, stage)]}
                left = [i for i in left if i < leading or i in kept]
            full[left] = layer(full[left][None])[0]
            lengths.append(len(left))
        rows.append(vit.layernorm(full))
        seen.append(lengths)
    return torch.stack(rows), seen


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_gathered_equals_the_oracle(kind):
    vit, chosen, pixels = model(kind), predictors(), pictures()
    leading = 4 if kind == "dinov2_with_registers" else 1
    expected, lengths = oracle(vit, chosen, pixels, leading)
    dense = vit(pixels).last_hidden_state
    with DynamicViT(chosen).apply(vit) as trace:
        found = vit(pixels).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert trace.last is not None
    assert trace.last.tokens.T.tolist() == lengths == [[25 + leading, *[17 + leading] * 2, *[12 + leading] * 2]] * 3
    assert bool(trace.last.survivors[:, :leading].all())
    assert (found - dense).abs().max() > 0.1  # the comparison would see if nothing were dropped
    assert torch.equal(vit(pixels).last_hidden_state, dense)


def best(log_probabilities: Tensor, before: Tensor, stage: int) -> Tensor:
    """Decisions as inference takes them, for a masked forward."""
    counts = torch.full((len(before),), left_after(before.shape[1], RATIO, stage))
    return highest(log_probabilities[..., 0], before.bool(), counts).to(before.dtype)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_masked_equals_gathered_where_the_decisions_do(kind):
    """What training sees is what inference does: dropped tokens, blocked by decisions, are as good as gone."""
    vit, method, pixels = model(kind), DynamicViT(predictors()), pictures()
    with method.apply(vit):
        expected = vit(pixels).last_hidden_state
    stages = iter((0, 1))
    with method.training(vit, lambda p, before: best(p, before, next(stages))) as drawn:
        found = vit(pixels).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert [d.sum(1).tolist() for d in drawn.decisions] == [[17.0] * 3, [12.0] * 3]


@torch.no_grad()
def test_all_tokens_kept_is_the_dense_model():
    vit, pixels = model("vit"), pictures()
    method, dense = DynamicViT(predictors(), 1.0), vit(pixels).last_hidden_state
    with method.apply(vit):
        torch.testing.assert_close(vit(pixels).last_hidden_state, dense)
    with method.training(vit, lambda p, before: before):
        torch.testing.assert_close(vit(pixels).last_hidden_state, dense)


def test_decisions_accumulate_and_every_predictor_learns():
    vit, method, pixels = model("vit"), DynamicViT(predictors()), pictures(8)
    vit.requires_grad_(False)
    torch.manual_seed(0)
    with method.training(vit) as drawn:
        output = vit(pixels)
    first, second = drawn.decisions
    assert 0 < second.detach().mean() < first.detach().mean() < 1
    assert bool((second <= first).all())
    output.pooler_output.square().sum().backward()
    for name, parameter in method.predictors.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


def test_training_lowers_the_loss():
    """Predictors that are trained keep tokens that the class token needs: it moves less than with untrained ones."""
    vit, method, pixels = model("vit"), DynamicViT(predictors(3, 0.5)), pictures(8)
    vit.requires_grad_(False)
    with torch.no_grad():
        dense = vit(pixels).last_hidden_state
    optimizer = torch.optim.Adam(method.predictors.parameters(), lr=3e-3)

    def gap() -> float:
        with torch.no_grad(), method.apply(vit):
            return float((vit(pixels).last_hidden_state[:, 0] - dense[:, 0]).square().mean())

    torch.manual_seed(0)
    before = gap()
    for _ in range(40):
        with method.training(vit) as drawn:
            hidden = vit(pixels).last_hidden_state
        share = torch.stack([(d.mean() - 0.5**s).square() for s, d in enumerate(drawn.decisions, 1)]).mean()
        loss = (hidden[:, 0] - dense[:, 0]).square().mean() + 2 * share
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gap() < 0.8 * before


@torch.no_grad()
def test_nm_attention_inside():
    """Both at once: each layer's own 1:2 attention, on the tokens that are left."""
    register()
    vit, chosen, pixels = model("dinov2"), predictors(), pictures()
    vit.set_attn_implementation("dynattn:nm-1-2")
    expected, _ = oracle(vit, chosen, pixels, 1)
    calls = []
    with DynamicViT(chosen).apply(vit), observing(calls.append):
        found = vit(pixels).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert [call.query.shape[2] for call in calls] == [26, 18, 18, 13, 13]
    assert {call.method.name for call in calls} == {"nm-1-2"}
    vit.set_attn_implementation("sdpa")
    with DynamicViT(chosen).apply(vit):
        assert (vit(pixels).last_hidden_state - found).abs().max() > 1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_the_model_is_left_as_it_was(masked):
    vit, pixels = model("vit"), pictures()
    before, state = vit(pixels).last_hidden_state, copy.deepcopy(vit.state_dict())
    method = DynamicViT(predictors())
    context = method.training(vit) if masked else method.apply(vit)

    def fail() -> None:
        with context:
            vit(pixels)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert torch.equal(vit(pixels).last_hidden_state, before)
    assert all(torch.equal(value, state[name]) for name, value in vit.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())
    assert vit.config._attn_implementation == "sdpa"


def test_a_head_on_top():
    config = transformers.ViTConfig(**SMALL, intermediate_size=48, num_labels=7)
    torch.manual_seed(0)
    vit = steep(transformers.ViTForImageClassification(config), 6)
    method, pixels = DynamicViT(predictors()), pictures()
    with method.training(vit):
        logits = vit(pixels).logits
    with torch.no_grad(), method.apply(vit):
        gathered = vit(pixels).logits
    assert logits.shape == gathered.shape == (3, 7)
    logits.sum().backward()
    assert all(bool((p.grad != 0).any()) for p in method.predictors.parameters())


def test_the_ratio_is_the_predictors_own_unless_another_is_given():
    vit, pixels = model("vit"), pictures(1)
    for method, name, count in (
        (DynamicViT(predictors()), "dynamicvit-0.7", 17), (DynamicViT(predictors(), 0.5), "dynamicvit-0.5", 12),
    ):  # fmt: skip
        with torch.no_grad(), method.apply(vit) as trace:
            vit(pixels)
        assert method.name == name
        assert trace.last is not None
        assert trace.last.tokens[1].tolist() == [1 + count]


def test_what_cannot_work_is_refused():
    vit, pixels = model("vit"), pictures()
    with pytest.raises(TypeError, match="predictors must be Predictors: got None"):
        DynamicViT(None)  # type: ignore[arg-type]
    half = predictors().half()
    with pytest.raises(TypeError, match=r"torch.float16, it computes in torch.float64"), DynamicViT(half).apply(vit):
        vit(pixels)
    single = DynamicViT(predictors().float())  # under autocast dtypes differ and fit
    whole = model("vit").float()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), single.apply(whole) as trace:
        whole(pixels.float())
    assert trace.last.tokens[-1, 0] < trace.last.tokens[0, 0]
    with pytest.raises(ValueError, match="keep_ratio must be above 0"):
        DynamicViT(predictors(), 0.0)
    deep = steep(Predictors(32, (1, 5)), 1)
    with pytest.raises(ValueError, match=r"before layers of the model.*\(1, 5\)"), DynamicViT(deep).apply(vit):
        vit(pixels)
    wide = steep(Predictors(64, STAGES), 1)
    for context in (DynamicViT(wide).apply(vit), DynamicViT(wide).training(vit)):
        with pytest.raises(ValueError, match="width"), context:
            vit(pixels)
    register()
    vit.set_attn_implementation("dynattn:nm-1-2")
    with pytest.raises(ValueError, match="attends densely"), DynamicViT(predictors()).training(vit):
        vit(pixels)
    vit.set_attn_implementation("sdpa")
    padded = torch.ones(3, 26)
    padded[0, -2:] = 0
    with pytest.raises(ValueError, match="without padding"), DynamicViT(predictors()).training(vit):
        vit(pixels, attention_mask=padded)
    vit.config.attention_probs_dropout_prob = 0.1
    with pytest.raises(ValueError, match="no dropout"), DynamicViT(predictors()).training(vit.train()):
        vit(pixels)


@torch.no_grad()
def test_padding_counts_for_nothing():
    """A sample of fewer tokens keeps fewer, and its output is the one that it has alone."""
    vit, method = model("vit"), DynamicViT(predictors())
    mask = torch.ones(2, 26)
    mask[1, 20:] = 0
    with method.apply(vit) as trace:
        both = vit(pictures(2), attention_mask=mask).last_hidden_state
        assert trace.last is not None
        tokens = trace.last.tokens
        other = pictures(2).clone()
        other[1, :, 16:] = 5.0  # the patches that the mask hides: the last row of five
        changed = vit(other, attention_mask=mask).last_hidden_state
    assert tokens.tolist() == [[26, 20], [18, 14], [18, 14], [13, 10], [13, 10]]
    torch.testing.assert_close(changed[0], both[0])
    torch.testing.assert_close(changed[1, :20], both[1, :20])


@pytest.mark.model
@torch.no_grad()
def test_on_dinov2():
    """The real one, at 140 pixels: masked as gathered, with its own attention and with N:M attention inside."""
    from dynattn.lab.models import load

    vit = load("dinov2").model
    torch.manual_seed(0)
    method = DynamicViT(Predictors(384).eval())
    pixels = torch.rand(2, 3, 140, 140, generator=torch.Generator().manual_seed(1))
    dense = vit(pixels).last_hidden_state
    with method.apply(vit) as trace:
        gathered = vit(pixels).last_hidden_state
    assert trace.last is not None
    assert trace.last.tokens[:, 0].tolist() == [101] * 3 + [71] * 3 + [50] * 3 + [35] * 3
    stages = iter((0, 1, 2))
    with method.training(vit, lambda p, before: best(p, before, next(stages))):
        masked = vit(pixels).last_hidden_state
    torch.testing.assert_close(masked, gathered, rtol=1e-3, atol=1e-3 * float(gathered.abs().max()))
    register()
    vit.set_attn_implementation("dynattn:nm-1-2")
    with method.apply(vit):
        sparse = vit(pixels).last_hidden_state
    similar = torch.nn.functional.cosine_similarity(sparse[:, 0], dense[:, 0])
    assert bool((similar > 0.9).all())
    assert not torch.allclose(sparse, gathered, atol=1e-3)
