"""Calls made again give what they gave, and what is not the plain case is looked at anew."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import dynattn
from dynattn import NM, BlockMass, BlockSkip, BlockTopK, Mass, Threshold, TopK, Window
from dynattn.backends import again
from dynattn.kernels import cpu
from dynattn.kernels.cpu import isas, packing

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels are not built")


@pytest.fixture(autouse=True)
def no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "_plans", {})


def inputs(dtype: torch.dtype = torch.float32, q_len: int = 19) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, q_len, 16), (2, 2, 23, 16), (2, 2, 23, 16))
    query, key, value = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return query, key, value


def transposed(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize(
    "method",
    [
        NM(1, 2), NM(2, 4, window=3, sinks=1, stride=2), NM(1, 1), Window(5, 2), TopK(k=4), Threshold(0.05), Mass(0.7),
        BlockTopK(0.5, block=8), BlockMass(0.5, block=8), BlockMass(0.5, block=8, by="similar"), BlockSkip(1.0),
        BlockSkip(1.0, BlockTopK(0.5, block=16)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.clone, transposed, lambda x: torch.cat([x, x], -1)[..., :16]])
def test_the_answer_is_the_first_ones(method: NM, dtype: torch.dtype, layout) -> None:
    tensors: Any = cast(Any, [layout(x) for x in inputs(dtype)])
    choices: list[dict[str, Any]] = [{}, {"causal": True}, {"scale": 0.3}, {"scale": -0.3, "causal": True}]
    for options in choices:
        first = dynattn.attention(*tensors, method=method, **options)
        known = dict(again._plans)
        others: Any = cast(Any, [layout(x * 2) for x in inputs(dtype)])
        assert torch.equal(dynattn.attention(*tensors, method=method, **options), first)
        second = dynattn.attention(*others, method=method, **options)
        assert again._plans == known
        assert second.stride() == first.stride()
        again._plans.clear()
        assert torch.equal(second, dynattn.attention(*others, method=method, **options))
    assert again._plans


def assert_right(call: dict[str, Any]) -> None:
    """The error is at most twice that of plain PyTorch in its dtype, which that of another call's plan is far above."""
    definition: dict[str, Any] = call | {"backend": "reference"}
    wide: dict[str, Any] = {name: call[name].double() for name in ("query", "key", "value")}
    got, plain, exact = (dynattn.attention(**each) for each in (call, definition, definition | wide))
    errors = [(out.double() - exact).abs().max() for out in (got, plain)]
    assert errors[0] <= 2 * errors[1] + 2 * torch.finfo(got.dtype).eps


