"""Caches by the names that tuned files hold."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")

from dynattn.kv_caches import FullCache, QuestCache, SpAttenCache, WindowCache, make  # noqa: E402


@pytest.mark.parametrize(
    ("name", "kind"),
    [("full", FullCache), ("window-64-s4", WindowCache), ("spatten-0.25", SpAttenCache), ("quest-64", QuestCache)],
)
def test_each_name_makes_its_cache(name, kind):
    assert isinstance(make(name, transformers.LlamaConfig(num_hidden_layers=2)), kind)


@pytest.mark.parametrize("name", ["", "window", "window-64", "spatten-2", "cache-window-64-s4", "quest", "half"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="name must be full, window-TOKENS-sSINKS, spatten-SHARE or quest-TOKENS"):
        make(name, transformers.LlamaConfig(num_hidden_layers=2))
