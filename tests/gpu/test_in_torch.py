"""The CUDA kernels among torch's machinery: graphs, streams, threads, devices, torch.compile, gradients."""

import threading

import pytest
import torch
from torch import Tensor

from dynattn import NM, attention
from dynattn.kernels.cuda import driver

METHODS = (NM(1, 2), NM(2, 4), NM(1, 2, window=64, sinks=4))


def inputs(length: int = 512, seed: int = 0, device: str = "cuda") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, 4, length, 64, generator=generator).bfloat16().to(device) for _ in range(3))
    return query, key, value


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_cuda_graphs_capture_it(method: NM) -> None:
    query, key, value = inputs()
    attention(query, key, value, method, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(query, key, value, method, backend="cuda")
    for seed in (1, 2):
        for old, new in zip((query, key, value), inputs(seed=seed), strict=True):
            old.copy_(new)
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, attention(query, key, value, method, backend="cuda"))


def test_a_first_use_may_fall_into_a_capture() -> None:
    driver._kernels.clear()
    query, key, value = inputs()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(query, key, value, NM(1, 2), backend="cuda")
    graph.replay()
    assert torch.equal(out, attention(query, key, value, NM(1, 2), backend="cuda"))


def test_a_call_waits_for_nothing() -> None:
    query, key, value = inputs(4096)
    attention(query, key, value, NM(1, 2), backend="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # a tenth of a second of work before it
    attention(query, key, value, NM(1, 2), backend="cuda")
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


def test_the_current_stream_is_taken() -> None:
    query, key, value = inputs()
    right = attention(query, key, value, NM(2, 4), backend="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        doubled = query * 2  # on this stream, after the pause: a kernel on another stream would read too soon
        out = attention(doubled / 2, key, value, NM(2, 4), backend="cuda")
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, right)


def test_threads_that_never_called_cuda() -> None:
    query, key, value = inputs()
    right = attention(query, key, value, NM(1, 2), backend="cuda")
    results: dict[int, Tensor] = {}

    def work(index: int) -> None:
        results[index] = attention(query, key, value, NM(1, 2), backend="cuda")

    driver._kernels.clear()  # they all load the kernel anew
    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result, right) for result in results.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_another_device_than_the_current_one() -> None:
    right = attention(*inputs(), NM(1, 2), backend="cuda")
    out = attention(*inputs(device="cuda:1"), NM(1, 2), backend="cuda")
    assert out.device == torch.device("cuda:1")
    assert torch.equal(out.to("cuda:0"), right)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_torch_compile(method: NM, mode: str) -> None:
    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, aux = attention(query * 2, key, value, method, causal=True, return_aux=True)
        return out + aux.kept_mass.unsqueeze(-1)

    query, key, value = inputs()
    compiled = torch.compile(function, fullgraph=True, mode=mode)
    for _ in range(3):
        torch.testing.assert_close(compiled(query, key, value), function(query, key, value))


def test_operator_opcheck() -> None:
    query, key, value = inputs(length=40)
    for aux in (False, True):
        torch.library.opcheck(
            torch.ops.dynattn.nm_attention.default,
            (query, key, value, None, None, 2, 4, 3, 1, 1, True, 0.125, 0.0, aux, False, "cuda"),
        )


def test_gradients_are_those_of_the_definition() -> None:
    leaves = [x.requires_grad_() for x in inputs(length=100)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    for tensors, backend in ((leaves, "cuda"), (exact, "reference")):
        query, key, value = tensors
        attention(query, key, value, NM(1, 2), causal=True, backend=backend).double().square().sum().backward()
    for leaf, right in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert right.grad is not None
        assert (leaf.grad.double() - right.grad).norm() / right.grad.norm() < 3e-2
