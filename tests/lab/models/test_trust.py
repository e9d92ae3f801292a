"""Code of a model's folder: never run unasked, in this process or in others, and never asked about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")

from typer.testing import CliRunner

from dynattn.cli import app
from dynattn.lab.models import load
from dynattn.lab.models.trust import TRUST, trusted, trusting

CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel
Path(__file__).with_name("it-ran").touch()
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertModel):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny encoder that says its classes are in a file of its folder."""
    import shutil

    from transformers import dynamic_module_utils

    folder = tmp_path / "own"
    shutil.copytree(tiny_encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig", "AutoModel": "code.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(CODE)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def _rewrite(path: Path, **fields: Any) -> None:
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(held | fields))


def _ran(own: Path) -> bool:
    return bool(list(own.parent.rglob("it-ran")))


COMMANDS = ("compare", "inspect", "finetune", "frontier", "tune")


def _refused(command: str, own: Path) -> Any:
    named = [str(own)] if command == "tune" else ["--model", str(own)]
    result = CliRunner().invoke(app, [command, *named, "--output", str(own.parent / "o")], input="y\n" * 9)
    assert result.exit_code == 2, result.output
    return result


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_it_without_asking(own: Path, command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TRUST, "1")  # only the option counts
    result = _refused(command, own)
    assert "brings code of its own, which is not run" in result.output
    assert "--trust-remote-code" in result.output
    assert not _ran(own)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_refused_where_transformers_has_a_class_of_this_type_too(own: Path, command: str):
    _rewrite(own / "config.json", model_type="bert")
    result = _refused(command, own)
    assert "brings code of its own, which is not run" in result.output
    assert "or take auto_map out of config.json for what Transformers has" in result.output
    assert not _ran(own)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("config.json", {"AutoModel": "code.OwnModel"}),
        ("config.json", {"AutoTokenizer": ["code.Own", None]}),
        ("tokenizer_config.json", {"AutoTokenizer": ["code.Own", None]}),
        ("tokenizer_config.json", ["code.Own", None]),
        ("processor_config.json", {"AutoProcessor": "code.Own"}),
        ("preprocessor_config.json", {"AutoImageProcessor": "code.Own"}),
    ],
)
def test_code_that_any_file_names_is_refused(own: Path, file: str, named: Any):
    _rewrite(own / "config.json", model_type="bert", auto_map={})
    load(str(own))
    _rewrite(own / file, auto_map=named)
    with pytest.raises(ValueError, match=f"code of its own.*or take auto_map out of {file}"):
        load(str(own))
    assert not _ran(own)


def test_a_type_of_transformers_is_run_by_the_code_that_is_brought_where_a_person_says_so(own: Path):
    _rewrite(own / "config.json", model_type="bert", auto_map={"AutoModel": "code.OwnModel"})
    (own / "code.py").write_text(CODE.replace("    config_class = OwnConfig\n", "    own = True\n"))
    with trusting(True):
        assert type(load(str(own)).model).__name__ == "OwnModel"


def test_it_is_run_where_a_person_says_so(own: Path):
    with pytest.raises(ValueError, match="code of its own"):
        load(str(own))
    with trusting(True):
        found = load(str(own))
    assert type(found.model).__name__ == "OwnModel"
    assert found.kind == "encoder"
    assert _ran(own)
    assert not trusted()


@pytest.mark.usefixtures("forked_python")
def test_other_processes_inherit_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(TRUST, raising=False)
    ask = [sys.executable, "-c", "from dynattn.lab.models.trust import trusted; print(trusted())"]
    for given in (True, False):
        with trusting(given):
            done = subprocess.run(ask, capture_output=True, text=True, check=True, env=dict(os.environ))
        assert done.stdout.strip() == str(given)
