"""Contexts of one model: inside of one another, ending in any order, from other threads, and around other paths."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dynattn import NM, attention
from dynattn.integrations import torch as dynattn_torch
from dynattn.integrations.transformers import observing
from dynattn.methods import parse

WIDTH, LENGTH = 8, 9
METHODS = ("nm-1-4", "nm-2-4", "dense")


class Calls(nn.Module):
    """A module that calls PyTorch's function."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        x = F.scaled_dot_product_attention(x, x, x)
        return x if self.inner is None else self.inner(x)


class TwoPaths(nn.Module):
    """A module that calls it where it is told so; elsewhere it attends by hand, or not at all."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        if self.path == "fused":
            return F.scaled_dot_product_attention(x, x, x)
        if self.path == "none":
            return x
        scores = x @ x.transpose(-2, -1) * x.shape[-1] ** -0.5
        if self.path == "exp":
            return scores.exp() / scores.exp().sum(-1, keepdim=True) @ x
        return (scores.softmax(-1) if self.path == "method" else F.softmax(scores, dim=-1)) @ x


class Both(nn.Module):
    """A module that calls the function, and PyTorch's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.own = Calls(), nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.calls(x) + self.own(x, x, x, need_weights=False)[0]


def both() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    return Both().double().eval(), torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)


def state(model: nn.Module) -> str:
    return str([(name, type(module), dict(vars(module))) for name, module in model.named_modules()])


def kept(model: Any, x: Tensor) -> list[Any]:
    """What the model's module that calls the function keeps, and what PyTorch's own does."""
    calls: list[Any] = []
    with observing(calls.append):
        model(x)
    own = vars(model.own).get("method")
    return [calls[0].method if calls else None, own]


@pytest.mark.parametrize("depth", [2, 3])
def test_the_inner_context_counts_whatever_the_module_is(depth: int) -> None:
    model, x = both()
    before, alone = state(model), []
    for method in METHODS:
        with dynattn_torch.apply(model, method):
            alone.append(model(x))
    assert not torch.allclose(alone[0], alone[1])
    opened = []
    for method, expected in list(zip(METHODS, alone, strict=True))[:depth]:
        opened.append(dynattn_torch.apply(model, method))
        opened[-1].__enter__()
        assert torch.equal(model(x), expected)
        assert kept(model, x) == [parse(method)] * 2
    while opened:
        opened.pop().__exit__(None, None, None)
        if opened:
            assert torch.equal(model(x), alone[len(opened) - 1])
    assert state(model) == before


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)])
@pytest.mark.parametrize("methods", [METHODS, ("nm-1-4",) * 3])
def test_contexts_end_in_any_order(order: tuple[int, ...], methods: tuple[str, ...]) -> None:
    """The last one that is open counts, and behind them the model is as before."""
    model, x = both()
    before = state(model)
    made = [parse(method) for method in methods]
    if len(set(methods)) == 1:  # the same object each time
        made = made[:1] * 3
    contexts = [dynattn_torch.apply(model, method) for method in made]
    for context in contexts:
        context.__enter__()
    left = dict(enumerate(made))
    for index in order:
        assert kept(model, x) == [left[max(left)]] * 2
        contexts[index].__exit__(None, None, None)
        del left[index]
    assert kept(model, x) == [None, None]
    assert state(model) == before


def test_contexts_of_parts_end_in_any_order() -> None:
    model, x = both()
    before = state(model)
    whole, part = dynattn_torch.apply(model, "nm-1-4"), dynattn_torch.apply(model.calls, "nm-2-4")
    whole.__enter__()
    part.__enter__()
    assert kept(model, x) == [NM(2, 4), NM(1, 4)]
    whole.__exit__(None, None, None)
    assert kept(model, x) == [NM(2, 4), None]
    part.__exit__(None, None, None)
    assert state(model) == before


def test_generators_that_overlap() -> None:
    model, x = both()
    before = state(model)

    def inside(method: str) -> Generator[Tensor, None, None]:
        with dynattn_torch.apply(model, method):
            while True:
                yield model(x)

    first, second = inside("nm-1-4"), inside("dense")
    quarter, dense = next(first), next(second)
    assert not torch.allclose(quarter, dense)
    first.close()
    assert torch.equal(next(second), dense)
    del second
    assert state(model) == before


def test_a_forward_that_someone_puts_there_meanwhile_stays_and_the_method_goes() -> None:
    model, x = both()
    expected, seen = model(x), []

    def watch() -> None:
        forward = model.calls.forward
        model.calls.forward = lambda x: (seen.append(x), forward(x))[1]

    with dynattn_torch.apply(model, "nm-1-4"):
        watch()
        with dynattn_torch.apply(model, "nm-2-4"):
            assert kept(model, x) == [NM(2, 4)] * 2
        assert kept(model, x) == [NM(1, 4)] * 2
    assert len(seen) == 2
    assert torch.equal(model(x), expected)
    assert len(seen) == 3


def test_another_thread_s_context_is_refused_and_its_calls_are_not() -> None:
    model, x = both()
    before = state(model)
    with ThreadPoolExecutor(1) as pool, dynattn_torch.apply(model, "nm-1-4"):
        inside, expected = state(model), model(x)
        for part in (model, model.calls, model.own):
            with pytest.raises(ValueError, match=r"in a context of another thread: .* leave that context first"):
                pool.submit(dynattn_torch.apply(part, "dense").__enter__).result()
        assert state(model) == inside
        assert torch.equal(pool.submit(model, x).result(), expected)
        with dynattn_torch.apply(model, "dense"):
            pass
    with ThreadPoolExecutor(1) as pool:
        context = dynattn_torch.apply(model, "nm-1-4")
        pool.submit(context.__enter__).result()
        context.__exit__(None, None, None)
    assert state(model) == before