@pytest.mark.parametrize("engine", [None, "tiles-portable", "here"])
def test_every_option_has_a_plan_of_its_own(engine: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without a tile engine, with one, and on this one."""
    if engine != "here":
        monkeypatch.setattr(isas, "tile_isa", lambda: engine)
    query, key, value = inputs()
    calls = [
        {}, {"causal": True}, {"scale": 0.5}, {"method": NM(1, 2)}, {"method": NM(1, 2, stride=2)},
        {"backend": "cpu-portable"}, {"query": query.bfloat16(), "key": key.bfloat16(), "value": value.bfloat16()},
        {"query": query[:, :, 1:]}, {"query": transposed(query)}, {"key": key[:, :, 1:], "value": value[:, :, 1:]},
    ]  # fmt: skip
    for number, change in enumerate(calls, 1):
        call = {"query": query, "key": key, "value": value, "method": NM(2, 4)} | change
        for _ in range(2):
            assert_right(call)
        assert len(again._plans) == number


def test_what_is_not_the_plain_case_is_looked_at_anew() -> None:
    query, key, value = inputs()
    plain = dynattn.attention(query, key, value)
    assert len(again._plans) == 1
    mask = torch.zeros(1, 1, 1, 23, dtype=torch.bool)
    assert not dynattn.attention(query, key, value, attn_mask=mask).any()
    bias = torch.zeros(19, 23, requires_grad=True)
    for _ in range(2):
        assert torch.autograd.grad(dynattn.attention(query, key, value, attn_mask=bias).sum(), bias)[0].shape == (
            19,
            23,
        )
    assert len(again._plans) == 2
    again._plans.popitem()  # of the mask
    assert not torch.equal(dynattn.attention(query, key, value, dropout_p=0.5, seed=1), plain)
    assert len(dynattn.attention(query, key, value, return_aux=True)) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dynattn.attention(query, key, value).dtype == torch.bfloat16
    for number in range(3):
        tensors: Any = cast(Any, [x.clone().requires_grad_(number == i) for i, x in enumerate((query, key, value))])
        assert dynattn.attention(*tensors).requires_grad
        with torch.no_grad():
            assert torch.equal(dynattn.attention(*tensors), plain)
    assert torch.equal(dynattn.attention(nn.Parameter(query), key, value), plain)
    doubled = torch.func.vmap(lambda x: dynattn.attention(x, key, value))(torch.stack([query, query]))
    assert torch.equal(doubled[0], plain)
    assert len(again._plans) == 2  # one for all that ask for a gradient, whichever it is


@pytest.mark.parametrize("gradients", [False, True])
def test_masks(gradients: bool) -> None:
    """Of every shape and dtype that broadcasts; two of one shape and other numbers share a plan."""
    tensors = inputs()
    generator = torch.Generator().manual_seed(2)
    for shape in ((), (23,), (19, 1), (19, 23), (2, 1, 1, 23), (1, 4, 19, 23), (2, 4, 19, 23)):
        for dtype in (torch.bool, torch.float32, torch.bfloat16):
            for layout in (torch.clone, lambda x: x.mT.contiguous().mT if x.dim() > 1 else x):
                masks = [layout(torch.randint(0, 2, shape, generator=generator).to(dtype)) for _ in range(2)]
                answer = trained if gradients else lambda x, **options: [dynattn.attention(*x, **options)]
                answer(tensors, attn_mask=masks[0])
                assert len(again._plans) == 1
                known = answer(tensors, attn_mask=masks[1])
                again._plans.clear()
                for one, other in zip(known, answer(tensors, attn_mask=masks[1]), strict=True):
                    assert torch.equal(one, other)
                again._plans.clear()


def trained(tensors: Any, grad: Tensor | None = None, **options: Any) -> list[Tensor]:
    """The output and the gradients."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = dynattn.attention(leaves[0], leaves[1], leaves[2], **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out) if grad is None else grad)]


@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4, window=3, sinks=1, stride=2), NM(1, 1), Window(5, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.clone, transposed, lambda x: torch.cat([x, x], -1)[..., :16]])
def test_the_gradients_are_the_first_ones(method: NM, dtype: torch.dtype, layout, monkeypatch) -> None:
    tensors = [layout(x) for x in inputs(dtype)]
    grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for upstream in (grad, transposed(grad), grad.mT.contiguous().mT, grad[:, :, :1, :1].expand_as(grad)):
        first = trained(tensors, upstream, method=method, causal=True)
        assert len(again._plans) == 1
        with monkeypatch.context() as patch:
            patch.setattr(again, "BACKWARD", None)  # not called
            second = trained(tensors, upstream, method=method, causal=True)
        again._plans.clear()
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()


