"""Caches by the names that tuned files hold."""

from __future__ import annotations

from typing import Any

import pytest

transformers = pytest.importorskip("transformers")

from dynattn.kv_caches import (  # noqa: E402
    AdaSnapKVCache,
    FullCache,
    QuestCache,
    SnapKVCache,
    SpAttenCache,
    WindowCache,
    make,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("full", FullCache), ("window-64-s4", WindowCache), ("spatten-0.25", SpAttenCache), ("quest-64", QuestCache),
     ("snapkv-256", SnapKVCache), ("adasnapkv-64-q32-r16", AdaSnapKVCache)],
)  # fmt: skip
def test_each_name_makes_its_cache(name, kind):
    assert isinstance(make(name, transformers.LlamaConfig(num_hidden_layers=2)), kind)


@pytest.mark.parametrize(
    ("cache", "name"),
    [
        (SnapKVCache(), "snapkv-1024"),
        (AdaSnapKVCache(512), "adasnapkv-512"),
        (SnapKVCache(64, window=16, pool=7, recent=8, sinks=0), "snapkv-64-q16-p7-r8-s0"),
        (AdaSnapKVCache(300, recent=64), "adasnapkv-300-r64"),
    ],
)
def test_a_cache_that_says_its_name_is_made_by_it(cache, name):
    assert cache.name == name
    made: Any = make(name, None)
    assert (type(made), made.name, made.options) == (type(cache), name, cache.options)


def test_options_of_a_name_may_stand_in_any_order():
    made = make("snapkv-64-s2-r8", None)
    assert isinstance(made, SnapKVCache)
    assert made.name == "snapkv-64-r8-s2"


@pytest.mark.parametrize(
    "name",
    ["", "window", "window-64", "spatten-2", "cache-window-64-s4", "quest", "half", "snapkv", "snapkv-", "snapkv-64-x3",
     "snapkv-300-r8-r9", "adasnapkv-r8", "snapkv-1024-"],
)  # fmt: skip
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="name must be full, window-TOKENS-sSINKS, spatten-SHARE, quest-TOKENS"):
        make(name, transformers.LlamaConfig(num_hidden_layers=2))


def test_a_name_whose_options_do_not_fit_says_why():
    with pytest.raises(
        ValueError, match=r"SnapKVCache: capacity must hold the latest and the first tokens: got 64 for"
    ):
        make("snapkv-64", None)


def test_a_file_that_names_no_cache_is_told_so():
    with pytest.raises(TypeError, match=r"name must be the name of a cache: got None; .* leave past_key_values out"):
        make(None, transformers.LlamaConfig(num_hidden_layers=2))  # type: ignore[arg-type]
