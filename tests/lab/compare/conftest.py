"""What the command wrote for a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from dynattn.lab.compare import Comparison
from tests.forking.python import forking
from tests.lab.compare.running import APP, METHODS, OPTIONS


@pytest.fixture(scope="session")
def written(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, texts: Path, fork_server: str | None
) -> tuple[str, Path]:
    """What the command printed, and the folder it wrote."""
    threads = torch.get_num_threads()
    output = tmp_path_factory.mktemp("reports")
    arguments = ["--model", str(tiny_encoder), "--methods", ",".join(METHODS), "--text", str(texts)]
    with forking(fork_server):
        result = CliRunner().invoke(APP, [*arguments, *OPTIONS, "--output", str(output)], env={"COLUMNS": "200"})
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return result.output, output


@pytest.fixture(scope="session")
def found(written: tuple[str, Path]) -> Comparison:
    (path,) = written[1].glob("*.json")
    return Comparison.model_validate_json(path.read_text())
