"""The measurement on a CUDA device, with one made up: a clock, events that read it, graphs that take their time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from dynattn.lab import machine
from dynattn.lab.bench import cuda, roofline, run
from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.peers import peers
from dynattn.methods import NM

WORKLOAD = Workload(heads=2, q_len=32, head_dim=16, dtype="bfloat16", causal=True)
L2_BYTES = 3 * WORKLOAD.bytes  # so that seven sets of inputs are more than two caches
CALL_SECONDS = 0.001


class FakeDevice:
    """Time passes when a graph is replayed, by the calls it holds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.capturing: list[object] | None = None
        self.captured_calls: list[int] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at = -1.0

            def record(self) -> None:
                self.at = device.now

            def synchronize(self) -> None:
                assert self.at >= 0

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1e3

        class Graph:
            calls = 0

            def replay(self) -> None:
                device.now += self.calls * CALL_SECONDS

        @contextmanager
        def capture(graph: Graph):
            device.capturing = []
            yield
            graph.calls = len(device.capturing)
            device.captured_calls.append(graph.calls)
            device.capturing = None

        stream = SimpleNamespace(wait_stream=lambda other: None)
        properties = SimpleNamespace(
            L2_cache_size=L2_BYTES, name="A GPU", major=9, minor=0, multi_processor_count=132, total_memory=int(8e10),
        )  # fmt: skip
        monkeypatch.setattr(cuda, "DEVICE", "cpu")
        fakes = {
            "Event": Event, "CUDAGraph": Graph, "graph": capture, "Stream": lambda: stream,
            "current_stream": lambda: stream, "stream": lambda _: nullcontext(), "synchronize": lambda: None,
            "current_device": lambda: 0, "get_device_properties": lambda _: properties,
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def watched(self, make: Callable) -> Callable:
        """``make``, whose calls take their time, or are counted where a graph is being captured."""

        def made(*arguments):
            call = make(*arguments)

            def run():
                if self.capturing is not None:
                    self.capturing.append(call)
                else:
                    self.now += 10 * CALL_SECONDS
                return call()

            return run

        return made


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()
    fake.install(monkeypatch)
    functions = run._functions

    def watched(*arguments):
        return {name: f._replace(make=fake.watched(f.make)) for name, f in functions(*arguments).items()}

    monkeypatch.setattr(run, "_functions", watched)
    return fake


def test_graphs_hold_a_call_for_each_set_of_inputs_and_samples_are_of_one(device, monkeypatch):
    results = {r.function: r for r in run.measure(WORKLOAD, [NM(1, 1), NM(1, 2)], device="cuda", rounds=4)}
    sets = 7
    timed = {name: result.timing for name, result in results.items() if result.timing is not None}
    assert {"sdpa", "sdpa-flash", "unfused", "dense", "nm-1-2"} <= set(timed)
    # on a CPU the route of N:M is not the reference, and nothing but that keeps a function out of a graph
    assert device.captured_calls == [sets] * len(timed)
    for name, timing in timed.items():
        assert timing.samples == pytest.approx((CALL_SECONDS,) * 4)
        assert timing.calls % sets == 0
        assert timing.waited == ()
        assert results[name].call == pytest.approx(10 * CALL_SECONDS)  # without a graph


def test_the_reference_is_not_captured(device):
    results = {r.function: r for r in run.measure(WORKLOAD, [NM(1, 2)], device="cuda", backend="reference", rounds=2)}
    timed = {name: result.timing for name, result in results.items() if result.timing is not None}
    assert len(device.captured_calls) == len(timed) - 1
    assert timed["nm-1-2"].samples == pytest.approx((10 * CALL_SECONDS,) * 2)


def test_a_peer_that_refuses_is_left_out_with_its_words_and_others_are_not(device, monkeypatch):
    def refuse(*_):
        raise RuntimeError("No available kernel. Aborting execution.\nmore")

    found = peers(WORKLOAD, "cuda")
    monkeypatch.setattr(run, "peers", lambda *_: {**found, "sdpa-cudnn": refuse})
    result = next(r for r in run.measure(WORKLOAD, [], device="cuda", rounds=1) if r.function == "sdpa-cudnn")
    assert (result.failed, result.timing, result.wrong) == ("No available kernel. Aborting execution.", None, False)
    monkeypatch.setattr(run, "peers", lambda *_: {**found, "sdpa": refuse})
    with pytest.raises(RuntimeError, match="No available kernel"):
        run.measure(WORKLOAD, [], device="cuda", rounds=1)


def test_inputs_differ_from_set_to_set_and_large_ones_need_two(device, monkeypatch):
    sets = cuda.input_sets(WORKLOAD)
    assert len(sets) == 7
    assert len({x.data_ptr() for inputs in sets for x in inputs}) == 21
    assert not torch.equal(sets[0][0], sets[1][0])
    monkeypatch.setattr(cuda, "_CACHES", 0.1)
    assert len(cuda.input_sets(WORKLOAD)) == 2
    monkeypatch.setattr(cuda, "_CACHES", 1000)
    assert len(cuda.input_sets(WORKLOAD)) == 16


def test_large_workloads_are_not_timed_from_python(device, monkeypatch):
    monkeypatch.setattr(run, "_CALL_COUNTS", 32 * 32 - 1)
    assert all(result.call is None for result in run.measure(WORKLOAD, [], device="cuda", rounds=1))


def test_precision_is_as_the_workload_asks_and_comes_back():
    assert torch.get_float32_matmul_precision() == "highest"
    with cuda.precision(Workload(heads=1, q_len=1, head_dim=8, dtype="tf32")):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_limits(device, monkeypatch):
    monkeypatch.setattr(roofline, "_PRODUCT", 64)
    monkeypatch.setattr(roofline, "_GPU_COPY_BYTES", 1000)

    def elapsed(function, calls: int) -> float:
        function()
        device.now += 0.01 * calls
        return 0.01 * calls

    monkeypatch.setattr(cuda, "elapsed", elapsed)
    here = roofline.roofline(0.01, "cuda")
    assert (here.isa, here.threads) == ("bfloat16", 0)
    assert here.flops == pytest.approx(2 * 64**3 / 0.01)
    assert here.bandwidth == pytest.approx(2000 / 0.01)


def test_machine_describes_the_gpu_and_does_without_the_drivers_tool(device, monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '580.159.04, 1980, 1980, 2619, 700.00'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    gpu = machine.machine("cuda")["gpu"]
    assert (gpu["name"], gpu["capability"], gpu["multiprocessors"]) == ("A GPU", "9.0", 132)
    assert (gpu["driver"], gpu["clock"], gpu["watts_most"]) == ("580.159.04", "1980", "700.00")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine.machine("cuda")["gpu"]["driver"] is None


def test_nothing_runs_where_torch_sees_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no CUDA device here" in str(cuda.unavailable_reason())


def test_unfused_attention_is_left_out_where_its_scores_do_not_fit():
    large = Workload(heads=32, q_len=32768, head_dim=64, dtype="bfloat16")
    assert "unfused" not in peers(large, "cuda")
    assert "unfused" in peers(WORKLOAD, "cuda")
    assert {"sdpa", "sdpa-cudnn", "sdpa-flash", "sdpa-efficient"} <= set(peers(large, "cuda"))
