"""What a layer does beside holding tokens, against Transformers' own: cropping, copies, gradients, samples."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from dynattn.integrations.transformers import register
from dynattn.kv_caches import FullCache, QuestCache, SpAttenCache, WindowCache
from tests.covering import part

LAYERS = 2
CONFIG = LlamaConfig(
    vocab_size=97, hidden_size=32, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.4, eos_token_id=None, pad_token_id=0,
)  # fmt: skip

EVICTING = {
    "window": lambda: WindowCache(window=7, sinks=2, every=3),
    "spatten": lambda: SpAttenCache(CONFIG, keep=0.3, recent=3, every=3),
}
HOLDING = {
    "full": lambda: FullCache(room=4),
    "full without room": lambda: FullCache(room=1),
    "window of everything": lambda: WindowCache(window=1000, every=4),
    "spatten of everything": lambda: SpAttenCache(CONFIG, keep=1.0, every=4),
}
CACHES = {**EVICTING, **HOLDING}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    register()
    made = LlamaForCausalLM(CONFIG).eval()
    made.set_attn_implementation("dynattn:dense")
    return made


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 97, (2, 40), generator=torch.Generator().manual_seed(1))


def _forward(model, cache, ids):
    return model(ids, past_key_values=cache, use_cache=True).logits


def _by_pickle(cache):
    return pickle.loads(pickle.dumps(cache))


def _by_torch(cache):
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "enable_grad"])
@pytest.mark.parametrize("duplicate", [_by_pickle, _by_torch, copy.deepcopy])
@pytest.mark.parametrize("make", CACHES)
def test_a_copy_goes_on_as_the_cache_does(model, ids, make, duplicate, mode):
    """Filled and empty ones; the one's further tokens leave the other alone."""
    with getattr(torch, mode)():
        cache = CACHES[make]()
        assert duplicate(cache).get_seq_length() == 0
        _forward(model, cache, ids[:, :20])
        for start in range(20, 24):
            _forward(model, cache, ids[:, start : start + 1])
        found = duplicate(cache)
        positions = [layer.positions.tolist() for layer in cache.layers]
        for start in range(24, 34):
            piece = ids[:, start : start + 1]
            assert torch.equal(_forward(model, found, piece), _forward(model, cache, piece))
        assert [layer.positions.tolist() for layer in found.layers] == [x.positions.tolist() for x in cache.layers]
        again = duplicate(cache)
        other = ids[:, :1]
        before = [layer.keys.clone() for layer in cache.layers]
        _forward(model, again, other)
        assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
        assert positions != [layer.positions.tolist() for layer in cache.layers]
        again.reset()
        assert torch.equal(_forward(model, again, ids), _forward(model, CACHES[make](), ids))


def test_a_copy_holds_no_room_and_no_graph(model, ids):
    small, large = FullCache(room=1), FullCache(room=10_000)
    for cache in (small, large):
        _forward(model, cache, ids)
    assert len(pickle.dumps(large)) == pytest.approx(len(pickle.dumps(small)), abs=200)
    assert small.layers[0].keys.requires_grad
    assert not copy.deepcopy(small).layers[0].keys.requires_grad


def _child(cache, ids, answers):
    torch.manual_seed(0)
    register()
    model = LlamaForCausalLM(CONFIG).eval()
    model.set_attn_implementation("dynattn:dense")
    with torch.no_grad():
        answers.put(_forward(model, cache, ids).numpy())


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
@pytest.mark.parametrize("make", part(["spatten", "full"], 2))
def test_a_cache_goes_to_another_process(model, ids, make):
    context = torch.multiprocessing.get_context("spawn")
    cache, answers = CACHES[make](), context.Queue()
    with torch.no_grad():
        _forward(model, cache, ids[:, :20])
        child = context.Process(target=_child, args=(cache, ids[:, 20:21], answers))
        child.start()
        found = torch.from_numpy(answers.get(timeout=300))
        child.join(60)
        torch.testing.assert_close(found, _forward(model, cache, ids[:, 20:21]))


