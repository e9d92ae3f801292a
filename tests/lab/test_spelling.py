"""Options in the words of the command at hand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dynattn.lab import spelling
from dynattn.lab.spelling import spelt

LAB = Path(spelling.__file__).parent
SHARED = ("tasks", "models", "data", "scoring.py", "records.py", "reports.py", "statistics.py", "timing.py")
OF_ALL = {"--trust-remote-code", "--"}


def test_options_are_spelt_as_in_compare_unless_a_command_says_otherwise():
    assert spelt("--text") == "--text"
    with spelling.spelling({"--text": "--texts"}):
        assert spelt("--text") == "--texts"
        assert spelt("--model") == "--model"
        with pytest.raises(KeyError), spelling.spelling({}):
            raise KeyError(spelt("--text"))
        assert spelt("--text") == "--texts"
    assert spelt("--text") == "--text"


def _named(file: Path) -> set[str]:
    """Options in the texts of a file, but for docstrings, arguments of ``spelt`` and commands that others run."""
    tree = ast.parse(file.read_text())
    left: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("spelt", "command"):
            left.update(id(one) for one in ast.walk(node))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left.add(id(node.value))
        if isinstance(node, (ast.List, ast.Tuple)):  # what pip and npm are called with
            left.update(id(one) for one in ast.walk(node))
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left
    ]
    words = [word.strip("'\"`;:.,()") for text in texts for word in text.split()]
    return {word for word in words if word.startswith("--") and word.strip("-")} - OF_ALL


def test_what_commands_share_names_no_option_by_itself():
    files = [file for name in SHARED for file in ([LAB / name] if name.endswith(".py") else (LAB / name).glob("*.py"))]
    assert len(files) > 30
    found = {str(file.relative_to(LAB)): names for file in files if (names := _named(file))}
    assert found == {"data/packages.py": {"--no-deps"}}  # of pip, in an error that says what to run
