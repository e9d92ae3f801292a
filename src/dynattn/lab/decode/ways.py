"""Ways to decode: an attention implementation and a cache, by a name that says both.

dense                   Transformers' default: SDPA over a cache that is copied at every step
sdpa-in-place           the same over a cache in buffers
dense-in-place          dense attention of this project over a cache in buffers
nm-2-4, window-256-s4   a method of this project over the whole cache, in buffers
cache-window-256-s4     dense over a cache of the first 4 and the latest 256 tokens
cache-spatten-0.25      dense over a cache pruned after SpAtten, 0.25 of the tokens in the last layer
cache-quest-1024        dense over the pages of a whole cache that Quest chooses, 1024 tokens of them
cache-snapkv-256        dense over a cache cut once, after the prompt, to 256 tokens a key head; options follow, as in
                        :func:`dynattn.kv_caches.make`
cache-adasnapkv-256     the same with room shared among the key heads of a layer
cache-speckv-256-l16    dense over a cache cut to 256 tokens by what the model's own next 16 tokens attend to
cache-specpc-256        dense after the 256 tokens of the prompt that the model attends to, numbered anew
cache-speckvpc-512-256-l16   both, one after the other

The last three take a draft: ``-draft-nm-1-2`` behind the name is the model with that attention, ``-of-20`` with 20 of
its layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from dynattn.integrations.transformers import register
from dynattn.methods import Quest, parse

BASELINE = "dense"
EVERY = 16
"""So many tokens come between two evictions."""
_RECENT = 128  # of the latest tokens that SnapKV always holds, where there is room
_CACHE, _QUEST = "cache-", "cache-quest-"
_WINDOW = re.compile(r"cache-window-(\d+)-s(\d+)")
_SPATTEN = re.compile(r"cache-spatten-(flat-)?(0\.\d+)")
_CUT_ONCE = re.compile(r"cache-((?:ada)?snapkv-.+)")
_DRAFT = r"(?:-draft-(?P<method>.+?)(?:-of-(?P<layers>\d+))?)?"
_SPECKV = re.compile(rf"cache-speckv-(?P<held>\d+)-l(?P<ahead>\d+){_DRAFT}")
_SPECPC = re.compile(rf"cache-specpc-(?P<kept>\d+){_DRAFT}")
_SPECKVPC = re.compile(rf"cache-speckvpc-(?P<kept>\d+)-(?P<held>\d+)-l(?P<ahead>\d+){_DRAFT}")


@dataclass(frozen=True)
class Way:
    """How to decode.

    Attributes:
        name: see the module.
        implementation: the implementation of attention, as Transformers knows it; prompts are always read densely.
        cache: makes an empty cache for a model's config.
        read: makes the cache of a prompt by reading it with the model, where what is held follows from more than dense
            attention over the prompt; None for all others.
    """

    name: str
    implementation: str
    cache: Callable[[Any], Any]
    read: Callable[[Any, Tensor], Any] | None = None

    @property
    def together(self) -> str:
        """The implementation that reads several tokens at once. SDPA cannot do so where tokens were evicted."""
        return "dynattn:dense" if self.implementation == "sdpa" else self.implementation

    @property
    def forgets(self) -> bool:
        """Whether the cache evicts tokens, of which nobody knows the weights that they would have had."""
        return self.name.startswith(_CACHE) and not self.name.startswith(_QUEST)


def find(name: str) -> Way:
    """A way by name.

    Raises:
        ValueError: the name is none.
    """
    from transformers import DynamicCache

    from dynattn.kv_caches import FullCache, QuestCache, SpAttenCache, WindowCache, make

    register()
    if name == BASELINE:
        return Way(name, "sdpa", lambda config: DynamicCache(config=config))
    if name == "sdpa-in-place":
        return Way(name, "sdpa", lambda config: FullCache())
    if name == "dense-in-place":
        return Way(name, "dynattn:dense", lambda config: FullCache())
    if match := _WINDOW.fullmatch(name):
        window, sinks = map(int, match.groups())
        return Way(name, "dynattn:dense", lambda config: WindowCache(window, sinks, every=EVERY))
    if match := _SPATTEN.fullmatch(name):
        flat, keep = match[1], float(match[2])
        return Way(
            name,
            "dynattn:dense",
            lambda config: SpAttenCache(config, _flat(config, keep) if flat else keep, every=EVERY),
        )
    if name.startswith(_QUEST) and (quest := Quest.from_name(name.removeprefix(_CACHE))):
        return Way(name, "dynattn:dense", lambda config: QuestCache(quest.budget, quest.page))
    if match := _CUT_ONCE.fullmatch(name):
        cache: Any = make(match[1], None)
        return Way(f"cache-{cache.name}", "dynattn:dense", lambda config: make(cache.name, config))
    for pattern, read in ((_SPECKV, _read_speckv), (_SPECPC, _read_specpc), (_SPECKVPC, _read_speckvpc)):
        if match := pattern.fullmatch(name):
            said = match.groupdict()
            said["draft"] = _draft(said.pop("method"), said.pop("layers"))
            return Way(name, "dynattn:dense", lambda config: FullCache(), partial(read, **said))
    (implementation, *_) = register(name)
    return Way(name, implementation, lambda config: FullCache())


def cut_once(kind: str, capacity: int) -> str:
    """The name of a way whose cache is cut once, and holds so many tokens a key head.

    Args:
        kind: ``snapkv`` or ``adasnapkv``.
        capacity: tokens; at least 6.

    Returns:
        The name, by which no more than a quarter of the tokens are the latest ones.
    """
    return find(f"cache-{kind}-{capacity}-r{min(_RECENT, capacity // 4)}").name


def _flat(config: Any, keep: float) -> list[float]:
    """The same ratio for every layer but the first 15%."""
    layers = config.get_text_config(decoder=True).num_hidden_layers
    whole = math.ceil(0.15 * layers)
    return [1.0] * whole + [keep] * (layers - whole)


def _draft(method: str | None, layers: str | None) -> Any:
    from dynattn.kv_caches.drafts import SelfDraft

    return None if method is None else SelfDraft(parse(method), None if layers is None else int(layers))


def _speckv(held: str, ahead: str, draft: Any) -> Any:
    from dynattn.kv_caches.drafts import SpecKV

    return SpecKV(int(ahead), int(held), window=min(32, max(1, int(held) // 4)), draft=draft)


def _specpc(model: Any, kept: str, draft: Any) -> Any:
    """The published settings, made smaller where a prompt or a model is small."""
    from dynattn.kv_caches.drafts import SpecPC

    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    return SpecPC(int(kept), window=min(64, max(1, int(kept) // 4)), skip=min(8, layers // 4), draft=draft)


def _read_speckv(model: Any, ids: Tensor, held: str, ahead: str, draft: Any) -> Any:
    model.set_attn_implementation("dynattn:dense")
    return _read_on(model, _speckv(held, ahead, draft).read(model, ids), ids)


def _read_specpc(model: Any, ids: Tensor, kept: str, draft: Any) -> Any:
    from dynattn.kv_caches import FullCache

    model.set_attn_implementation("dynattn:dense")
    return _read_on(model, FullCache(), _specpc(model, kept, draft).compress(model, ids).input_ids)


def _read_speckvpc(model: Any, ids: Tensor, kept: str, held: str, ahead: str, draft: Any) -> Any:
    from dynattn.kv_caches.drafts import SpecKVPC

    model.set_attn_implementation("dynattn:dense")
    found = SpecKVPC(_speckv(held, ahead, None), _specpc(model, kept, draft)).read(model, ids)
    return _read_on(model, found.past_key_values, found.input_ids)


def _read_on(model: Any, cache: Any, ids: Tensor) -> Any:
    """The cache, with what it has not read yet of a prompt."""
    from dynattn.kv_caches.drafts.greedy import forward

    forward(model, ids[:, cache.get_seq_length() :], None, cache)
    return cache
