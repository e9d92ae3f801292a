"""The tables of arguments against the C header that they mirror."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from dynattn.kernels import cpu
from dynattn.kernels.cpu import arguments, isas, loader, runner
from dynattn.kernels.cpu.arguments import FLOAT, INT32, INT64, POINTER, UINT32, UINT64, Structure

HEADER = Path(__file__).parents[3] / "src" / "dynattn" / "kernels" / "cpu" / "dynattn_cpu.h"  # not installed
STRUCTURES = (
    arguments.NM_FORWARD,
    arguments.ROW_FORWARD,
    arguments.SKIP_FORWARD,
    arguments.BLOCK_FORWARD,
    arguments.NM_BACKWARD,
    arguments.NM_TEXTS,
    arguments.LINEAR,
)
TYPES = {INT32: "int32_t", UINT32: "uint32_t", INT64: "int64_t", UINT64: "uint64_t", FLOAT: "float"}


def offsets(structure: Structure) -> dict[str, int]:
    """Where ``pack`` puts each field: every field in turn is filled with ones, and all others with zeros."""
    start = structure.size - len(structure.pack(**filled(structure, None)))
    found = {}
    for name, _, _ in structure.fields:
        ones = structure.pack(**filled(structure, name))
        found[name] = start + next(i for i, byte in enumerate(ones) if byte)
    return found


def filled(structure: Structure, which: str | None) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, kind, length in structure.fields:
        value = 0 if name != which else struct.unpack("f", b"\xff\x01\x01\x01")[0] if kind == FLOAT else 0x01010101
        values[name] = value if length == 1 else (value,) * length
    return values


def declared(structure: Structure) -> list[str]:
    """The members of the structure in the header, in order."""
    text = re.sub(r"//.*", "", HEADER.read_text())
    body = re.search(r"typedef struct \{([^}]*)\} " + structure.name, text)
    assert body is not None
    return [
        re.split(r"[\s*]", name.strip().split("[")[0])[-1]
        for declaration in body[1].split(";")
        for name in declaration.split(",")
        if name.strip()
    ]


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_the_names_are_the_headers(structure: Structure) -> None:
    first = [structure.begins_with[0]] if structure.begins_with else []
    assert first + [name for name, _, _ in structure.fields] == declared(structure)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_sizes_offsets_and_types_are_the_headers(structure: Structure, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    lines = ["#include <cstddef>", "#include <type_traits>", f'#include "{HEADER}"', f"using S = {structure.name};"]
    lines += [f"static_assert(sizeof(S) == {structure.size});"]
    if structure.begins_with:
        name, other = structure.begins_with
        lines += [f"static_assert(offsetof(S, {name}) == 0 && std::is_same_v<decltype(S::{name}), {other.name}>);"]
    where = offsets(structure)
    for name, kind, length in structure.fields:
        lines.append(f"static_assert(offsetof(S, {name}) == {where[name]});")
        if kind == POINTER:
            lines.append(f"static_assert(std::is_pointer_v<decltype(S::{name})>);")
        else:
            array = f"[{length}]" if length > 1 else ""
            lines.append(f"static_assert(std::is_same_v<decltype(S::{name}), {TYPES[kind]}{array}>);")
    source = tmp_path / "layout.cpp"
    source.write_text("\n".join(lines))
    built = subprocess.run([compiler, "-std=c++17", "-fsyntax-only", str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


def test_the_constants_are_the_headers() -> None:
    text = HEADER.read_text()
    assert f"DYNATTN_MAX_HEAD_DIM = {cpu.MAX_HEAD_DIM} " in text
    assert f"DYNATTN_BAD_PAGE = {runner.BAD_PAGE} " in text
    assert f"DYNATTN_INTERFACE = {loader._INTERFACE} " in text
    for name, code in isas.CODES.items():
        constant = name.upper().replace("-", "_")
        assert f"DYNATTN_ISA_{constant} = {code}" in text
    for dtype, code in arguments.DTYPES.items():
        assert f"DYNATTN_{str(dtype).removeprefix('torch.').upper()} = {code}" in text


def test_every_value_has_to_be_given() -> None:
    values = filled(arguments.ROW_FORWARD, None)
    assert arguments.ROW_FORWARD.pack(**values) == bytes(len(arguments.ROW_FORWARD.pack(**values)))
    del values["weight"]
    with pytest.raises(KeyError, match="weight"):
        arguments.ROW_FORWARD.pack(**values)


def test_a_part_is_of_the_structures_own_fields() -> None:
    with pytest.raises(ValueError, match="is not in list"):
        arguments.NM_BACKWARD.part("grad_out", "query")
