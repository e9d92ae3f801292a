"""A user's own items and scores: what is recorded of the model's calls, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks.own import Likelihoods, Scored

IDS = [torch.arange(n)[None] % 60 for n in (8, 20, 12)]


@pytest.fixture(scope="module")
def pretrained(tiny_decoder):
    return load(str(tiny_decoder))


def _likely(pretrained, ids) -> float:
    return float(pretrained.model(ids).logits[0, -1].softmax(-1).max())


def _broken(pretrained, ids) -> float:
    return 1 / 0


def test_each_item_has_its_score_and_the_longest_call_is_the_example(pretrained):
    task = Scored(IDS, _likely)
    data = task.prepare(pretrained)
    assert data.length == 20
    assert [inputs["input_ids"].shape[1] for inputs in data.examples] == [20, 12, 8]
    assert not any(inputs["use_cache"] for inputs in data.examples)
    pretrained.model(**data.examples[0])
    with torch.inference_mode():
        expected = [_likely(pretrained, ids) for ids in IDS]
    scores = task.evaluate(pretrained, data, lambda: None).scores
    assert scores is not None
    np.testing.assert_allclose(scores, expected)
    assert pretrained.model.config._attn_implementation == "sdpa"


def test_of_generating_the_prompt_is_the_example_without_its_cache(pretrained):
    def generated(pretrained, ids) -> float:
        told = pretrained.model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        return float(told.shape[1] > ids.shape[1])

    data = Scored(IDS[:1], generated).prepare(pretrained)
    assert data.length == 8
    assert "past_key_values" not in data.examples[0]
    one, other = (pretrained.model(**data.examples[0]).logits for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)  # no cache grew between the two


@pytest.mark.parametrize(
    ("task", "rule"),
    [
        (Scored([], _likely), "items must not be empty"),
        (Scored(IDS, lambda pretrained, ids: 0.5), "without a call of it"),
        (Scored(IDS, lambda pretrained, ids: 1.5), "between 0 and 1: item 1 gives 1.5"),
        (Scored(IDS, lambda pretrained, ids: float("nan")), "between 0 and 1"),
        (Scored(IDS, lambda pretrained, ids: "good"), "must be a number: item 1 gives a str"),  # type: ignore[arg-type, return-value]
        (Scored(IDS, lambda pretrained, ids: "0.5"), "must be a number: item 1 gives a str"),  # type: ignore[arg-type, return-value]
        (Scored(IDS, lambda pretrained, ids: torch.zeros(2)), "must be a number: item 1 gives a Tensor"),  # type: ignore[arg-type, return-value]
        (
            Scored(IDS, _broken),
            r"every item: item 1 raised ZeroDivisionError: division by zero \(test_own\.py, line \d+\)",
        ),
        (Scored(IDS, lambda pretrained: 0.5), r"item 1 raised TypeError: .*2 were given"),  # type: ignore[arg-type]
        (Scored(IDS, lambda pretrained, ids: None), "must be a number: item 1 gives a NoneType"),  # type: ignore[arg-type, return-value]
        (Likelihoods(IDS, lambda pretrained, ids: -1.0), "at least 0: item 1 gives -1"),
        (Likelihoods(IDS, lambda pretrained, ids: float("inf")), "finite"),
    ],
)
def test_what_is_no_score_is_refused(pretrained, task, rule):
    with pytest.raises(ValueError, match=rule):
        task.prepare(pretrained)
    assert pretrained.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("items", "score", "rule"),
    [
        ((each for each in IDS), _likely, "items must be a list: got a generator"),
        (set(range(3)), _likely, "items must be a list: got a set"),
        (IDS, 0.5, "score must be a function: got a float"),
    ],
)
def test_what_are_no_items_is_refused(items, score, rule):
    with pytest.raises(ValueError, match=rule):
        Scored(items, score)