@pytest.mark.parametrize(("heads", "length"), [(1, 19), (4, 1)])
def test_dimensions_of_one_have_no_order_that_counts(heads: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such tensors are contiguous, and their strides are not those of new ones."""
    query = torch.randn(2, length, heads, 16).transpose(1, 2).requires_grad_()
    key, value = (torch.randn(2, 23, heads, 16).transpose(1, 2).requires_grad_() for _ in range(2))
    outs = [dynattn.attention(query, key, value, NM(1, 2)) for _ in range(2)]
    assert outs[0].stride() == outs[1].stride()
    first = torch.autograd.grad(outs[0].sum(), (query, key, value))
    monkeypatch.setattr(again, "BACKWARD", None)  # which is for what is not plain
    second = torch.autograd.grad(outs[1].sum(), (query, key, value))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_backward_that_is_not_plain_goes_through_the_operator() -> None:
    tensors = inputs()
    trained(tensors)
    want = trained(tensors)
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    leaves = [x.clone().requires_grad_() for x in tensors]
    query, key, value = leaves
    out = dynattn.attention(query, key, value)
    assert "_Attention" in type(out.grad_fn).__name__
    with Watch():
        found = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
    assert "dynattn.nm_attention_backward.default" in seen
    assert all(torch.equal(x, y) for x, y in zip(found, want[1:], strict=True))

    mapped = torch.autograd.grad(
        out, leaves, torch.stack([torch.ones_like(out), 2 * torch.ones_like(out)]), retain_graph=True,
        is_grads_batched=True,
    )  # fmt: skip
    for x, y in zip(mapped, want[1:], strict=True):
        torch.testing.assert_close(x, torch.stack([y, 2 * y]))

    first = torch.autograd.grad(out, leaves, torch.ones_like(out), create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, want[1:], strict=True))
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(first[0].sum(), leaves)


def test_saved_tensors_may_come_back_otherwise() -> None:
    """As from the memory of another device: contiguous; and in a repetition for a checkpoint, which takes the plan
    where the first call had none."""
    tensors = [transposed(x) for x in inputs()]
    want = trained(tensors)
    saved: list[tuple] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.append((x.shape, x.dtype)) or x, lambda x: x.clone(memory_format=torch.contiguous_format)
    ):
        found = trained(tensors)
        again._plans.clear()
        other = trained(tensors)
    assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(want, found, other, strict=True))
    assert saved[: len(saved) // 2] == saved[len(saved) // 2 :]  # the plan saves what the operator saves
    again._plans.clear()
    leaves = [x.clone().requires_grad_() for x in tensors]
    out = checkpoint(dynattn.attention, *leaves, use_reentrant=False)
    found = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert all(torch.equal(x, y) for x, y in zip(found, want[1:], strict=True))


def test_a_tensor_that_a_transform_has_left_behind() -> None:
    query, key, value = inputs()
    left: list[Tensor] = []
    torch.func.grad(lambda x: left.append(x) or x.sum())(query)
    want = trained((query, key, value))[2:]
    key, value = key.requires_grad_(), value.requires_grad_()
    for _ in range(2):
        found = torch.autograd.grad(dynattn.attention(left[0], key, value).sum(), (key, value))
        assert all(torch.equal(x, y) for x, y in zip(found, want, strict=True))


def test_what_was_overwritten_since_has_no_gradient() -> None:
    query, key, value = inputs()
    trained((query, key, value))
    query, scaled = query.requires_grad_(), key.clone()
    out = dynattn.attention(query, scaled, value)
    scaled.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


METHODS_OF_EVERY_KERNEL = (NM(1, 1), NM(1, 2), Window(5, 2), TopK(k=4), BlockTopK(0.5, block=8), BlockSkip(1.0))


@pytest.mark.parametrize("which", ["query", "key", "value", "attn_mask"])
def test_memory_that_holds_a_negative_is_not_read_as_it_lies(which: str) -> None:
    """As ``torch.imag(z.conj())`` gives it: all that says so is a bit of the tensor."""
    tensors: dict[str, Any] = dict(zip(("query", "key", "value"), inputs(), strict=True))
    if which == "attn_mask":
        tensors["attn_mask"] = torch.randn(19, 23, generator=torch.Generator().manual_seed(1))
    negative = torch._neg_view(tensors[which])  # pyright: ignore[reportPrivateImportUsage]
    turned: dict[str, Any] = tensors | {which: negative}
    assert turned[which].is_neg()
    assert turned[which].stride() == tensors[which].stride()
    for method in METHODS_OF_EVERY_KERNEL:
        want = dynattn.attention(**tensors | {which: -tensors[which]}, method=method)
        plain = dynattn.attention(**tensors, method=method)  # whose plan must not be taken
        assert torch.equal(dynattn.attention(**turned, method=method), want)
        assert not torch.equal(plain, want)


class Wrapped(Tensor):
    """A tensor that holds another, as quantised ones do, and has no memory of its own."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        strides, dtype = inner.stride(), inner.dtype
        return Tensor._make_wrapper_subclass(cls, inner.shape, strides=strides, dtype=dtype, device=inner.device)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return function(*(x.inner if isinstance(x, cls) else x for x in args), **(kwargs or {}))


def test_a_mask_without_memory_of_its_own_goes_through_the_operator() -> None:
    query, key, value = inputs()
    mask = torch.randn(19, 23, generator=torch.Generator().manual_seed(1))
    for method in METHODS_OF_EVERY_KERNEL:
        want = dynattn.attention(query, key, value, method, attn_mask=mask)
        for _ in range(2):
            assert torch.equal(dynattn.attention(query, key, value, method, attn_mask=Wrapped(mask)), want)


def test_a_plan_knows_nothing_of_addresses() -> None:
    """Neither where tensors lie nor how they are aligned."""
    room = torch.randn(3, 1 + 2 * 4 * 19 * 16)
    starts: Any = cast(Any, [[x[i : i + 2 * 4 * 19 * 16].view(2, 4, 19, 16) for x in room] for i in (0, 1)])
    first, second = (dynattn.attention(*tensors, method=NM(1, 2)) for tensors in starts)
    assert len(again._plans) == 1
    again._plans.clear()
    assert torch.equal(dynattn.attention(*starts[1], method=NM(1, 2)), second)
    assert not torch.equal(first, second)
    assert torch.equal(dynattn.attention(*starts[0], method=NM(1, 2)), first)


def test_threads_share_plans() -> None:
    """Each with tensors of its own, which no argument that is kept between calls may mix up."""
    tensors: list[Any] = [[x + number for x in inputs()] for number in range(4)]
    want = [dynattn.attention(*x, method=NM(1, 2)) for x in tensors]

    def many(number: int) -> bool:
        found = (dynattn.attention(*tensors[number], method=NM(1, 2)) for _ in range(300))
        return all(torch.equal(x, want[number]) for x in found)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(4)))


