"""Describes the machine on which a figure was taken, since a time says nothing without it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import dynattn
from dynattn.kernels import cpu
from dynattn.kernels.cuda import loader

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")

_SMI = {  # our name: nvidia-smi's
    "driver": "driver_version",
    "clock": "clocks.sm",
    "clock_most": "clocks.max.sm",
    "clock_memory": "clocks.mem",
    "watts_most": "power.limit",
}


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine, the versions and the settings that decide speed.

    Args:
        device: ``cuda`` to describe the current GPU too.

    Returns:
        A dictionary that JSON can hold: processor, cores (usable by this process), instruction sets, caches of one
        core, memory in GB, operating system, versions, threads, load (of the machine, last minute), the UTC date, and
        the GPU (name, architecture, sizes, driver, libraries, clocks in MHz) or None. A key whose value cannot be found
        on this system is None.
    """
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": _cores(),
        "isa": cpu.best_isa() if cpu.unavailable_reason() is None else None,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "caches": _caches(),
        "memory_gb": _memory_gb(),
        "os": f"{platform.system()} {platform.release()}",
        "virtual": "hypervisor" in _cpuinfo().get("flags", "").split() if _CPUINFO.exists() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dynattn": dynattn.__version__,
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpu": _gpu() if device == "cuda" else None,
    }


def briefly(machine: dict[str, Any], processes: int = 1) -> str:
    """What a reader of a page has to know about it: processor, threads, versions and date.

    Args:
        machine: as :func:`machine` gives it.
        processes: among which the work was split.
    """
    shared = f" in each of {processes} processes" if processes > 1 else ""
    return (
        f"{machine['processor']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}{shared}, "
        f"torch {machine['torch']}, dynattn {machine['dynattn']}, {machine['date']}"
    )


def describe(machine: dict[str, Any]) -> str:
    """One line for the head of a table."""
    isa = machine["isa"] or "no kernel"
    gpu = machine.get("gpu")
    if gpu is not None:
        return (
            f"{gpu['name']}, {gpu['multiprocessors']} multiprocessors, driver {gpu['driver']}, CUDA {gpu['cuda']}, "
            f"cuDNN {gpu['cudnn']}; torch {machine['torch']}, dynattn {machine['dynattn']}; {machine['date']}"
        )
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {isa}; "
        f"torch {machine['torch']}, dynattn {machine['dynattn']}; {machine['os']}, Python {machine['python']}; "
        f"{machine['date']}"
    )


def _gpu() -> dict[str, Any]:
    """The current GPU and what its kernels depend on."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "l2_mb": round(properties.L2_cache_size / 1e6, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvrtc": _dotted(loader.nvrtc_version()) if loader.missing() is None else None,
        "flash_attention_3": _installed("fa3-fwd", "flash-attn-3"),
        **_nvidia_smi(str(getattr(properties, "uuid", ""))),
    }


def _nvidia_smi(uuid: str) -> dict[str, str | None]:
    """What the driver's tool tells of the GPU; None each where it does not."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI.values())}", "--format=csv,noheader,nounits"]
    if uuid:
        command += ["-i", uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return dict.fromkeys(_SMI)
    values = [value.strip() for value in done.stdout.partition("\n")[0].split(",")]
    told = done.returncode == 0 and len(values) == len(_SMI)
    return dict(zip(_SMI, values, strict=True)) if told else dict.fromkeys(_SMI)


def _installed(*names: str) -> str | None:
    """Version of the first of these packages that is there."""
    for name in names:
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty elsewhere than on Linux."""
    if not _CPUINFO.exists():
        return {}
    first = _CPUINFO.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _processor() -> str:
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in info:  # virtual machines often hide the name; family and model give the microarchitecture
        name += f" (family {info['cpu family']}, model {info['model']})"
    return name


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _caches() -> dict[str, str] | None:
    """For example ``{"L1d": "32K", "L1i": "32K", "L2": "1024K", "L3": "32768K"}``."""
    caches = {}
    for index in sorted(_CACHES.glob("index*")):
        level, kind = (index / "level").read_text().strip(), (index / "type").read_text().strip()
        suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
        caches[f"L{level}{suffix}"] = (index / "size").read_text().strip()
    return caches or None


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):  # no sysconf on Windows
        return None
