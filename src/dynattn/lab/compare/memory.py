"""Measures the peak memory of a forward with each attention, in a process of its own.

Linux keeps the largest resident size that a process has had, and sets it back to the present size when asked. So the
peak
of each forward is what the system sees: activations, the kernels' scratch memory, and what libraries allocate. Only the
weights do not count, since they are resident before.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from dynattn.children import command
from dynattn.lab.compare.results import Memory
from dynattn.lab.tasks.base import Inputs

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5), clear_refs
_SECONDS = 300


def peaks(model: str, dtype: str, implementations: Mapping[str, str], inputs: Inputs) -> tuple[list[Memory], str]:
    """Measure in a fresh process.

    Args:
        model: its name.
        dtype: that it is loaded in.
        implementations: Transformers' name of each method.
        inputs: the inputs of the forward.

    Returns:
        One entry a method, and what was measured; no entries and the reason where this system cannot tell.
    """
    if not os.access(_CLEAR, os.W_OK):
        return [], "Not measured: only Linux tells a process its own peak."
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "inputs.pt"
        torch.save(inputs, job)
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory of this size is given back
        given = (model, dtype, json.dumps(implementations), str(job), str(torch.get_num_threads()))
        try:
            done = subprocess.run(
                command(__name__, *given),
                capture_output=True,
                text=True,
                env=environment,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [], f"Not measured: the process took longer than {_SECONDS} s."
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [], f"Not measured: the process ended with {done.returncode}: {reason}"
    found = json.loads(done.stdout.splitlines()[-1])
    note = (
        "Peak resident memory during one forward less the resident memory before it, in a process of its own; "
        "the weights do not count, activations outside attention do."
    )
    return [Memory(method=method, bytes=size) for method, size in found.items()], note


@torch.inference_mode()
def _measure(model: str, dtype: str, implementations: Mapping[str, str], inputs: Inputs) -> dict[str, int]:
    from dynattn.integrations.transformers import register
    from dynattn.lab.models import load

    register(*(name.removeprefix("dynattn:") for name in implementations.values() if name.startswith("dynattn:")))
    loaded = load(model, dtype).model
    ours = [name for name in implementations.values() if name.startswith("dynattn:")]
    # What libraries and kernels allocate once and keep counts for no method: about 1 MB of scratch for all our kernels.
    for implementation in (next(iter(implementations.values())), *ours[:1]):
        loaded.set_attn_implementation(implementation)
        loaded(**inputs)
    found = {}
    for method, implementation in implementations.items():
        loaded.set_attn_implementation(implementation)
        _release()
        _CLEAR.write_text(_RESET_PEAK)
        before = _status("VmRSS")
        loaded(**inputs)
        found[method] = max(0, _status("VmHWM") - before)
    return found


def _release() -> None:
    """Give freed memory back to the system, so that a forward cannot reuse it unseen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(ctypes.util.find_library("c")), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
    if match is None:
        raise RuntimeError(f"memory: /proc/self/status must tell {field}: it does not")
    return int(match.group(1)) * 1024


if __name__ == "__main__":
    _model, _dtype, _implementations, _job, _threads = sys.argv[1:]
    torch.set_num_threads(int(_threads))
    print(json.dumps(_measure(_model, _dtype, json.loads(_implementations), torch.load(_job))))
