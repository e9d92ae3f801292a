"""``torch.compile`` and ``torch.export`` with sizes and numbers that are symbols, for every method."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import dynattn
from dynattn.methods import parse
from tests.covering import part
from tests.methods.every import NAMES

LENGTHS = (20, 33, 47, 150, 64, 171, 29, 300, 77, 9, 200, 5)
SDPA = "topk-1.0"  # PyTorch's own attention, which is compiled anew for every scale
SOME = ("nm-1-2", "window-5-s2", "scatterbrain-f8-b4-r1")
MOST = 3  # compilations of one function: for the first lengths, for any, and one to spare


class Counter:
    """A compiler's backend that counts its graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def tensors(q_len: int, kv_len: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(q_len)
    shapes = [(1, 4, length, 16) for length in (q_len, kv_len or q_len, kv_len or q_len)]
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize(("method", "dynamic"), [(name, True) for name in NAMES] + [(name, None) for name in SOME])
def test_lengths_and_scales_need_no_compilation_of_their_own(method: str, dynamic: bool | None) -> None:
    counter, its = Counter(), parse(method)

    def step(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return dynattn.attention(query, key, value, its, causal=True, scale=scale)

    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=dynamic)
    for number, length in enumerate(LENGTHS):
        call = (*tensors(length), 0.2 if method == SDPA else 0.1 + number / 16)
        torch.testing.assert_close(compiled(*call), step(*call))
    assert counter.graphs <= MOST


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_a_few_scales_in_compiled_code(compiler: str) -> None:
    """These compilers make a constant of every number, for PyTorch's own attention as well."""

    def step(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return dynattn.attention(query, key, value, dynattn.NM(1, 2), scale=scale)

    compiled = torch.compile(step, fullgraph=True, backend=compiler, dynamic=True)
    for length, scale in ((20, 0.1), (33, 0.2), (47, -0.3), (47, 2)):
        call = (*tensors(length), scale)
        torch.testing.assert_close(compiled(*call), step(*call))


@pytest.mark.parametrize("method", part(NAMES, 4))
def test_more_keys_than_queries_masks_and_gradients(method: str) -> None:
    its = parse(method)

    def step(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return dynattn.attention(query, key, value, its, attn_mask=mask).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in LENGTHS[:3]:
        inputs: Any = cast(Any, [x.requires_grad_() for x in tensors(length, length + 7)])
        mask = (torch.arange(length + 7) < length + 3).view(1, 1, 1, -1)
        got, want = (torch.autograd.grad(f(*inputs, mask=mask), inputs) for f in (compiled, step))
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("method", ["nm-1-2", "topk-0.3", "blocktopk-0.5-b8", "window-5-s2", "random-0.5"])
def test_the_certificate_and_dropout_with_symbols(method: str) -> None:
    counter, its = Counter(), parse(method)

    def step(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, seed: int):
        return dynattn.attention(query, key, value, its, dropout_p=dropout_p, seed=seed, return_aux=True)

    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    for number, length in enumerate(LENGTHS[:4]):
        call = (*tensors(length), 0.1 + number / 16, number)
        torch.testing.assert_close(compiled(*call), step(*call))
    assert counter.graphs <= MOST


class Model(nn.Module):
    def __init__(self, method: str, causal: bool) -> None:
        super().__init__()
        self.method, self.causal = parse(method), causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dynattn.attention(query, key, value, self.method, causal=self.causal)


@pytest.mark.parametrize(
    ("method", "causal", "strict"), [(name, True, False) for name in NAMES] + [(name, False, True) for name in SOME]
)
def test_export_leaves_the_length_open(method: str, causal: bool, strict: bool) -> None:
    model = Model(method, causal)
    length = torch.export.Dim("length", min=2, max=1 << 16)
    shapes = ({2: length},) * 3
    with torch.no_grad():
        program = torch.export.export(model, tensors(24), dynamic_shapes=shapes, strict=strict).module()
        for other in (3, 40, 150, 400):
            torch.testing.assert_close(program(*tensors(other)), model(*tensors(other)))


@pytest.mark.parametrize("method", [*SOME, "topk-1.0", "blocktopk-0.5-b8"])
def test_export_leaves_the_number_of_queries_and_of_keys_open(method: str) -> None:
    model = Model(method, causal=False)
    queries, keys = torch.export.Dim("queries", min=2, max=1 << 16), torch.export.Dim("keys", min=2, max=1 << 16)
    with torch.no_grad():
        program = torch.export.export(
            model, tensors(24, 30), dynamic_shapes=({2: queries}, {2: keys}, {2: keys})
        ).module()
        for q_len, kv_len in ((3, 3), (40, 9), (150, 400)):
            call = tensors(q_len, kv_len)
            torch.testing.assert_close(program(*call), model(*call))