def _train(model, cache, ids, sizes):
    """The gradients of a loss over the logits of all steps, backwards after the last one."""
    model.zero_grad()
    start, loss = 0, torch.zeros(())
    for size in sizes:
        logits = _forward(model, cache, ids[:, start : start + size])
        loss = loss + logits.log_softmax(-1)[..., 3].sum()
        start += size
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("frozen", [None, "v_proj", "k_proj", "all but queries"])
@pytest.mark.parametrize("make", HOLDING)
def test_gradients_through_a_cache_are_those_through_transformers_own(model, ids, make, frozen):
    """Over several steps, also where keys or values alone, or neither, belong to the graph."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name if frozen == "all but queries" else not frozen or frozen not in name)
    sizes = [9, 1, 1, 3, 1, 1, 1]
    model.set_attn_implementation("sdpa")
    expected = _train(model, DynamicCache(config=CONFIG), ids, sizes)
    model.set_attn_implementation("dynattn:dense")
    found = _train(model, HOLDING[make](), ids, sizes)
    model.requires_grad_(True)
    assert len(expected) == len(found) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", EVICTING)
def test_gradients_go_through_evictions(make):
    """A token's gradient is the sum of the weights that the loss gave it, as long as it was shown."""
    cache, layers = EVICTING[make](), range(LAYERS)
    loss, leaves, expected = torch.zeros(()), [], torch.zeros(LAYERS, 2, 2, 40, 8)
    for new in [20, *[1] * 9]:
        for index in layers:
            leaves.append((index, cache.get_seq_length(index), torch.randn(2, 2, new, 8, requires_grad=True)))
            keys, values = cache.update(leaves[-1][2], 2 * leaves[-1][2], index)
            layer = cache.layers[index]
            weight = torch.randn(keys.shape)
            loss = loss + (keys * weight).sum() + (values.square() * weight).sum() / 8
            shown: Any = layer._shown
            places = shown[:, None, :, None].expand_as(weight)
            expected[index].scatter_add_(2, places, (weight + values.detach() * weight / 2))
            if isinstance(cache, SpAttenCache):
                layer.take(torch.rand(2, keys.shape[2]), first=index == 0)
    assert all(layer.held < layer.seen for layer in list(cache.layers)[1:])
    loss.backward()
    for index, start, leaf in leaves:
        torch.testing.assert_close(leaf.grad, expected[index, :, :, start : start + leaf.shape[2]])


def test_a_graph_keeps_what_it_saw_while_the_cache_goes_on():
    """A loss over what an update returned, gone back through after further updates, with gradients and without."""
    key = torch.randn(1, 2, 5, 8, requires_grad=True)
    query = torch.randn(1, 2, 5, 8, requires_grad=True)
    new = torch.randn(1, 2, 1, 8)
    for make in HOLDING.values():
        cache = make()
        keys, _ = cache.update(key, key, 0)
        loss = (keys * query).sum()
        if isinstance(cache, SpAttenCache):
            cache.layers[0]._waiting = False
        with torch.no_grad():
            later, _ = cache.update(new, new, 0)
        squares = (later * later).sum(-1) * query[:, :, :1, 0]
        for _ in range(2):
            if isinstance(cache, SpAttenCache):
                cache.layers[0]._waiting = False
            with torch.no_grad():
                cache.update(new, new, 0)
        (loss + squares.sum()).backward()
        torch.testing.assert_close(key.grad, query.detach())
        key.grad = query.grad = None


@pytest.mark.parametrize("size", [-1, -3, 0, -5, -6, -100])
def test_crop_does_what_transformers_cache_does(model, ids, size):
    for cache in (FullCache(room=3), WindowCache(window=1000)):
        other: Any = DynamicCache(config=CONFIG)
        cache.crop(size)
        with torch.no_grad():
            for each in (cache, other):
                _forward(model, each, ids[:, :5])
            keys, values = cache.layers[0].keys, cache.layers[0].values
            shown = keys.clone()
            for each in (cache, other):
                each.crop(size)
            assert cache.get_seq_length() == other.get_seq_length()
            torch.testing.assert_close(_forward(model, cache, ids[:, 9:12]), _forward(model, other, ids[:, 9:12]))
        assert torch.equal(keys, shown)
        for layer, theirs in zip(cache.layers, other.layers, strict=True):
            torch.testing.assert_close(layer.keys, theirs.keys)
            assert layer.positions.tolist() == [list(range(layer.held))] * 2
        assert values.shape[2] == 5
        for each in (cache, other):
            with pytest.raises(ValueError, match="crop"):
                each.crop(3)


@pytest.mark.parametrize("size", [-1, -2, -22])
@pytest.mark.parametrize("make", [lambda: FullCache(room=8), lambda: QuestCache(budget=4, page=4, room=8)])
def test_crop_may_keep_the_room(model, ids, make, size):
    """Then nothing is copied, and the next tokens are those of a cache that never had the others."""
    cache, fresh = make(), make()
    with torch.no_grad():
        for each, end in ((cache, 22), (fresh, 22 + size)):
            if end:
                _forward(model, each, ids[:, :20])
            for at in range(20, end):
                _forward(model, each, ids[:, at : at + 1])
        before = [layer.keys.data_ptr() for layer in cache.layers]
        for layer in cache.layers:
            layer.crop(size, keep_room=True)
        for at in (9, 10, 11):
            found, expected = (_forward(model, each, ids[:, at : at + 1]) for each in (cache, fresh))
            torch.testing.assert_close(found, expected)
    assert size == -22 or [layer.keys.data_ptr() for layer in cache.layers] == before
    for layer, new in zip(cache.layers, fresh.layers, strict=True):
        torch.testing.assert_close(layer.keys, new.keys)
        assert layer.positions.tolist() == new.positions.tolist()


