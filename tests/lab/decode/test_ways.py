"""Ways to decode: found by name, shortened where they shorten, and answered by as they say."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")


from dynattn.kv_caches import FullCache, QuestCache
from dynattn.lab.decode.prompt import cache_of
from dynattn.lab.decode.ways import cut_once, find


def test_flat_ratios_leave_the_first_layers_whole(model, prompt):
    held = [layer.held for layer in cache_of(model, prompt, find("cache-spatten-flat-0.5")).layers]
    assert held == [80, 80, 40, 40, 40, 40, 40, 40]
    falling = [layer.held for layer in cache_of(model, prompt, find("cache-spatten-0.5")).layers]
    assert falling[:2] == [80, 80]
    assert falling[-1] == 40
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) == 7


def test_ways_by_name(model):
    assert find("dense").implementation == find("sdpa-in-place").implementation == "sdpa"
    assert find("dense-in-place").implementation == find("cache-window-8-s1").implementation == "dynattn:dense"
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


@pytest.mark.parametrize("name", ["cache-snapkv-512", "cache-adasnapkv-256-r64", "cache-speckv-256-l16",
                                  "cache-speckv-256-l16-draft-nm-1-2-of-20", "cache-specpc-512-draft-nm-2-4",
                                  "cache-speckvpc-512-256-l16"])  # fmt: skip
def test_names_of_ways_that_choose_once(name):
    way = find(name)
    assert way.name == name
    assert way.implementation == way.together == "dynattn:dense"
    assert (way.read is None) == ("snapkv" in name)


def test_a_name_says_what_is_not_as_by_default(model):
    assert find("cache-snapkv-512-r128-s4").name == "cache-snapkv-512"
    assert cut_once("snapkv", 1024) == "cache-snapkv-1024"
    assert cut_once("adasnapkv", 256) == "cache-adasnapkv-256-r64"
    assert find(cut_once("snapkv", 6)).cache(model.config).options.capacity == 6
    with pytest.raises(ValueError, match=r"kv_caches\.make: name must be"):
        find("cache-snapkv-half")
    with pytest.raises(ValueError, match="nm-1"):
        find("cache-speckv-256-l16-draft-nm-1")
