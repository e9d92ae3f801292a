"""Everything that only a device can tell, in one call of less than nine minutes.

    python benchmarks/cuda/run.py --output FOLDER      on a machine with a CUDA device, torch and cuda-core
    python benchmarks/cuda/run.py --steps attention    what an earlier call left out for want of time
    python benchmarks/cuda/run.py --dry-run            anywhere: compiles and calls the same code, times nothing

In order: the machine and its limits, kernels compiled on all cores, probes of the instructions, the tests of
``tests/gpu``, rates of the instructions, whether both forward kernels keep the same keys, attention against its peers,
forward and backward against theirs, compute-sanitizer. ``results.json`` is written anew after each step, so that a run
that is cut short leaves what it had; a step that fails leaves its error there and the next one runs. The last lines are
a table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]

import agree  # noqa: E402
import attention  # noqa: E402
import device  # noqa: E402
import probe  # noqa: E402
import rates  # noqa: E402
import sanitize  # noqa: E402
import torch  # noqa: E402
import training  # noqa: E402

from dynattn.kernels.cuda import driver, loader, warm  # noqa: E402
from dynattn.kernels.cuda.variants import Variant  # noqa: E402
from dynattn.lab import machine  # noqa: E402
from dynattn.lab.bench.roofline import Roofline, roofline  # noqa: E402
from dynattn.lab.records import write_json  # noqa: E402

_TESTS_SECONDS, _SANITIZER_SECONDS = 150, 35  # at most, the second for each tool
_HANGS_SECONDS = 60  # in one test: where it stands is written down
_INTERRUPTED_SECONDS = 15  # that a stopped command may take to end
_TRAINING_SECONDS = 40  # kept for forward and backward when the forward's suites take long
_DRY_ARCH = "sm_90a"
_TOOLS = ("memcheck", "racecheck", "initcheck")
_TOOLS_AT_LEAST = 2  # for which time is kept


class Run:
    """The steps, what is left of the time, and what was found so far."""

    def __init__(self, output: Path, dry: bool, budget: float) -> None:
        self.output, self.dry = output, dry
        self._end = time.monotonic() + budget
        self.results: dict = {"dry_run": dry, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": {}}

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def step(self, name: str, function: Callable[[], object]) -> None:
        """Run one step and write down what it gave, or how it failed."""
        print(f"== {name}, {self.left:.0f} s left", flush=True)
        start = time.monotonic()
        try:
            self.results[name] = function()
        except Exception as error:
            traceback.print_exc()
            self.results[name] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        self.results["seconds"][name] = round(time.monotonic() - start, 1)
        self.output.mkdir(parents=True, exist_ok=True)
        write_json(self.output / "results.json", self.results)

    def machine(self) -> dict:
        found: dict = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
        found |= {"nvrtc": loader.nvrtc_version()}
        if self.dry:
            return found
        limits = roofline(device="cuda")
        return found | machine.machine("cuda") | {
            "describe": driver.device(0), "cannot": driver.unavailable_reason(0),
            "matrix_tflops": (limits.flops or 0) * 1e-12, "copy_tbytes": limits.bandwidth * 1e-12,
        }  # fmt: skip

    def warm(self) -> dict:
        if self.dry:
            work = [
                (Variant("mma", "bfloat16", 64, 1, 2), _DRY_ARCH),
                (Variant("mma", "bfloat16", 64, 2, 4), _DRY_ARCH),
            ]
        else:
            archs = [driver.device(0).arch]
            work = [*warm.chosen(archs, [], every=False), *warm.chosen_for_training(archs, [], every=False)]
        compiled = sum(warm.warm(work))
        return {"kernels": len(work), "compiled": compiled}

    def probe(self) -> list[dict]:
        if self.dry:
            return [
                {"element": element, "selector": selector, "bytes": len(
                    device.compile_cubin(probe.SOURCE, _DRY_ARCH, probe.expression(element, selector))[1]
                )}
                for element, selector in probe.CASES
            ] + [
                {"warpgroup": element, "columns": columns, "selector": selector, "bytes": len(
                    device.compile_cubin(
                        probe.WARPGROUP_SOURCE, _DRY_ARCH, probe.warpgroup_expression(element, columns, selector)
                    )[1]
                )}
                for element, columns, selector in probe.WARPGROUP_CASES
            ]  # fmt: skip
        return probe.run()

    def tests(self) -> dict:
        parallel = ["-n", "0" if self.dry else "12"] if find_spec("xdist") else []
        command = [sys.executable, "-m", "pytest", "-q", "-ra", "--tb=short", "-p", "no:cacheprovider", *parallel]
        command += ["-o", f"faulthandler_timeout={_HANGS_SECONDS}"]  # a kernel that never ends is named
        return _run([*command, str(ROOT / "tests" / "gpu")], min(_TESTS_SECONDS, self.left), self.output / "tests.txt")

    def rates(self) -> list[dict]:
        tried = itertools.islice(rates.rates(), None, None, 4 if self.dry else None)
        return [self._rate(rate) for rate in tried if self.left > 60]

    def _rate(self, rate: rates.Rate) -> dict:
        arch = _DRY_ARCH if self.dry else driver.device(0).arch
        record = {"name": rate.name, "groups": rate.groups, "copying": rate.copying}
        if rate.asynchronous and arch != "sm_90a":
            return record | {"left_out": f"{arch} has no wgmma"}
        symbol, cubin, log = device.compile_cubin(rate.source(), arch)
        record["serialised"] = "serializ" in log.lower()
        if self.dry:
            return record
        multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
        cycles, copied = torch.zeros(2, multiprocessors, dtype=torch.int64, device="cuda")
        sink = torch.empty(multiprocessors * rate.threads, device="cuda")
        source = torch.zeros(1 << 21, dtype=torch.uint8, device="cuda")
        kernel = device.Kernel(symbol, cubin, rates.SHARED_BYTES)
        for _ in range(3):
            kernel(multiprocessors, rate.threads, cycles, sink, source, copied)
        torch.cuda.synchronize()
        spent = cycles.double().median().item()
        return record | {
            "multiply_adds_a_clock": rate.multiply_adds / spent,
            "copied_bytes_a_clock": copied.double().mean().item() / spent,
        }

    def attention(self) -> list[dict]:
        if self.dry:
            return attention.without_a_device(self.output)
        found = self.results.get("machine", {})
        limits = Roofline(found["matrix_tflops"] * 1e12, found["copy_tbytes"] * 1e12, "bfloat16", 0)
        return attention.run(self.output, limits, lambda: self.left > self._reserve + _TRAINING_SECONDS)

    def earlier_kernel(self) -> list[dict]:
        if self.dry or driver.device(0).arch != "sm_90a":
            return []
        return attention.earlier_kernel()

    def agree(self) -> list[dict]:
        """Whether both forward kernels keep the same keys."""
        return [] if self.dry or driver.device(0).arch != "sm_90a" else agree.run()

    def training(self) -> list[dict]:
        """Forward and backward together."""
        if self.dry:
            return training.measure(training.TINY, device="cpu")
        records = []
        for workload in training.workloads():
            if self.left < self._reserve:
                records.append({"label": workload.label, "left_out": "no time"})
                continue
            records += (found := training.measure(workload))
            print("  ", training.line(found), flush=True)
        return records

    @property
    def _reserve(self) -> float:
        """Seconds that the sanitizer needs."""
        return _SANITIZER_SECONDS * _TOOLS_AT_LEAST + 20

    def sanitizer(self) -> dict:
        if self.dry:
            return {"calls": sanitize.run("cpu")}
        program = [sys.executable, str(Path(__file__).parent / "sanitize.py")]
        subprocess.run(program, check=True, env=_environment(), timeout=max(10, self.left))  # compiles what is missing
        found = {}
        for tool in _TOOLS:
            if self.left > 15:
                command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *_only_ours(), *program]
                found[tool] = _run(command, min(_SANITIZER_SECONDS, self.left - 5), self.output / f"{tool}.txt")
        return found


def _only_ours() -> list[str]:
    """The option that leaves torch's kernels alone; it has changed its name."""
    text = subprocess.run(["compute-sanitizer", "--help"], capture_output=True, text=True).stdout
    names = (name for name in ("--kernel-regex", "--kernel-name", "--filter") if name in text)
    return [word for name in itertools.islice(names, 1) for word in (name, "kns=dynattn")]


