"""Caches by the names that tuned files hold."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")

from dynattn.kv_caches import FullCache, SpAttenCache, WindowCache, make  # noqa: E402


@pytest.mark.parametrize(
    ("name", "kind"), [("full", FullCache), ("window-64-s4", WindowCache), ("spatten-0.25", SpAttenCache)]
)
def test_each_name_makes_its_cache(name, kind):
    assert isinstance(make(name, transformers.LlamaConfig(num_hidden_layers=2)), kind)


@pytest.mark.parametrize("name", ["", "window", "window-64", "spatten-2", "cache-window-64-s4", "half"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="name must be full, window-TOKENS-sSINKS or spatten-SHARE"):
        make(name, transformers.LlamaConfig(num_hidden_layers=2))