def test_outputs_are_not_shared() -> None:
    query, key, value = inputs()
    _, first, second = (dynattn.attention(query, key, value) for _ in range(3))  # two by the plan
    kept = first.clone()
    second.zero_()
    assert torch.equal(first, kept)
    assert torch.equal(dynattn.attention(query, key, value), kept)


def test_determinism_and_inference_mode_change_nothing() -> None:
    query, key, value = inputs()
    plain = dynattn.attention(query, key, value)
    torch.use_deterministic_algorithms(True)  # which fills fresh memory with NaN
    try:
        assert torch.equal(dynattn.attention(query, key, value), plain)
    finally:
        torch.use_deterministic_algorithms(False)
    with torch.inference_mode():
        assert torch.equal(dynattn.attention(query, key, value), plain)
        assert dynattn.attention(query, key, value).is_inference()
    assert not dynattn.attention(query, key, value).is_inference()


def test_a_plan_takes_the_engine_that_the_first_call_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isas, "tile_isa", lambda: "tiles-portable")
    tensors: Any = cast(Any, inputs(torch.bfloat16))
    asked = []
    pack = packing.NM_FORWARD.pack
    monkeypatch.setattr(packing.NM_FORWARD, "pack", lambda **values: asked.append(values["isa"]) or pack(**values))
    first = dynattn.attention(*tensors, method=NM(1, 2))
    assert torch.equal(dynattn.attention(*tensors, method=NM(1, 2)), first)
    assert asked == [isas.CODES["tiles-portable"]] * 2  # of the plan and of the first call


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"causal": 1}, TypeError), ({"scale": 0.0}, ValueError), ({"scale": "1"}, TypeError),
        ({"dropout_p": 1.0}, ValueError), ({"backend": "gpu"}, ValueError), ({"backend": "sdpa"}, RuntimeError),
        ({"value": torch.zeros(2, 2, 22, 16)}, ValueError), ({"key": torch.zeros(2, 2, 23, 15)}, ValueError),
        ({"query": [1.0]}, TypeError), ({"method": "nm-2-4"}, TypeError), ({"seed": "x"}, ValueError),
        ({"key": torch.zeros(2, 2, 23, 16, device="meta")}, ValueError), ({"attn_mask": [1]}, TypeError),
        ({"key": torch.ones(2, 2, 23, 16).to_sparse()}, TypeError),
        ({"value": torch.ones(2, 2, 23, 16).to_sparse_csr()}, TypeError),
        ({"query": torch.ones(2, 4, 19, 16).to_mkldnn()}, TypeError),
        ({"key": torch.nested.nested_tensor([torch.ones(2, 23, 16)] * 2)}, TypeError),
        ({"value": torch.nested.nested_tensor([torch.ones(2, 23, 16)] * 2, layout=torch.jagged)}, TypeError),
    ],
)  # fmt: skip
def test_errors_come_after_a_call_that_was_right(change: dict, error: type[Exception]) -> None:
    query, key, value = inputs()
    call = {"query": query, "key": key, "value": value, "causal": True, "scale": 0.25}
    for _ in range(2):
        dynattn.attention(**call)
        with pytest.raises(error, match=r"^attention: "):
            dynattn.attention(**call | change)


def test_modes_and_profilers_see_the_operator() -> None:
    query, key, value = inputs()
    for _ in range(2):
        dynattn.attention(query, key, value)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watch():
        dynattn.attention(query, key, value)
    assert "dynattn.nm_attention.default" in seen
    with torch.profiler.profile() as profile:
        dynattn.attention(query, key, value)
    assert "dynattn::nm_attention" in {event.key for event in profile.key_averages()}


def test_plans_are_few_and_hold_no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "_MOST", 5)
    for length in range(1, 30):
        query, key, value = inputs(q_len=length)
        dynattn.attention(query, key, value)
        assert 1 <= len(again._plans) <= 5
    gone = [weakref.ref(x) for x in (query, key, value)]
    del query, key, value
    gc.collect()
    assert all(ref() is None for ref in gone)


def test_the_number_of_threads_is_asked_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = inputs()
    dynattn.attention(query, key, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    dynattn.attention(query, key, value)
    assert len(again._plans) == 2


def test_a_compiled_function_leaves_no_plan() -> None:
    query, key, value = inputs()
    plain = dynattn.attention(query, key, value)
    compiled = torch.compile(lambda *tensors: dynattn.attention(*cast(Any, tensors)), fullgraph=True, backend="eager")
    assert torch.equal(compiled(query, key, value), plain)
    assert len(again._plans) == 1
