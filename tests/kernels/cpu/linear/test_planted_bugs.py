"""Bugs put into the linear layers of a few tokens on purpose: each must be seen by the comparison with loops."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from dynattn.kernels import cpu
from dynattn.kernels.cpu import runner
from tests.covering import part
from tests.kernels.cpu.linear import test_choice, test_many_tokens, test_nm_weights, test_outputs, test_rows

HERE = Path(__file__).parent
SOURCES = HERE.parents[3] / "src/dynattn/kernels/cpu"

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ is on the PATH"),
    pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or ""),
]

BUGS = {
    "a panel's first input is the word's": (
        "linear/rows.h", "job.words[first / kWordInputs] >> first % kWordInputs", "job.words[first / kWordInputs]",
    ),
    "a truth value that is no 1 is none": ("linear/kept_inputs.h", "(((bytes & kLow) + kLow) | bytes)", "(bytes << 7)"),
    "the last truth values are forgotten": (
        "linear/kept_inputs.h", "for (; i < args.inputs; i++) set_bits", "for (; false; i++) set_bits",
    ),
    "all share the first threshold": (
        "linear/kept_inputs.h", "each ? load_any(least + i) :", "false ? load_any(least + i) :",
    ),
    "a tie goes to the last": (
        "linear/kept_inputs.h", "select(greater(member[j], member[i]), one, zero())",
        "select(greater(member[i], member[j]), zero(), one)",
    ),
    "NaN loses": ("linear/kept_inputs.h", "min(score, broadcast(INFINITY))", "score"),
    "a NaN is no reason to keep": ("linear/kept_inputs.h", "if (bits(nan) == 0) return;", "return;"),
    "factors are forgotten": ("linear/kept_inputs.h", "if (args.factors == nullptr) {", "if (true) {"),
    "one token is chosen for": ("linear/choice.h", "smaller(first + kChosenAtOnce, args.tokens)", "first + 1"),
    "a list's last inputs are forgotten": (
        "linear/many_tokens.h", "for (; k < count; k++) {", "for (; false; k++) {",
    ),
    "a tile's last outputs are not there": (
        "linear/many_tokens.h", "if (j < outputs) store(to + j, load_some", "if (false) store(to + j, load_some",
    ),
    "sums begin where the last tile's ended": (
        "linear/many_tokens.h", "add(load(sums + v * kWidth), sum)", "sum",
    ),
    "one list serves all tokens": (
        "linear/many_tokens.h", "s.kept[at], s.count[at],", "s.kept[tile * job.run], s.count[at],",
    ),
    "places are counted from the first eight": ("linear/many_tokens.h", "* static_cast<uint64_t>(i);", "* 0;"),
    "a panel begins with the first input": (
        "linear/rows.h", "const float* row = tile + (inputs[k] - first)", "const float* row = tile + (inputs[k] % 31)",
    ),
    "the last inputs are forgotten": (
        "linear/rows.h", "if (count - k >= 1) add_inputs", "if (count - k > 1) add_inputs",
    ),
    "the last outputs are forgotten": ("linear/rows.h", "for (; j < width; j += kWidth) {", "for (; false;) {"),
    "blocks begin where the last one ended": (
        "linear/rows.h", "j < all; j++) s.sums[j] = 0.0f;", "j < all && block == 0; j++) s.sums[j] = 0.0f;",
    ),
    "no token asks but the last": ("linear/rows.h", "job.asked[panel] |= asked;", "job.asked[panel] = asked;"),
    "the odd vectors' tail is forgotten": (
        "linear/outputs.h", "if (i + kWidth < inputs) accumulate", "if (false) accumulate",
    ),
    "the tail joins no sum": ("linear/outputs.h", "if (i < inputs) accumulate", "if (i + kWidth <= inputs) accumulate"),
    "all tokens want what one wants": (
        "linear/outputs.h", "+ outputs[r]] == 0) continue;", "+ outputs[r]] == 2) continue;",
    ),
    "only the first token wants": ("linear/outputs.h", "token < args.tokens && !wanted;", "token < 1 && !wanted;"),
    "the bias is forgotten": ("linear/call.h", "if (args.bias != nullptr)", "if (false)"),
    "the factors are the first ones": (
        "linear/call.h", "sums[j] *= args.scale[first + j];", "sums[j] *= args.scale[j];",
    ),
    "a place's bits change places": (
        "linear/nm_weights.h", "mask_at<kGroups + kPart>", "mask_at<kPart>",
    ),
    "groups are taken for members": (
        "linear/nm_weights.h", "(block * kM + member) * kGroups + group", "(block * kGroups + group) * kM + member",
    ),
    "one slot serves all": (
        "linear/nm_weights.h", "Weights::load(w[r] + slot * kGroups", "Weights::load(w[r] + block * kGroups",
    ),
}  # fmt: skip
TESTS = [
    (test_choice.test_the_largest_of_each_group, {"inputs": 65, "dtype": torch.bfloat16}),
    (test_choice.test_a_nan_is_kept_and_counts_as_infinity, {"m": 8}),
    (test_choice.test_what_is_above_thresholds, {"inputs": 17, "dtype": torch.float32}),
    (test_many_tokens.test_definition, {"size": (128, 65)}),
    (test_many_tokens.test_a_truth_value_is_any_byte_but_0, {}),
    (test_many_tokens.test_the_kernel_chooses_by_itself, {"size": (63, 65)}),
    *((test_rows.test_definition, {"size": size, "dtype": dtype}) for size in ((63, 65), (300, 520))
      for dtype in (torch.float32, torch.bfloat16)),
    (test_outputs.test_int8_weights_have_a_factor_for_each_output, {}),
    *((test_outputs.test_definition, {"size": size, "dtype": torch.float32}) for size in ((3, 17), (63, 65))),
    (test_nm_weights.test_definition, {"size": (63, 65), "dtype": torch.float32}),
]  # fmt: skip


def build(folder: Path, file: str = "", right: str = "", wrong: str = "") -> Any:
    """The kernels, compiled with ``wrong`` in place of ``right``, in the place of the library's functions."""
    shutil.copytree(SOURCES, folder / "cpu", ignore=shutil.ignore_patterns("*.so", "*.py", "__pycache__"))
    if file:
        text = (folder / "cpu" / file).read_text()
        assert text.count(right) == 1, right
        (folder / "cpu" / file).write_text(text.replace(right, wrong))
    subprocess.run(
        ["g++", "-std=c++17", "-O0", "-w", "-shared", "-fPIC", "-pthread", f"-I{folder / 'cpu'}",
         str(HERE / "entry.cpp"), "-o", str(folder / "linear.so")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return ctypes.CDLL(str(folder / "linear.so"))


def fails(library: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of the tests see something."""

    def run(name: str, args: bytes) -> None:
        assert getattr(library, name.removeprefix("linear_"))(args) == 0

    monkeypatch.setattr(runner, "run", run)
    failed = 0
    for test, arguments in TESTS:
        try:
            test(isa="portable", **arguments)
        except AssertionError:
            failed += 1
    return failed


@pytest.mark.sweep
def test_without_a_bug_nothing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fails(build(tmp_path), monkeypatch) == 0


@pytest.mark.parametrize("bug", part(BUGS, 32, str))
def test_bug_is_seen(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fails(build(tmp_path, *BUGS[bug]), monkeypatch) > 0