@pytest.mark.parametrize("path", ["method", "function"])
def test_attention_by_hand_in_a_module_that_takes_part_is_an_error(path: str) -> None:
    model: Any = nn.ModuleDict({"part": TwoPaths(path)})
    x = torch.randn(1, 2, LENGTH, WIDTH)
    with dynattn_torch.apply(model, "nm-1-4"):
        with pytest.raises(RuntimeError, match=r"part \(TwoPaths\) called a softmax in its place, .* fused path"):
            model["part"](x)
        model["part"].path = "fused"
        model["part"](x)


@pytest.mark.parametrize("path", ["exp", "none"])
def test_a_module_that_takes_part_and_makes_no_call_is_named_once(path: str) -> None:
    model = nn.Sequential(TwoPaths(path), TwoPaths(path))
    x = torch.randn(1, 2, LENGTH, WIDTH)
    for _ in range(2):  # once a context
        text = r"0 \(TwoPaths\) .* no call"
        with dynattn_torch.apply(model, "nm-1-4"), pytest.warns(UserWarning, match=text) as told:
            model(model(x))
        assert len(told) == 1


@pytest.mark.filterwarnings("error")
def test_calls_inside_of_a_module_that_holds_others() -> None:
    """What attends inside is the inner module's; its dense attention is no call of the one around it."""
    torch.manual_seed(0)
    model: Any = Calls(Calls()).double()
    x = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
    calls: list[Any] = []
    with dynattn_torch.apply(model, "nm-1-4"), dynattn_torch.apply(model.inner, "dense"), observing(calls.append):
        out = model(x)
    assert [(call.module, call.method) for call in calls] == [(model, NM(1, 4)), (model.inner, parse("dense"))]
    y = model.project(x)
    y = y[:, None]
    y = model.inner.project(attention(y, y, y, NM(1, 4))[:, 0])
    torch.testing.assert_close(out, F.scaled_dot_product_attention(y, y, y))


def test_copies_of_every_kind_of_module_are_refused_meanwhile() -> None:
    model, _ = both()
    with dynattn_torch.apply(model, "nm-1-4"):
        for part in (model, model.calls, model.own):
            for copied in (copy.deepcopy, pickle.dumps):
                with pytest.raises(RuntimeError, match=r"must not be copied or pickled .* leave the context first"):
                    copied(part)
        assert "own.in_proj_weight" in model.state_dict()
    for part in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(part.own) is nn.MultiheadAttention


def replica(module: nn.Module, factor: float) -> nn.Module:
    """What ``torch.nn.parallel.replicate`` makes, which needs several GPUs, with parameters of its own."""
    made = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        setattr(made, name, replica(child, factor))
    for name, parameter in module._parameters.items():
        setattr(made, name, None if parameter is None else parameter.detach() * factor)
    return made


def test_replicas_attend_by_their_own_parameters() -> None:
    model, x = both()
    doubled, before = copy.deepcopy(model), state(model)
    for parameter in doubled.parameters():
        parameter.data *= 2
    with dynattn_torch.apply(model, "nm-1-4"), dynattn_torch.apply(doubled, "nm-1-4"):
        assert kept(replica(model, 1), x) == [NM(1, 4)] * 2
        assert torch.equal(replica(model, 1)(x), model(x))
        assert torch.equal(replica(model, 2)(x), doubled(x))
    assert state(model) == before


class Checkpointed(Calls):
    """It runs again in ``backward()``, where its own forward is over."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=True)


def test_gradients_under_checkpoints() -> None:
    torch.manual_seed(0)
    model, inside = Calls(), Checkpointed()
    x = torch.randn(1, LENGTH, WIDTH, requires_grad=True)
    with dynattn_torch.apply(model, "nm-1-4"):
        expected = torch.autograd.grad(model(x).sin().sum(), model.project.weight)[0]
        checkpoint(model, x, use_reentrant=True).sin().sum().backward()
    torch.testing.assert_close(model.project.weight.grad, expected)
    with dynattn_torch.apply(inside, "nm-1-4"):
        with pytest.raises(RuntimeError, match=r"with use_reentrant=True: Checkpointed is, .* the whole module"):
            inside(x)
        with torch.no_grad():
            inside(x)


def test_nested_tensors_are_refused() -> None:
    model = Calls()
    for layout in (torch.strided, torch.jagged):
        x = torch.nested.nested_tensor([torch.randn(3, WIDTH), torch.randn(5, WIDTH)], layout=layout)
        with dynattn_torch.apply(model, "dense"), pytest.raises(TypeError, match="must not be nested where dynattn"):
            model(x)


def test_what_was_compiled_inside_of_two_contexts() -> None:
    torch.compiler.reset()
    model, x = both()
    model = model.calls
    compiled, expected = torch.compile(model, backend="eager", fullgraph=True), model(x)
    with dynattn_torch.apply(model, "nm-1-4"):
        quarter = model(x)
        torch.testing.assert_close(compiled(x), quarter)
        with dynattn_torch.apply(model, "nm-2-4"):
            torch.testing.assert_close(compiled(x), model(x))
            assert not torch.allclose(model(x), quarter)
        torch.testing.assert_close(compiled(x), quarter)
    torch.testing.assert_close(compiled(x), expected)
