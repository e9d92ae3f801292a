"""Methods are calibrated once for a model, on texts that tasks take last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.integrations.transformers import register
from dynattn.lab import calibration, thresholds
from dynattn.lab.frontier.apply import applied
from dynattn.lab.models import Pretrained, load
from dynattn.lab.tasks.texts import Text
from dynattn.sparsity import TEAL, WINA, Calibrated


@pytest.fixture
def articles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Short texts in the place of Wikipedia, and how often they were asked for."""
    asked: list[int] = []

    def texts() -> tuple[Text, ...]:
        asked.append(1)
        return tuple(Text(str(number), f"the words of text {number} " * 9) for number in range(95))

    monkeypatch.setattr(calibration, "wikipedia", texts)
    return asked


@pytest.mark.parametrize("kind", ["tiny_encoder", "tiny_decoder"])
def test_a_method_is_calibrated_once_for_a_model(kind: str, request: pytest.FixtureRequest, articles: list[int]):
    pretrained = load(str(request.getfixturevalue(kind)))
    given = thresholds.inputs(pretrained)
    assert len(given) == thresholds.TEXTS
    assert all(one["input_ids"].shape[1] <= calibration.TOKENS for one in given)
    first = thresholds.fitted(pretrained, TEAL(0.5))
    assert isinstance(first, Calibrated)
    assert thresholds.fitted(pretrained, TEAL(0.5)) is first
    assert len(articles) == 2
    assert thresholds.fitted(pretrained, WINA(0.5)) == WINA(0.5)

    def states(name: str) -> torch.Tensor:
        with applied(pretrained, name), torch.no_grad():
            return pretrained.model(**given[0])[0]

    dense, sparse = states("sdpa"), states("teal-0.5")
    assert not torch.allclose(sparse, dense)
    with first.apply(pretrained.model), torch.no_grad():
        assert torch.equal(pretrained.model(**given[0])[0], sparse)
    assert torch.equal(states("sdpa"), dense)


def test_thresholds_are_those_of_the_dense_model(tiny_decoder: Path, articles: list[int]):
    found = []
    for attention in ("sdpa", "dynattn:topk-1"):
        pretrained = load(str(tiny_decoder))
        register("topk-1")
        pretrained.model.set_attn_implementation(attention)
        calibrated = thresholds.fitted(pretrained, TEAL(0.5))
        assert isinstance(calibrated, Calibrated)
        found.append(calibrated.thresholds)
    assert found[0] == found[1]


def test_a_model_that_reads_no_texts_is_refused():
    pretrained = Pretrained("dinov2", torch.nn.Identity(), None, "vision", "")
    with pytest.raises(ValueError, match="thresholds: the model must read texts: dinov2 is of kind vision"):
        thresholds.fitted(pretrained, TEAL(0.5))
