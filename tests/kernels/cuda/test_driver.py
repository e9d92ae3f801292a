"""The driver calls: what would reach a device, seen by a stand-in for the driver; and what is said where there is none.

The stand-in (``fake_driver.c``) writes each call down; the process under test sees it as ``libcuda.so.1``.
"""

import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynattn import NM
from dynattn.kernels.cuda import cannot, driver, loader
from dynattn.kernels.cuda.launch import ForwardParams
from dynattn.kernels.cuda.variants import WGMMA_HEAD_DIMS

HOPPER = torch.device("cuda", 0)

_RUN = """
import json, sys, threading
import torch
from dynattn.kernels.cuda import driver, launch, loader
from dynattn.kernels.pattern import Pattern

code = sys.argv[1].encode() + b"\\0"
loader.compile_variant = lambda variant, arch: loader.Compiled(f"nm_forward_{variant.kernel}_{arch}", code)
device = driver.Device(1, "sm_90a", 132, 227 * 1024)
query, key, value = (torch.randn(2, 2, 130, 64).to(torch.float16) for _ in range(3))
out, logsumexp = torch.empty_like(query), torch.empty(2, 2, 130)
prepared = [
    launch.prepare(query, key[:, :, :length], value[:, :, :length], None, out, logsumexp, None, None, None,
                   Pattern(1, 2, 0, 0, 1, True, 0.125), device)
    for length in (129, 128, 128)
]
for one in prepared:
    driver.launch(one.variant, device, one.blocks, one.params, one.tensor_maps, 0x77)
print(json.dumps([
    [one.variant.kernel, one.blocks, one.variant.threads, one.variant.shared_bytes, bytes(one.params).hex(),
     [list(m) for m in one.tensor_maps]] for one in prepared
]))
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in for libcuda.so.1."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    if loader.missing() is not None:
        pytest.skip(f"needs cuda-core: {loader.missing()}")
    if torch.cuda.is_available():
        pytest.skip("a real driver is there: tests/gpu uses it")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).parent / "fake_driver.c"
    size = f"-DPARAMS_BYTES={ctypes.sizeof(ForwardParams)}"
    subprocess.run([compiler, "-shared", "-fPIC", size, "-o", folder / "libcuda.so.1", source, "-ldl"], check=True)
    return folder


def run(stand_in: Path, tmp_path: Path, code: str = "code") -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Three launches in a process of its own; what it printed, and the calls that the driver saw."""
    log = tmp_path / "log"
    log.touch()
    path = os.pathsep.join(filter(None, [str(stand_in), os.environ.get("LD_LIBRARY_PATH")]))
    environment = os.environ | {"LD_LIBRARY_PATH": path, "FAKE_DRIVER_LOG": str(log)}
    done = subprocess.run([sys.executable, "-c", _RUN, code], env=environment, capture_output=True, text=True)
    return done, [line.split() for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def launched(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list, list[list[str]]]:
    """What three launches were to do, and the calls that the driver saw."""
    done, calls = run(stand_in, tmp_path_factory.mktemp("launched"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), calls


@pytest.mark.skipif(not WGMMA_HEAD_DIMS, reason="this build has no wgmma kernel")
def test_what_reaches_the_driver(launched: tuple[list, list[list[str]]]) -> None:
    wanted, calls = launched
    assert [kernel for kernel, *_ in wanted] == ["mma", "wgmma", "wgmma"]
    launches = [call[1:] for call in calls if call[0] == "cuLaunchKernel"]
    for (kernel, blocks, threads, shared, params, maps), launch in zip(wanted, launches, strict=True):
        handle = {"mma": "111", "wgmma": "222"}[kernel]
        assert launch[:9] == [handle, str(blocks), "1", "1", str(threads), "1", "1", str(shared), "77"]
        assert launch[9] == params
        assert [described(bytes.fromhex(seen)) for seen in launch[10:]] == [
            {
                "dtype": 6,  # CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                "address": address, "sizes": sizes, "strides": [2 * stride for stride in strides], "box": box,
                "steps": len(sizes), "interleave": 0, "swizzle": 3, "promotion": 3, "fill": 0,
            }
            for address, _, sizes, strides, box in maps
        ]  # fmt: skip


def test_a_kernel_is_loaded_once_and_may_use_its_shared_memory(launched: tuple[list, list[list[str]]]) -> None:
    kernels, calls = launched
    names = [call[0] for call in calls]
    assert names.count("cuLibraryLoadData") == len({kernel for kernel, *_ in kernels})
    assert next(call[1] for call in calls if call[0] == "cuLibraryGetKernel") == "nm_forward_mma_sm_90a"
    shared = {str(bytes_) for _, _, _, bytes_, *_ in kernels if bytes_ > 48 * 1024}
    raised = [call for call in calls if call[0] == "cuKernelSetAttribute"]
    assert {call[2] for call in raised} == shared
    assert {call[4] for call in raised} <= {"41"}  # the device's own ordinal
    # a thread without a context takes torch's, once; a capture in progress tolerates the loading
    assert names.count("cuCtxSetCurrent") == 1
    modes = [call[1] for call in calls if call[0] == "cuThreadExchangeStreamCaptureMode"]
    assert modes == ["2", "0"] * len({kernel for kernel, *_ in kernels})  # relaxed, then as it was
    # identical tensors are described to the copy engine once
    assert names.count("cuTensorMapEncodeTiled") <= 3


def test_what_the_driver_says_reaches_the_user(stand_in: Path, tmp_path: Path) -> None:
    done, _ = run(stand_in, tmp_path, code="broken")
    assert done.returncode != 0
    assert "RuntimeError: nm_forward: loading dynattn::nm_forward_mma<" in done.stderr
    assert "the CUDA driver says CUDA_ERROR_INVALID_IMAGE" in done.stderr


def described(code: bytes) -> dict:
    """The stand-in's layout of a tensor map."""
    dtype, rank, address, *rest = struct.unpack("=2iQ5Q4Q5I5I", code)
    sizes, strides, box, (steps, interleave, swizzle, promotion, fill) = rest[:5], rest[5:9], rest[9:14], rest[14:]
    return {
        "dtype": dtype, "address": address, "sizes": sizes[:rank], "strides": strides[: rank - 1], "box": box[:rank],
        "steps": steps, "interleave": interleave, "swizzle": swizzle, "promotion": promotion, "fill": fill,
    }  # fmt: skip


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if torch had CUDA and a GPU of compute capability 9.0 were there."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "the GPU")
    monkeypatch.setattr(loader, "missing", lambda: None)
    monkeypatch.setattr(loader, "nvrtc_version", lambda: (13, 0))
    monkeypatch.setattr(loader, "nvrtc_architectures", lambda: (80, 90))
    monkeypatch.setattr(driver, "_supported_cuda", lambda: (13, 0))
    monkeypatch.setattr(
        driver, "unavailable_reason", driver.unavailable_reason.__wrapped__
    )  # not what was found before
    return monkeypatch


def test_all_is_well(hopper: pytest.MonkeyPatch) -> None:
    assert cannot(torch.bfloat16, NM(1, 2), 64, 64, HOPPER) is None


@pytest.mark.parametrize(
    ("where", "name", "answer", "text"),
    [
        (
            torch.version,
            "cuda",
            None,
            "built without CUDA; install a CUDA build of PyTorch, then pip install 'dynattn[",
        ),
        (torch.cuda, "get_device_capability", lambda i: (7, 5), "need compute capability 8.0, and the GPU has 7.5"),
        (loader, "missing", lambda: "cuda-core does not import; pip install 'dynattn[cuda]'", "cuda-core does not"),
        (loader, "nvrtc_architectures", lambda: (80, 86), "NVRTC 13.0, the compiler, does not know sm_90"),
        (driver, "_supported_cuda", lambda: (12, 8), "code of CUDA 12.8 and NVRTC, the compiler, is of 13.0; update"),
    ],
)
def test_where_the_kernels_cannot_run_the_reason_is_given(
    hopper: pytest.MonkeyPatch, where, name: str, answer, text: str
) -> None:
    hopper.setattr(where, name, answer)
    reason = cannot(torch.bfloat16, NM(1, 2), 64, 64, HOPPER)
    assert reason is not None
    assert text in reason


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        ((torch.float64, NM(1, 2), 64, 64), "take bfloat16, float16 and float32, not float64"),
        ((torch.float32, NM(1, 2), 64, 64), "TF32, which is not allowed here"),
        ((torch.bfloat16, NM(3, 8), 64, 64), "compute 1:2 and 2:4, not 3:8"),
        ((torch.bfloat16, NM(1, 2, stride=32), 64, 64), "take strides of 1, 2, 4, 8 and 16, not 32"),
        ((torch.bfloat16, NM(1, 2), 20, 64), "take a head_dim of 8, 16, … 256, not 20"),
        ((torch.bfloat16, NM(1, 2), 64, 260), "take a value_dim of 8, 16, … 256, not 260"),
    ],
)
def test_what_no_kernel_takes(hopper: pytest.MonkeyPatch, problem: tuple, text: str) -> None:
    dtype, method, head_dim, value_dim = problem
    reason = cannot(dtype, method, head_dim, value_dim, HOPPER)
    assert reason is not None
    assert text in reason


def test_the_question_does_not_break_a_graph(hopper: pytest.MonkeyPatch) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if cannot(torch.bfloat16, NM(1, 2), 64, 64, HOPPER) is None else x - 1

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
