"""The way of a call with CUDA tensors, without a device: what is chosen and why, and the operator onto the emulator."""

from functools import partial
from typing import Any

import pytest
import torch

from dynattn import NM, explain
from dynattn.backends import Problem
from dynattn.backends import explain as explain_choice
from dynattn.backends import route as take
from dynattn.kernels import cuda
from dynattn.kernels.cuda import driver, emulator, launch, launch_backward
from dynattn.kernels.pattern import Pattern
from dynattn.ops import nm

CUDA = torch.device("cuda", 0)


def problem(method: NM = NM(1, 2), dtype: torch.dtype = torch.bfloat16, **change) -> Problem:
    fields: dict[str, Any] = {"head_dim": 64, "value_dim": 64} | change
    return Problem(CUDA, dtype, method, **fields)


def route(problem: Problem, backend: str) -> str:
    return take(problem, backend).name


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the kernels could run on a device that torch sees."""
    monkeypatch.setattr(driver, "unavailable_reason", lambda index: None)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("case", "backend", "why"),
    [
        (problem(), "cuda", ""),
        (problem(NM(2, 4, window=64, sinks=4), torch.float16, masked=True, aux=True, head_dim=80), "cuda", ""),
        (problem(NM(2, 2)), "sdpa", ""),
        (problem(NM(2, 2), masked=True), "cuda", ""),
        (problem(NM(1, 1), aux=True), "cuda", ""),
        (problem(NM(1, 1, stride=3), causal=True, q_len=3, kv_len=5), "cuda", ""),
        (problem(NM(1, 2, stride=16, window=64)), "cuda", ""),
        (problem(NM(2, 4, stride=2)), "cuda", ""),
        (problem(dropout=True), "cuda", ""),
        (problem(NM(1, 1), dropout=True), "cuda", ""),
        (problem(NM(2, 4, stride=3)), "reference", "the kernels take strides of 1, 2, 4, 8 and 16, not 3"),
        (problem(NM(1, 2, stride=64)), "reference", "the kernels take strides of 1, 2, 4, 8 and 16, not 64"),
        (problem(NM(3, 8)), "reference", "the kernels compute 1:2 and 2:4, not 3:8"),
        (problem(dtype=torch.float64), "reference", "the kernels take bfloat16, float16 and float32, not float64"),
        (problem(head_dim=20), "reference", "the kernels take a head_dim of 8, 16, … 256, not 20"),
    ],
)
def test_route(case: Problem, backend: str, why: str) -> None:
    assert route(case, "auto") == backend
    assert explain_choice(case, "auto").rejected.get("cuda", "") == why


@pytest.mark.usefixtures("device")
def test_the_plan_says_which_kernel_draws_dropout() -> None:
    words = "fused CUDA kernel on sparse tensor cores (the one for sm_80, which alone draws dropout)"
    assert explain_choice(problem(dropout=True), "auto").reason.startswith(words)
    assert "dropout" not in explain_choice(problem(), "auto").reason
    dense = explain_choice(problem(NM(1, 1), dropout=True), "auto")
    assert dense.rejected == {"sdpa": "it draws other pairs for dropout"}


@pytest.mark.usefixtures("device")
def test_float32_needs_the_users_leave_to_round() -> None:
    refusal = explain_choice(problem(dtype=torch.float32), "auto")
    assert refusal.backend == "reference"
    assert "torch.set_float32_matmul_precision('high') allows it" in refusal.rejected["cuda"]
    torch.set_float32_matmul_precision("high")
    try:
        assert route(problem(dtype=torch.float32), "auto") == "cuda"
        assert route(problem(NM(2, 4), torch.float32, masked=True), "auto") == "cuda"
        words = explain_choice(problem(NM(1, 2, stride=16), torch.float32), "auto").reason
        assert words == (
            "fused CUDA kernel on sparse tensor cores, float32 rounded to TF32; "
            "the fastest here that computes nm-1-2-x16"
        )
        assert "on tensor cores, float32" in explain_choice(problem(NM(2, 4), torch.float32), "auto").reason
        wide = explain_choice(problem(dtype=torch.float32, head_dim=136), "auto")
        assert wide.rejected["cuda"] == "the kernels take a head_dim of 8, 16, … 128, not 136"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_compiled_code_asks_whether_tf32_is_allowed_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(cuda, "nm_forward", lambda *arguments: called.append(arguments))
    x = torch.randn(1, 1, 8, 8)
    arguments = (x, x, x, None, None, 1, 2, 0, 0, 1, False, 0.5, 0.0, False, False)
    right = nm._forward_cuda(*arguments, "reference")
    assert torch.equal(nm._forward_cuda(*arguments, "cuda")[0], right[0])
    assert not called
    monkeypatch.setattr(cuda, "tf32_allowed", lambda: True)
    nm._forward_cuda(*arguments, "cuda")
    assert len(called) == 1


def test_where_no_kernel_can_run_the_reference_does_and_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "unavailable_reason", lambda index: "cuda-core is missing; pip install 'dynattn[cuda]'")
    plan = explain_choice(problem(), "auto")
    assert plan.backend == "reference"
    assert "not cuda: cuda-core is missing; pip install 'dynattn[cuda]'" in str(plan)
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot run this: cuda-core is missing; pip install"):
        route(problem(), "cuda")


def test_cuda_by_name_refuses_tensors_elsewhere_and_cpu_plans_do_not_mention_it() -> None:
    x = torch.zeros(1, 1, 4, 8)
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run this: tensors are on cpu"):
        explain(x, x, x, NM(1, 2), backend="cuda")
    assert "cuda" not in explain(x.double(), x.double(), x.double(), NM(1, 2)).rejected


def emulated(*arguments: Any) -> None:
    """In place of ``cuda.nm_forward``."""
    *call, pattern, for_backward, seed = arguments
    device = driver.Device(0, "sm_80", 1, 163 * 1024)
    emulator.run(launch.prepare(*call, pattern=pattern, device=device, for_backward=for_backward, seed=seed))


def emulated_backward(
    *arguments: Any, pattern: Pattern, seed: torch.Tensor | None, first: tuple[int, int] = (0, 0)
) -> None:
    """In place of ``cuda.nm_backward``."""
    *call, d_query, d_key, d_value, d_mask = arguments
    device = driver.Device(0, "sm_80", 1, 163 * 1024)
    for one in launch_backward.prepare_backward(
        *call, pattern=pattern, d_query=d_query, d_key=d_key, d_value=d_value, d_mask=d_mask, device=device, seed=seed,
        first=first,
    ):  # fmt: skip
        emulator.run(one)


@pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))
@pytest.mark.parametrize("biased", [False, True])
def test_the_operator_hands_dropout_to_both_kernels(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "nm_forward", emulated)
    monkeypatch.setattr(cuda, "nm_backward", emulated_backward)
    monkeypatch.setattr(nm, "integer", lambda seed: pytest.fail("on a device it would wait for the seed"))
    monkeypatch.setattr(nm, "_SCORES_AT_ONCE", 1)  # a bias's gradient is summed a head at a time
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randint(-3, 4, (1, 2, 70, 32), generator=generator).bfloat16() for _ in range(3))
    bias = torch.randint(-2, 3, (1, 2, 70, 70), generator=generator).float() if biased else None
    inputs = (query, key, value, bias, torch.tensor(11))
    call = (*inputs, 1, 2, 0, 0, 1, True, 0.25, 0.5)
    got, right = (nm._forward_cuda(*call, False, True, backend) for backend in ("cuda", "reference"))
    torch.testing.assert_close(got[0], right[0], rtol=2**-6, atol=2**-6)
    incoming = (torch.randn(query.shape, generator=generator).bfloat16(), torch.zeros(1, 2, 70), *got[:2])
    backward = partial(nm._backward, nm._cuda_backward)
    mine, wanted = (backward(*incoming, *call, biased, backend) for backend in ("cuda", "reference"))
    for a, b in zip(mine[: 3 + biased], wanted[: 3 + biased], strict=True):
        assert (a.float() - b.float()).norm() / b.float().norm() < 1e-2


@pytest.mark.skipif(emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason()))
@pytest.mark.parametrize("aux", [False, True])
def test_the_operator_fills_its_outputs_by_the_kernel(aux: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "nm_forward", emulated)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randint(-3, 4, (2, length, heads, 32), generator=generator).bfloat16().transpose(1, 2)
        for length, heads in ((70, 4), (90, 2), (90, 2))
    )
    mask = torch.rand(2, 1, 1, 90, generator=generator) > 0.3
    arguments = (query, key, value, mask, None, 1, 2, 5, 2, 1, True, 0.25, 0.0, aux, False)
    got, right = nm._forward_cuda(*arguments, "cuda"), nm._forward_cuda(*arguments, "reference")
    assert got[0].transpose(1, 2).is_contiguous()  # as the query lies
    torch.testing.assert_close(got[0], right[0], rtol=2**-6, atol=2**-6)
    for a, b in zip(got[1:3], right[1:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(got[3:], right[3:], strict=True):
        assert torch.equal(a, b)
    assert got[3].numel() == (2 * 4 * 70 if aux else 0)
