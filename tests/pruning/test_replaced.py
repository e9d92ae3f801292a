"""Nothing runs past a pruning context, and nothing of it is left: compiled code, threads, copies, early ends."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import nn

from dynattn.pruning import LTP, DynamicViT, FirstTokens, Predictors, RandomTokens, SpAtten
from dynattn.pruning.layout import find
from dynattn.pruning.replaced import replace
from tests.covering import part as some
from tests.pruning.models import inputs, make

METHODS = [
    SpAtten(0.3), SpAtten(0.5, heads=0.5), SpAtten(0.5, values=0.5, bits=(8, 4)), LTP(0.08), RandomTokens(0.4),
    FirstTokens(0.4),
]  # fmt: skip


def _last(output):
    return output[0]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("values", [(1, 2, 3), (1, 1, 1), (0, 1, 0), (1, 2, 1)])
@pytest.mark.parametrize("had", [True, False])
def test_replacements_end_in_any_order(order, values, had):
    """What is there is the last of those that are left, and at last what was there at first."""
    module = nn.Identity()
    if had:
        vars(module)["size"] = 0
    undos = [ExitStack() for _ in values]
    for value, undo in zip(values, undos, strict=True):
        replace(module, "size", value, undo)
    left = dict(enumerate(values))
    for index in order:
        assert module.size == left[max(left)]
        del left[index]
        undos[index].close()
    assert vars(module).get("size") == (0 if had else None)


def test_replacements_leave_what_others_put_there():
    class Other(nn.Identity):
        pass

    module, undos = nn.Identity(), [ExitStack(), ExitStack()]
    replace(module, "__class__", Other, undos[0])
    replace(module, "size", 1, undos[0])
    vars(module)["size"] = 2
    replace(module, "size", 3, undos[1])
    undos[0].close()
    assert (type(module), module.size) == (nn.Identity, 3)
    undos[1].close()
    assert module.size == 2


def _whole(model):
    return torch.compile(model, backend="eager")


def _function(model):
    return torch.compile(lambda **given: model(**given), backend="eager")


def _method(model):
    return torch.compile(model.forward, backend="eager")


def _dynamic(model):
    return torch.compile(model, backend="eager", dynamic=True)


def _instance(module_of):
    """``module.forward = torch.compile(module.forward)``, as tutorials do it."""

    def compiled(model):
        module = module_of(model)
        module.forward = torch.compile(module.forward, backend="eager")
        return model

    return compiled


COMPILED = {
    "model": _whole,
    "function": _function,
    "bound method": _method,
    "dynamic": _dynamic,
    "forward": _instance(lambda model: model),
    "encoder's forward": _instance(lambda model: model.encoder),
    "layer's forward": _instance(lambda model: model.encoder.layer[1]),
    "attention's forward": _instance(lambda model: model.encoder.layer[1].attention.self),
}


@pytest.fixture(autouse=True)
def _fresh_graphs():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("way", "first"),
    [
        *((way, "outside") for way in ("dynamic", "attention's forward")),
        ("layer's forward", "inside"),
        *(
            pytest.param(way, "outside", marks=pytest.mark.sweep)
            for way in ("model", "function", "bound method", "forward")
        ),
        *(pytest.param(way, "outside", marks=pytest.mark.sweep) for way in ("encoder's forward", "layer's forward")),
        pytest.param("model", "inside", marks=pytest.mark.sweep),
    ],
)
@torch.no_grad()
def test_what_was_compiled_is_pruned_too(way, first):
    """Compiled before the context or called in it for the first time; dense again behind it, and pruned once more."""
    method, given = SpAtten(0.3, heads=0.75), inputs("bert")
    model = make("bert", layers=2)
    dense = _last(model(**given))
    with method.apply(model):
        expected = _last(model(**given))
    assert not torch.equal(expected, dense)
    call = COMPILED[way](model)
    if first == "outside":
        torch.testing.assert_close(_last(call(**given)), dense)
    for _ in range(2):
        with method.apply(model) as trace:
            torch.testing.assert_close(_last(call(**given)), expected)
            assert trace.last.tokens[-1, 0] < 17
        torch.testing.assert_close(_last(call(**given)), dense)


@pytest.mark.parametrize("method", some(METHODS, 2, lambda method: method.name))
@torch.no_grad()
def test_every_method_prunes_compiled_calls(method):
    model, given = make("bert", layers=2), inputs("bert")
    compiled = torch.compile(model, backend="eager")
    dense = _last(compiled(**given))
    with method.apply(model):
        expected = _last(model(**given))
        assert torch.equal(_last(compiled(**given)), expected)
    assert not torch.equal(expected, dense)
    assert torch.equal(_last(compiled(**given)), dense)


@torch.no_grad()
def test_dynamicvit_prunes_compiled_calls_in_inference_and_in_training():
    model, given = make("vit"), inputs("vit")
    compiled = torch.compile(model, backend="eager")
    dense = _last(compiled(**given))
    method = DynamicViT(Predictors(32, layers=(1, 2), keep_ratio=0.5))
    by_rank = lambda scores, before: (scores[..., 0] > scores[..., 0].mean(1, keepdim=True)) * before  # noqa: E731
    for context in (lambda: method.apply(model), lambda: method.training(model, by_rank)):
        with context():
            expected = _last(model(**given))
            assert torch.equal(_last(compiled(**given)), expected)
        assert not torch.equal(expected, dense)
        assert torch.equal(_last(compiled(**given)), dense)


@torch.no_grad()
def test_one_whole_graph_cannot_be_had():
    model, given = make("bert"), inputs("bert")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    dense = _last(compiled(**given))
    with SpAtten(0.3).apply(model), pytest.raises(Exception, match=r"dynattn\.pruning decides after every layer"):
        compiled(**given)
    assert torch.equal(_last(compiled(**given)), dense)


def test_parts_that_are_compiled_are_refused():
    for part in (lambda model: model, lambda model: model.encoder, lambda model: model.encoder.layer[1].attention):
        model = make("bert")
        part(model).compile(backend="eager")
        with pytest.raises(ValueError, match="must not be compiled"), SpAtten(0.3).apply(model):
            pass
    model = make("bert")
    model.encoder = torch.compile(model.encoder, backend="eager")
    with pytest.raises(ValueError, match="must not be compiled"), SpAtten(0.3).apply(model):
        pass


def _state(model):
    """What a context may not leave behind: every attribute of every module, and the config."""
    attributes = {
        (name, key): id(value) for name, module in model.named_modules() for key, value in vars(module).items()
    }
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return attributes, hooks, dict(vars(model.config))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_threads_share_a_model(method):
    """Each gets what it would get alone, and the model is as it was."""
    model = make("bert")
    before = _state(model)
    batches = [inputs("bert", lengths=(17 - i, 9, 3 + i)) for i in range(6)]
    with torch.no_grad(), method.apply(model):
        alone = [_last(model(**given)) for given in batches]
    ready = threading.Barrier(3)

    def call(given):
        ready.wait()
        with torch.no_grad():
            return _last(model(**given))

    with method.apply(model), ThreadPoolExecutor(3) as pool:
        together = list(pool.map(call, batches * 2))
    for expected, found in zip(alone * 2, together, strict=True):
        assert torch.equal(expected, found)
    assert _state(model) == before


def test_threads_train_predictors_on_one_model():
    model = make("vit")
    method = DynamicViT(Predictors(32, layers=(1, 2), keep_ratio=0.5))
    by_rank = lambda scores, before: (scores[..., 0] > scores[..., 0].mean(1, keepdim=True)) * before  # noqa: E731
    pictures = torch.randn(8, 2, 3, 28, 28)
    with torch.no_grad(), method.training(model, by_rank):
        alone = [_last(model(given)) for given in pictures]
    with method.training(model, by_rank), ThreadPoolExecutor(3) as pool:
        together = list(pool.map(torch.no_grad()(lambda given: _last(model(given))), pictures))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_threads_that_each_apply_a_method_get_a_turn_or_an_error():
    model, given = make("bert"), inputs("bert")
    before = _state(model)
    with torch.no_grad(), SpAtten(0.3).apply(model):
        expected = _last(model(**given))
    ready = threading.Barrier(4)

    def call(_):
        ready.wait()
        with torch.no_grad(), SpAtten(0.3).apply(model):
            return _last(model(**given))

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, number) for number in range(16)]
    for done in calls:
        if done.exception() is None:
            assert torch.equal(done.result(), expected)
        else:
            with pytest.raises(ValueError, match="is being pruned already, here or in another thread"):
                done.result()
    assert any(done.exception() is None for done in calls)
    assert _state(model) == before


@contextmanager
def _halted_in(module):
    """A thread that runs a call stands still before this module; yields what sets it going, and what waits for it."""
    there, go = threading.Event(), threading.Event()

    def wait(*_):
        if threading.current_thread() is not threading.main_thread():
            there.set()
            assert go.wait(60)

    hook = module.register_forward_pre_hook(wait)
    try:
        yield there, go
    finally:
        go.set()
        hook.remove()


@pytest.mark.parametrize("where", ["encoder.layer.0", "encoder.layer.2", "encoder.layer.3.attention.self.query"])
def test_a_context_that_ends_under_a_forward_is_an_error_there(where):
    model, given = make("bert"), inputs("bert")
    before = _state(model)
    with ThreadPoolExecutor(1) as pool, _halted_in(model.get_submodule(where)) as (there, go):
        with SpAtten(0.3, heads=0.5).apply(model):
            call = pool.submit(torch.no_grad()(lambda: model(**given)))
            assert there.wait(60)
        go.set()
        with pytest.raises(RuntimeError, match="the context must outlast the forwards"):
            call.result()
    assert _state(model) == before


def test_a_forward_that_began_before_the_context_stays_dense():
    model, given = make("bert"), inputs("bert")
    with torch.no_grad():
        dense = _last(model(**given))
    with ThreadPoolExecutor(1) as pool, _halted_in(model.encoder.layer[2]) as (there, go):
        call = pool.submit(torch.no_grad()(lambda: _last(model(**given))))
        assert there.wait(60)
        with SpAtten(0.3, heads=0.5).apply(model):
            go.set()
            assert torch.equal(call.result(), dense)


@torch.no_grad()
def test_a_forward_inside_of_a_forward():
    """A hook calls the model again, with another batch, between two layers."""
    model, given, other = make("bert"), inputs("bert"), inputs("bert", lengths=(11, 7))
    with SpAtten(0.3).apply(model):
        expected, expected_inner = _last(model(**given)), _last(model(**other))
        inner = []

        def again(*_):
            if not inner:
                inner.append(None)
                inner.append(_last(model(**other)))

        hook = model.encoder.layer[1].register_forward_hook(again)
        assert torch.equal(_last(model(**given)), expected)
        assert torch.equal(inner[1], expected_inner)
        hook.remove()


@torch.no_grad()
def test_layers_one_by_one():
    """Whoever runs the layers by hand gets what the encoder gives, and is told where the order is wrong."""
    model, states = make("bert"), torch.randn(2, 9, 32)
    with SpAtten(0.3).apply(model) as trace:
        expected = model.encoder(states)[0]
        hidden = states
        for layer in model.encoder.layer:
            hidden = layer(hidden)
        assert torch.equal(hidden, expected)
        first, _, third, _ = model.encoder.layer
        first(states)
        with pytest.raises(RuntimeError, match="layer 2 was called where 1 comes next; begin with layer 0"):
            third(states)
        assert trace.last.tokens.shape == (4, 2)


@torch.no_grad()
def test_attention_called_by_itself_is_the_models_own():
    model, states = make("bert"), torch.randn(2, 9, 32)
    attention = model.encoder.layer[1].attention
    expected = attention(states)[0]
    with SpAtten(0.3, heads=0.5).apply(model):
        assert torch.equal(attention(states)[0], expected)
        model.encoder(states)
        assert torch.equal(attention(states)[0], expected)


@pytest.mark.parametrize("method", [SpAtten(0.3), SpAtten(0.5, heads=0.5)], ids=lambda method: method.name)
@torch.no_grad()
def test_copies_are_refused_inside(method):
    model, given = make("bert"), inputs("bert")
    dense = _last(model(**given))
    with method.apply(model):
        expected = _last(model(**given))
        for part in (model, model.encoder, model.encoder.layer[0], model.encoder.layer[1].attention):
            for make_copy in (copy.deepcopy, pickle.dumps):
                with pytest.raises(RuntimeError, match="must not be copied or pickled while it is pruned"):
                    make_copy(part)
        assert copy.deepcopy(model.embeddings) is not model.embeddings
        assert copy.deepcopy(model.config).to_dict() == model.config.to_dict()
        weights = copy.deepcopy(model.state_dict())
        assert torch.equal(_last(model(**given)), expected)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        duplicate.load_state_dict(weights)
        assert torch.equal(_last(duplicate(**given)), dense)


def test_a_trace_can_be_copied(tmp_path):
    model = make("bert")
    with torch.no_grad(), SpAtten(0.3).apply(model) as trace:
        model(**inputs("bert"))
        for loaded in (copy.deepcopy(trace), pickle.loads(pickle.dumps(trace))):
            assert torch.equal(loaded.last.depth, trace.last.depth)
        model.save_pretrained(tmp_path)
    assert "dynattn" not in (tmp_path / "config.json").read_text()


@torch.no_grad()
def test_models_that_share_a_config_do_not_touch_each_other():
    model, given = make("bert"), inputs("bert")
    other = type(model)(model.config).eval()
    dense = _last(other(**given))
    outputs = []
    model.encoder.layer[1].attention.self.register_forward_hook(lambda *_: outputs.append(_last(other(**given))))
    with SpAtten(0.3).apply(model):
        model(**given)
        assert torch.equal(_last(other(**given)), dense)
    assert torch.equal(outputs[0], dense)


@torch.no_grad()
def test_the_attention_implementation_may_be_set_inside():
    model, given = make("bert"), inputs("bert")
    model.set_attn_implementation("eager")
    with SpAtten(0.3).apply(model):
        assert model.config._attn_implementation == "eager"
        by_eager = _last(model(**given))
        model.set_attn_implementation("sdpa")
        by_sdpa, ran = _last(model(**given)), []
        model.encoder.layer[3].attention.register_forward_hook(lambda *_: ran.append(model.config._attn_implementation))
        model(**given)
    assert ran == ["sdpa"]
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(by_eager, by_sdpa, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_forwards_that_others_put_there_are_kept():
    """Tools replace ``forward`` of a module, before the context or inside of it; theirs stay, and ours is gone."""
    model, given, calls = make("bert"), inputs("bert"), []
    dense = _last(model(**given))

    def watch(module):
        forward = module.forward

        def watched(*args, **kwargs):
            calls.append(module)
            return forward(*args, **kwargs)

        module.forward = watched
        return watched

    modules = [model.encoder, model.encoder.layer[1]]
    earlier = [watch(module) for module in modules]
    with SpAtten(0.3).apply(model) as trace:
        pruned = _last(model(**given))
        assert calls == modules
        later = watch(model.encoder.layer[2])
        assert torch.equal(_last(model(**given)), pruned)
        assert trace.last.tokens[-1, 0] < 17
    assert [vars(module)["forward"] for module in modules] == earlier
    assert vars(model.encoder.layer[2])["forward"] is later
    assert torch.equal(_last(model(**given)), dense)
    with SpAtten(0.3).apply(model):
        assert torch.equal(_last(model(**given)), pruned)
    assert torch.equal(_last(model(**given)), dense)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, StopIteration, GeneratorExit])
@torch.no_grad()
def test_any_end_leaves_the_model_as_it_was(error):
    model, given = make("bert"), inputs("bert")
    before, dense = _state(model), _last(model(**given))

    def fail(*_):
        raise error

    for name in ("encoder.layer.1", "encoder.layer.2.attention.self.value", "encoder.layer.3.output.dense", "pooler"):
        for register in (nn.Module.register_forward_pre_hook, nn.Module.register_forward_hook):
            with ExitStack() as stack:
                stack.enter_context(SpAtten(0.3, heads=0.5).apply(model))
                expected = _last(model(**given))
                hook = register(model.get_submodule(name), fail)
                with pytest.raises(error):
                    model(**given)
                hook.remove()
                assert torch.equal(_last(model(**given)), expected)
            hook = register(model.get_submodule(name), fail)
            with pytest.raises(error), SpAtten(0.3, heads=0.5).apply(model):
                model(**given)
            hook.remove()
            assert _state(model) == before
    assert torch.equal(_last(model(**given)), dense)


def _inside(model, given):
    with SpAtten(0.3).apply(model):
        while True:
            yield _last(model(**given))


@torch.no_grad()
def test_a_generator_that_is_closed_and_contexts_that_do_not_nest():
    model, given = make("bert"), inputs("bert")
    before, dense = _state(model), _last(model(**given))
    outputs = _inside(model, given)
    pruned = next(outputs)
    for method in (SpAtten(0.3), RandomTokens(0.5)):
        for part in (model, model.encoder):
            with pytest.raises(ValueError, match="being pruned already"), method.apply(part):
                pass
            assert torch.equal(next(outputs), pruned)
    outputs.close()
    assert _state(model) == before
    assert torch.equal(_last(model(**given)), dense)


@torch.no_grad()
def test_a_context_that_cannot_begin_leaves_nothing_behind():
    """The third layer's projection cannot be cut, when two layers are already replaced."""
    model, given = make("bert"), inputs("bert")
    model.encoder.layer[2].attention.self.key = nn.Sequential(model.encoder.layer[2].attention.self.key)
    before, dense = _state(model), _last(model(**given))
    with pytest.raises(ValueError, match="must be a plain"), SpAtten(0.3, heads=0.5).apply(model):
        pass
    assert _state(model) == before
    assert torch.equal(_last(model(**given)), dense)


def test_layers_that_are_named_twice_are_one_stack():
    model = make("bert")
    model.blocks = model.encoder.layer
    assert find(model).runner is model.encoder
    assert find(model).layers[0].layer is model.encoder.layer[0]
