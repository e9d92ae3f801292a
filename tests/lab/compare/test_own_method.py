"""A method of a user's own is compared as the package's are, in every process that takes part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.methods.test_own_method import environment, python  # noqa: F401  # a fixture


@pytest.mark.slow
def test_in_compare(environment: dict[str, str], tiny_encoder: Path, texts: Path, tmp_path: Path) -> None:  # noqa: F811
    output = tmp_path / "reports"
    done = python(
        environment, "-m", "dynattn", "compare", "--model", str(tiny_encoder), "--text", str(texts), "--methods",
        "nearest-9,topk-0.25", "--tasks", "retrieval", "--items", "4", "--tokens", "64", "--seconds", "0.05",
        "--threads", "1", "--output", str(output),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (record,), (page,) = output.glob("*.json"), output.glob("*.html")
    found = json.loads(record.read_text())
    assert found["methods"] == ["nearest-9", "topk-0.25"]
    assert [entry["method"] for entry in found["kept"]] == ["nearest-9", "topk-0.25"]
    assert {"nearest-9", "topk-0.25"} <= {entry["method"] for entry in found["memory"]}  # measured in a process apart
    assert "nearest-9" in page.read_text()
