"""``dynattn run``: another program, in a process that knows dynattn's attention implementations."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from dynattn.cli.running import running


def run(
    program: Annotated[str, typer.Argument(help="A module, as lm_eval, or the path of a script, as train.py.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="The program's own arguments and options.")] = None,
) -> None:
    """Run another program, for which attn_implementation="dynattn:nm-2-4" is a name that Transformers knows."""
    script = program.endswith(".py")
    with running("run", "transformers"):
        from dynattn.integrations import transformers

        sys.path.insert(0, str(Path(program).resolve().parent) if script else str(Path.cwd()))  # as Python itself does
        if not (Path(program).is_file() if script else _is_module(program)):
            raise ValueError(
                f"run: program must be a module or a script that is there: got {program}; install the module, or give "
                "the script's path, which ends in .py"
            )
        transformers.register()
    sys.argv = [program, *(arguments or [])]
    if script:
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of a package that is not there; "..x"
        return False
