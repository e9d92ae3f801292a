"""``varlen_attention`` under ``torch.compile`` and ``torch.export``, where no graph knows the lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dynattn import NM, varlen_attention
from dynattn.methods import parse
from tests.varlen.test_init import bounds, in_pages, packed

LENGTHS = [[7, 0, 64, 1, 33], [12, 40], [5, 90, 3]]


def compiled(function: Callable[..., Any]) -> Any:
    """As one graph for all lengths: compiling again is an error."""
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)


@pytest.mark.parametrize("method", ["nm-2-4", "topk-0.25", "perhead(2*nm-1-2_2*dense)"])
def test_one_graph_serves_all_lengths(method: str) -> None:
    keep = parse(method)

    def call(query: Tensor, key: Tensor, value: Tensor, cu_seq: Tensor) -> Tensor:
        return varlen_attention(query * 2, key, value, keep, cu_seq_q=cu_seq, causal=True) + 1

    run = compiled(call)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in LENGTHS:
            tensors = packed(lengths)
            assert torch.equal(run(*tensors, bounds(lengths)), call(*tensors, bounds(lengths)))


@pytest.mark.parametrize("method", ["nm-2-4", "topk-0.25"])
def test_gradients(method: str) -> None:
    keep = parse(method)

    def call(query: Tensor, key: Tensor, value: Tensor, cu_seq: Tensor) -> tuple[Tensor, Tensor]:
        out, aux = varlen_attention(query, key, value, keep, cu_seq_q=cu_seq, causal=True, return_aux=True)
        return out, aux.logsumexp

    run = compiled(call)
    for lengths in LENGTHS[:2]:
        tensors = packed(lengths)
        for x in tensors:
            x.requires_grad_()
        found = []
        for function in (run, call):
            out, logsumexp = function(*tensors, bounds(lengths))
            loss = (out * torch.arange(24)).sum() + logsumexp.clamp(min=-50).sin().sum()
            found.append(torch.autograd.grad(loss, tensors))
        for got, right in zip(*found, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-6, atol=1e-6)


def test_training_chooses_what_its_gradient_chooses() -> None:
    """Few queries and keys that nearly tie: without a gradient another kernel rounds their scores otherwise."""
    torch.manual_seed(0)
    query, key, value = torch.randn(6, 2, 64), torch.randn(2048, 2, 64), torch.zeros(2048, 2, 1)
    key = key[::2].repeat_interleave(2, 0) * (1 + torch.tensor([0.0, 2.0**-23]).repeat(1024)[:, None, None])
    cu_seq: dict[str, Any] = {"cu_seq_q": torch.tensor([0, 6]), "cu_seq_k": torch.tensor([0, 2048])}
    value = torch.randn(2048, 2, 1)
    tensors = [x.requires_grad_() for x in (query, key, value)]
    call = lambda query, key, value: varlen_attention(query, key, value, NM(1, 2), **cu_seq)  # noqa: E731
    assert torch.equal(compiled(call)(*tensors), call(*tensors))


def test_an_output_without_aux_has_gradients_too() -> None:
    tensors = packed([5, 9])
    for x in tensors:
        x.requires_grad_()
    run = compiled(lambda *x: varlen_attention(*x, cu_seq_q=bounds([5, 9])).square().sum())
    expected = torch.autograd.grad(varlen_attention(*tensors, cu_seq_q=bounds([5, 9])).square().sum(), tensors)
    for got, right in zip(torch.autograd.grad(run(*tensors), tensors), expected, strict=True):
        torch.testing.assert_close(got, right)
    rest = (None, None, None, None, None, "nm-2-4", False, None, -1, -1, 0.0, None, "auto", True, False)
    out = torch.ops.dynattn.varlen_attention(*tensors, bounds([5, 9]), *rest)[0]
    (first,) = torch.autograd.grad(out.square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not offered"):
        first.sum().backward()


def test_pages_windows_dropout_and_autocast() -> None:
    lengths = [5, 40, 16]
    query, key, value = packed(lengths)
    (keys, table), (values, _) = (in_pages(x, lengths, 16) for x in (key, value))
    used = torch.tensor(lengths)

    def in_place(query: Tensor, keys: Tensor, values: Tensor, used: Tensor, table: Tensor) -> Tensor:
        cu_seq = bounds(lengths)
        return varlen_attention(query, keys, values, cu_seq_q=cu_seq, seqused_k=used, block_table=table, causal=True)

    inputs = query, keys, values, used, table
    assert torch.equal(compiled(in_place)(*inputs), in_place(*inputs))

    def others(query: Tensor, key: Tensor, value: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        cu_seq = bounds(lengths)
        seen = varlen_attention(query, key, value, NM(1, 1), cu_seq_q=cu_seq, window_size=(3, 1), max_q=40, max_k=50)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            dropped = varlen_attention(query, key, value, cu_seq_q=cu_seq, dropout_p=0.25, seed=seed)
        return seen, dropped

    seed = torch.tensor(3)
    for got, right in zip(compiled(others)(query, key, value, seed), others(query, key, value, seed), strict=True):
        assert got.dtype == right.dtype
        assert torch.equal(got, right)


def test_what_does_not_fit_is_refused_when_it_runs() -> None:
    run = compiled(lambda *x: varlen_attention(*x[:3], cu_seq_q=x[3]))
    with pytest.raises(ValueError, match="cu_seq_q must rise from 0"):
        run(*packed([8]), torch.tensor([0, 7]))


def test_export_with_dynamic_shapes() -> None:
    class Packed(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, cu_seq: Tensor) -> Tensor:
            return varlen_attention(query, key, value, NM(1, 2), cu_seq_q=cu_seq, causal=True)

    tokens, texts = torch.export.Dim("tokens", min=2), torch.export.Dim("texts", min=2)
    shapes: Any = ({0: tokens}, {0: tokens}, {0: tokens}, {0: texts})
    module = torch.export.export(Packed(), (*packed([5, 9]), bounds([5, 9])), dynamic_shapes=shapes).module()
    for lengths in LENGTHS:
        tensors = packed(lengths)
        assert torch.equal(module(*tensors, bounds(lengths)), Packed()(*tensors, bounds(lengths)))


def test_the_operator_is_as_pytorch_asks() -> None:
    tensors = list(packed([5, 9, 2]))
    for x in tensors:
        x.requires_grad_()
    rest = (None, None, None, None, None, "nm-2-4", True, 0.25, -1, -1, 0.0, None, "auto")
    tensors[0] = tensors[0].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()  # heads first
    for needs_grad, aux in ((True, True), (False, False), (False, True)):
        arguments = (*tensors, bounds([5, 9, 2]), *rest, needs_grad, aux)
        torch.library.opcheck(torch.ops.dynattn.varlen_attention.default, arguments, rtol=1e-5, atol=1e-5)
