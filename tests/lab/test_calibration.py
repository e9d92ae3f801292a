"""Methods that look at inputs are given statistics of texts, made once for each model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab import calibration
from dynattn.lab.frontier.apply import applied
from dynattn.lab.frontier.work import look
from dynattn.lab.models import Pretrained, load
from dynattn.lab.tasks.texts import Text, read
from dynattn.sparsity import Magnitude, NMWeights, calibrate
from dynattn.sparsity.linears import linears


@pytest.fixture
def articles(many_texts: Path, monkeypatch: pytest.MonkeyPatch):
    found = read(many_texts)
    monkeypatch.setattr(
        calibration, "wikipedia", lambda: (*found, Text("nothing", "\n"))
    )  # as Wikipedia's last ones are
    monkeypatch.setattr(calibration, "TEXTS", 3)
    monkeypatch.setattr(calibration, "TOKENS", 40)
    return found


@pytest.mark.parametrize("model", ["tiny_encoder", "tiny_decoder"])
def test_weights_are_chosen_by_the_last_texts(model: str, articles, request: pytest.FixtureRequest):
    pretrained = load(str(request.getfixturevalue(model)))
    batches = [
        pretrained.processor(text.body, truncation=True, max_length=40, return_tensors="pt")["input_ids"]
        for text in articles[-3:]
    ]
    expected = NMWeights(2, 8, "wanda").masks(
        {name: layer.weight for name, layer in linears(pretrained.model).items()},
        calibrate(pretrained.model, [{"input_ids": ids} for ids in batches]),
    )
    before = {name: x.clone() for name, x in pretrained.model.state_dict().items()}
    with applied(pretrained, "nmweight-2-8-wanda"):
        for name, layer in linears(pretrained.model).items():
            assert torch.equal(layer.weight != 0, expected[name])
    assert all(torch.equal(x, before[name]) for name, x in pretrained.model.state_dict().items())
    assert set(calibration.statistics(pretrained)) == set(expected)
    assert calibration.statistics(pretrained) is calibration.statistics(pretrained)


def test_the_work_of_such_weights_is_counted(tiny_encoder: Path, articles):
    pretrained, inputs = load(str(tiny_encoder)), [{"input_ids": torch.arange(2, 18)[None]}]
    names = ("sdpa", "nmweight-2-8", "nmweight-2-8-wanda-dsnot")
    dense, by_size, by_inputs = (look(pretrained, name, inputs).total for name in names)
    assert by_size == by_inputs < dense


def test_pictures_are_no_texts():
    pretrained = Pretrained("dinov2", torch.nn.Linear(2, 2), None, "vision", "")
    with pytest.raises(ValueError, match="calibration: the model must read text: dinov2 is vision"):
        calibration.statistics(pretrained)
    with calibration.thinned_out(pretrained, Magnitude(0.5)) as kept:  # which needs none
        assert kept.share == 0.5