def test_generation_with_an_assistant(model, ids):
    """Guesses that are not taken are cropped."""
    assistant = LlamaForCausalLM(CONFIG).eval()
    asked = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids[:1])}
    expected = model.generate(ids[:1], **asked)
    found = model.generate(ids[:1], past_key_values=FullCache(room=3), assistant_model=assistant, **asked)
    assert found.tolist() == expected.tolist()


class Operations(RuleBasedStateMachine):
    """Random operations on a cache and on Transformers' own, which must hold the same all the time."""

    make = staticmethod(lambda: FullCache(room=3))

    def __init__(self) -> None:
        super().__init__()
        self.ours: Any = self.make()
        self.theirs: Any = DynamicCache(config=CONFIG)
        self.generator = torch.Generator().manual_seed(0)
        self.batch, self.returned = 2, []
        self.losses: list[tuple[int, torch.Tensor, Any]] = []

    @rule(new=st.integers(1, 5), mode=st.sampled_from(["no_grad", "inference_mode", "enable_grad"]), grad=st.booleans())
    def update(self, new, mode, grad):
        for layer in range(LAYERS):
            key, value = torch.randn(2, self.batch, 2, new, 8, generator=self.generator)
            pairs: list[Any] = []
            with getattr(torch, mode)():
                for cache in (self.ours, self.theirs):
                    if mode == "inference_mode":
                        parts = key.clone(), value.clone()
                    else:
                        parts = tuple(x.clone().requires_grad_(grad) for x in (key, value))
                    if isinstance(cache, SpAttenCache):
                        cache.layers[layer]._waiting = False
                    pairs.append((parts, cache.update(parts[0], parts[1], layer)))
            (our_parts, ours), (their_parts, theirs) = pairs
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a, b)
                self.returned.append((a, a.detach().clone()))
            if ours[0].requires_grad and their_parts[0].is_leaf:
                weight = torch.randn(ours[0].shape, generator=self.generator)
                for kept, parts, (keys, values) in ((0, our_parts, ours), (1, their_parts, theirs)):
                    loss = (keys.square() * weight).sum() + (values * keys.sin()).sum()
                    self.losses.append((kept, loss, parts))

    @rule()
    def backward(self):
        gradients: tuple[list, list] = ([], [])
        for which, loss, parts in self.losses:
            loss.backward(retain_graph=True)
            gradients[which].extend(x.grad.clone() for x in parts if x.requires_grad)
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)

    @rule(size=st.integers(0, 7))
    def crop(self, size):
        for cache in (self.ours, self.theirs):
            cache.crop(-size)

    @rule(data=st.data())
    def reorder(self, data):
        order = torch.tensor(
            data.draw(st.lists(st.integers(0, self.batch - 1), min_size=self.batch, max_size=self.batch))
        )
        for cache in (self.ours, self.theirs):
            cache.reorder_cache(order)

    @precondition(lambda self: self.batch < 5)
    @rule(repeats=st.integers(1, 3))
    def repeat(self, repeats):
        filled = self.theirs.get_seq_length() > 0
        for cache in (self.ours, self.theirs):
            cache.batch_repeat_interleave(repeats)
        self.batch *= repeats if filled else 1

    @rule(data=st.data())
    def select(self, data):
        indices = data.draw(st.lists(st.integers(0, self.batch - 1), min_size=1, max_size=3))
        filled = self.theirs.get_seq_length() > 0
        for cache in (self.ours, self.theirs):
            cache.batch_select_indices(torch.tensor(indices))
        self.batch = len(indices) if filled else self.batch

    @rule(duplicate=st.sampled_from([_by_pickle, _by_torch, copy.deepcopy]))
    def copies(self, duplicate):
        self.ours = duplicate(self.ours)
        if any(layer.keys is not None and layer.keys.requires_grad for layer in self.theirs.layers):
            for layer in self.theirs.layers:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()

    @rule()
    def reset(self):
        for cache in (self.ours, self.theirs):
            cache.reset()
        self.batch = 2

    @invariant()
    def the_same(self):
        assert self.ours.get_seq_length() == self.theirs.get_seq_length()
        assert self.ours.get_mask_sizes(3, 0) == self.theirs.get_mask_sizes(3, 0)
        if self.theirs.get_seq_length():
            for ours, theirs in zip(self.ours.layers, self.theirs.layers, strict=True):
                assert torch.equal(ours.keys, theirs.keys)
                assert torch.equal(ours.values, theirs.values)
                assert ours.positions.tolist() == [list(range(ours.seen))] * self.batch
        assert all(torch.equal(tensor, then) for tensor, then in self.returned)


class Window(Operations):
    make = staticmethod(lambda: WindowCache(window=1000, every=3))


TestFullCache = Operations.TestCase
TestWindowCache = Window.TestCase
TestFullCache.settings = TestWindowCache.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
