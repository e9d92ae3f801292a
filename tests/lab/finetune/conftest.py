"""What the command wrote for a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from dynattn.lab.training.results import Study
from tests.lab.finetune.running import APP, RETRIEVAL, SIZES


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, many_texts: Path) -> tuple[str, Path]:
    """What the command printed, and the folder it wrote."""
    output = tmp_path_factory.mktemp("reports")
    arguments = [*RETRIEVAL, "--model", str(tiny_encoder), "--text", str(many_texts), "--items", "6", "--seeds", "2"]
    arguments += ["--methods", "nm-1-2", "--keep-models", "--output", str(output)]
    result = CliRunner().invoke(APP, [*arguments, *SIZES], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output, output


@pytest.fixture(scope="session")
def found(written: tuple[str, Path]) -> Study:
    (path,) = written[1].glob("*.json")
    return Study.model_validate_json(path.read_text())
