"""Programs without dynattn's operators compute what those compute, ties and empty rows included, for any lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynattn
from dynattn import NM, TopK
from dynattn.integrations import onnx
from dynattn.methods import parse

METHODS = ("dense", "nm-1-2", "nm-2-4", "nm-3-8-x4", "nm-1-4-w3-s2", "nm-5-32")
LENGTHS = ((1, 1), (1, 31), (7, 7), (34, 21))
QUERIES, KEYS = (torch.export.Dim(name, min=2, max=1 << 16) for name in ("queries", "keys"))
OPEN = ({2: QUERIES}, {2: KEYS}, {2: KEYS})


class Attend(nn.Module):
    """Grouped heads, and whatever else an option asks for."""

    def __init__(self, method: Any, **options: Any) -> None:
        super().__init__()
        self.method, self.options = method, options

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        return dynattn.attention(query, key, value, self.method, **self.options)


def tensors(q_len: int, kv_len: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Of few different numbers, so that many scores are tied."""
    generator = torch.Generator().manual_seed(q_len)
    sizes = ((2, 4, q_len, 8), (2, 2, kv_len, 8), (2, 2, kv_len, 6))
    return tuple(torch.randint(-1, 2, size, generator=generator).to(dtype) for size in sizes)  # type: ignore[return-value]


def operator_and_definition(
    inputs: tuple[Tensor, ...], method: str, mask: Tensor | None, causal: bool, aux: bool
) -> tuple[Any, Any]:
    nm: Any = parse(method)
    pattern = (nm.n, nm.m, nm.window, nm.sinks, nm.stride, causal, 0.25, 0.0)
    arguments = (*inputs, mask, None, *pattern, aux, False, "reference")
    return torch.ops.dynattn.nm_attention(*arguments), onnx._attention(*arguments)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_definition_is_the_operators(method: str, causal: bool) -> None:
    """All results of it, in every layout; a query that may attend to nothing gets 0."""
    for q_len, kv_len in LENGTHS:
        inputs, aux = tensors(q_len, kv_len), kv_len != 7
        generator = torch.Generator().manual_seed(kv_len)
        rows = torch.rand(2, 1, q_len, kv_len, generator=generator) < 0.6
        rows[:, :, 0] = False
        added = torch.randint(-1, 1, (4, 1, kv_len), generator=generator).double()
        for mask in (None, rows, added.masked_fill(rows[0, :, -1:], -torch.inf)):
            expected, found = operator_and_definition(inputs, method, mask, causal, aux)
            for one, other in zip(found, expected, strict=True):
                assert one.shape == other.shape
                assert one.dtype == other.dtype
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(9, 21, dtype))
    expected, found = operator_and_definition(inputs, "nm-1-2", None, True, False)
    assert found[0].dtype == dtype
    assert found[0].stride()[:3] == expected[0].stride()[:3]  # so that whatever views the output may
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_no_numbers(number: float) -> None:
    """They reach the rows that keep them, and no others."""
    inputs = tensors(5, 12)
    inputs[1][0, 0, 3, 0] = number
    for method in ("dense", "nm-1-2", "nm-2-4"):
        expected, found = operator_and_definition(inputs, method, None, False, True)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_lengths_stay_open() -> None:
    """No operator of dynattn is left, and the program that was given is as it was."""
    module = Attend(NM(1, 2), causal=True)
    program = torch.export.export(module, tensors(8, 24), dynamic_shapes=OPEN)
    decomposed = onnx.decompose(program)
    assert not list(onnx._ours(decomposed))
    assert list(onnx._ours(program))
    for lengths in ((7, 7), (34, 21), (2, 111)):
        torch.testing.assert_close(decomposed.module()(*tensors(*lengths)), module(*tensors(*lengths)))


def test_what_has_no_decomposition_is_refused() -> None:
    cases = (
        (Attend(TopK(3)), r"must be dense or N:M: got dynattn.row_attention.default \(topk-3\); export .* NM\(n, m\)"),
        (Attend(NM(1, 2), dropout_p=0.5, seed=1), r"must not drop weights: .* call model.eval\(\) before"),
    )
    for module, text in cases:
        program = torch.export.export(module, tensors(4, 8, torch.float32))
        with pytest.raises(ValueError, match=text):
            onnx.decompose(program)
    with pytest.raises(TypeError, match=r"must be an exported program: got Attend; pass torch.export.export\("):
        onnx.decompose(cases[0][0])  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["dense", "nm-2-4-x2-w3-s2"])
def test_onnxruntime_computes_the_same(method: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    runtime: Any = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    module = Attend(parse(method), causal=True)
    program = torch.export.export(module, tensors(8, 24, torch.float32), dynamic_shapes=OPEN)
    torch.onnx.export(onnx.decompose(program), f=tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for lengths in ((7, 7), (34, 21), (2, 111)):
        inputs = tensors(*lengths, torch.float32)
        names = [one.name for one in session.get_inputs()]
        (found,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        torch.testing.assert_close(torch.from_numpy(found), module(*inputs), rtol=1e-5, atol=1e-6)
