"""Tasks by their names, and the default tasks of every kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks import TASKS, default, find, fitting, make


def test_every_task_is_found_by_its_name_and_every_kind_has_a_default():
    for name, task in TASKS.items():
        assert find(name) is task
    for kind in ("encoder", "decoder", "vision", "speech"):
        for name in default(kind, "a model"):
            assert kind in find(name).kinds
    assert default("vision", "dinov2") == ("saliency",)
    with pytest.raises(ValueError, match=r"retrieval.*'nonsense'"):
        find("nonsense")


def test_a_task_that_does_not_fit_the_kind_is_told_without_naming_those_of_another_command():
    with pytest.raises(ValueError, match="leave the task out, and one that fits is taken"):
        fitting("retrieval", "decoder", "m", texts=False)
    with pytest.raises(ValueError, match="task manpages takes no texts"):
        fitting("manpages", "encoder", "m", texts=True)


@pytest.mark.parametrize("name", ["perplexity", "passkey", "needle", "ruler-needles", "story-retrieval"])
def test_no_text_is_longer_than_a_decoder_takes(name: str, tiny_decoder: Path):
    """Beyond its context a model fails, or answers with nothing of use."""
    pretrained = load(str(tiny_decoder))
    for asked, tokens in ((None, 256), (4096, 256), (256, 256), (255, 255)):
        assert make(name, pretrained, tokens=asked).tokens == tokens  # type: ignore[attr-defined]
