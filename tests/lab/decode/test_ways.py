"""Ways to decode: found by name, shortened where they shorten, and answered by as they say."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")


from dynattn.kv_caches import FullCache, QuestCache
from dynattn.lab.decode.prompt import cache_of
from dynattn.lab.decode.ways import find


def test_flat_ratios_leave_the_first_layers_whole(model, prompt):
    held = [layer.held for layer in cache_of(model, prompt, find("cache-spatten-flat-0.5")).layers]
    assert held == [80, 80, 40, 40, 40, 40, 40, 40]
    falling = [layer.held for layer in cache_of(model, prompt, find("cache-spatten-0.5")).layers]
    assert falling[:2] == [80, 80]
    assert falling[-1] == 40
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) == 7


def test_ways_by_name(model):
    assert find("dense").implementation == find("cache-window-8-s1").implementation == "sdpa"
    assert find("nm-2-4").implementation == "dynattn:nm-2-4"
    assert find("cache-spatten-0.25").implementation == "dynattn:dense"
    assert isinstance(find("nm-2-4").cache(model.config), FullCache)
    quest = find("cache-quest-64-p8")
    assert isinstance(quest.cache(model.config), QuestCache)
    assert (quest.implementation, quest.forgets) == ("dynattn:dense", False)
    assert find("cache-window-8-s1").forgets
    assert not find("dense").forgets
    with pytest.raises(ValueError, match="nonsense"):
        find("nonsense")
