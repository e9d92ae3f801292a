"""Tasks by their names, and the default tasks of every kind of model."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from dynattn.lab.tasks import TASKS, default, find


def test_every_task_is_found_by_its_name_and_every_kind_has_a_default():
    for name, task in TASKS.items():
        assert find(name) is task
    for kind in ("encoder", "decoder", "vision", "speech"):
        for name in default(kind, "a model"):
            assert kind in find(name).kinds
    assert default("vision", "dinov2") == ("saliency",)
    with pytest.raises(ValueError, match=r"retrieval.*'nonsense'"):
        find("nonsense")