def _run(command: list[str], seconds: float, log: Path) -> dict:
    """Exit code and last line of a command; its output goes to ``log``. Ended after so many seconds."""
    if shutil.which(command[0]) is None:
        return {"failed": f"{command[0]} is not on the PATH"}
    found = {}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=_environment(), cwd=ROOT, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            found = {"failed": f"stopped after {seconds:.0f} s"}
            _end(process)
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    print("  ", lines[-1], flush=True)
    return found | {"exit_code": process.returncode, "last_line": lines[-1]}


def _end(process: subprocess.Popen) -> None:
    """First as by Ctrl-C, at which pytest writes what has failed so far; then whatever of its processes is left."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_INTERRUPTED_SECONDS)


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def _summary(results: dict) -> str:
    lines = [f"{name}: {json.dumps(results.get(name))[:400]}" for name in ("machine", "warm", "tests", "sanitizer")]
    lines += [f"probe: {json.dumps(record)}" for record in _list(results.get("probe"))]
    lines += [f"rate: {json.dumps(record)}" for record in _list(results.get("rates"))]
    cases: dict[str, list[dict]] = {}
    for record in _list(results.get("attention")):
        if "function" in record:
            cases.setdefault(record["label"], []).append(record)
    lines += [attention.line(records) for records in cases.values()]
    lines += [attention.line([record]) for record in _list(results.get("earlier_kernel"))]
    lines += [f"agree: {json.dumps(record)}" for record in _list(results.get("agree"))]
    groups: dict[str, list[dict]] = {}
    for record in _list(results.get("training")):
        if "function" in record:
            groups.setdefault(record["label"], []).append(record)
    lines += [training.line(records) for records in groups.values()]
    return "\n".join([*lines, f"seconds: {json.dumps(results['seconds'])}"])


def _list(step: object) -> list[dict]:
    return step if isinstance(step, list) else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT") or "reports/cuda"))
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--steps", default="", help="comma-separated, besides machine: what an earlier call left out")
    parser.add_argument("--budget", type=float, default=510, help="seconds")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --dry-run runs without one")
    run = Run(arguments.output.resolve(), arguments.dry_run, arguments.budget)
    steps = (
        run.warm, run.probe, run.tests, run.agree, run.rates, run.attention, run.earlier_kernel, run.training,
        run.sanitizer,
    )  # fmt: skip
    asked = arguments.steps.split(",") if arguments.steps else [step.__name__ for step in steps]
    unknown = set(asked) - {step.__name__ for step in steps}
    if unknown:
        parser.error(f"--steps must name steps: got {', '.join(sorted(unknown))}")
    for step in (run.machine, *(step for step in steps if step.__name__ in asked)):
        run.step(step.__name__, step)
    summary = _summary(run.results)
    (run.output / "summary.txt").write_text(summary + "\n")
    print(summary)
    found = run.results.values()
    return int(any(isinstance(step, dict) and ("failed" in step or step.get("exit_code")) for step in found))


if __name__ == "__main__":
    raise SystemExit(main())
