"""Training of DynamicViT's predictors: what is trained, what is left alone, what is written."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from dynattn.lab.finetune.tokens import Student, TokenDropping  # noqa: E402
from dynattn.lab.models import Pretrained  # noqa: E402
from dynattn.lab.training import Job  # noqa: E402
from dynattn.lab.training.run import run  # noqa: E402
from dynattn.pruning.dynamicvit import DynamicViT  # noqa: E402
from dynattn.pruning.predictor import Predictors  # noqa: E402
from tests.lab.training.tiny import silent  # noqa: E402

JOB = Job("sdpa", seed=1, steps=6, batch=4, learning_rate=1e-2, evaluate_every=3, save_every=3)


def processor(images: list[np.ndarray], return_tensors: str, do_resize: bool) -> dict[str, torch.Tensor]:
    assert return_tensors == "pt"
    assert not do_resize
    return {"pixel_values": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1}


@pytest.fixture(scope="module")
def tiny() -> Pretrained:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=20, patch_size=4
    )
    model = transformers.Dinov2Model(config).eval()
    return Pretrained("tiny", model, processor, "vision", "a tiny one")


def experiment(tiny: Pretrained, **options: Any) -> TokenDropping:
    draw = np.random.default_rng(0)
    pictures, held_out = draw.integers(0, 256, (16, 20, 20, 3)), draw.integers(0, 256, (6, 20, 20, 3))
    return TokenDropping(tiny, list(pictures), list(held_out), "noise", 0.5, (1, 2), **options)


def test_predictors_are_trained_and_nothing_else(tiny, tmp_path):
    before = copy.deepcopy(tiny.model.state_dict())
    made = experiment(tiny)
    found = run(JOB, made, tmp_path, silent, keep_model=True)
    assert len(found.scores) == 6
    assert [point.step for point in found.curve] == [3, 6]
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    trained = Predictors.load(tmp_path / JOB.name / "model")
    assert (trained.layers, trained.keep_ratio) == ((1, 2), 0.5)
    torch.manual_seed(JOB.seed)
    fresh = Predictors(16, (1, 2), 0.5)
    names = dict(trained.named_parameters())
    assert any(not torch.equal(parameter, names[name]) for name, parameter in fresh.named_parameters())
    assert {path.name for path in (tmp_path / JOB.name / "model").iterdir()} == {
        "predictors.json", "predictors.safetensors",
    }  # fmt: skip
    student = made.model("sdpa").eval()
    student.predictors.load_state_dict(trained.state_dict())
    np.testing.assert_allclose(made.evaluate(student, lambda: None), found.scores, atol=1e-6)


def test_scores_are_the_gathered_model_s_cosines(tiny):
    made = experiment(tiny)
    student = made.model("sdpa").eval()
    advanced = []
    scores = made.evaluate(student, lambda: advanced.append(1))
    assert len(advanced) == made.steps() == 2
    pixels = processor(list(made.held_out), "pt", False)["pixel_values"]
    with torch.no_grad():
        dense = tiny.model(pixels).last_hidden_state
        with DynamicViT(student.predictors).apply(tiny.model):
            gathered = tiny.model(pixels).last_hidden_state
    for i, score in enumerate(scores):
        a, b = gathered[i].flatten().double(), dense[i].flatten().double()
        assert score == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-5)


@pytest.mark.parametrize("train_all", [False, True])
def test_what_gets_a_gradient(tiny, train_all):
    student = experiment(tiny, train_all=train_all).model("sdpa")
    assert isinstance(student, Student)
    pixels = processor([np.full((20, 20, 3), i) for i in range(4)], "pt", False)["pixel_values"]
    student(pixel_values=pixels)["loss"].backward()
    for name, parameter in student.named_parameters():
        trained = name.startswith("predictors.") or (train_all and name.startswith("model."))
        assert parameter.requires_grad is trained, name
        assert (parameter.grad is not None) is (trained and "mask_token" not in name), name
    assert (student.teacher is student.model) is not train_all


def test_the_whole_model_is_saved_where_it_is_trained(tiny, tmp_path):
    run(JOB, experiment(tiny, train_all=True), tmp_path, silent, keep_model=True)
    trained = transformers.Dinov2Model.from_pretrained(tmp_path / JOB.name / "model")
    now = dict(trained.named_parameters())
    assert any(not torch.equal(value, now[name]) for name, value in tiny.model.named_parameters())


def test_only_dense_attention_is_trained_with(tiny):
    with pytest.raises(ValueError, match="dense attention"):
        experiment(tiny).model("nm-1-2")
