"""The options that several commands share: one type for each kind of value. Wrong values are refused before any
work."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

_MOST = 2**31 - 1  # the largest count of anything; a larger one overflows in some library or kernel
_MOST_SEEDS = 1000
MOST_BATCH = 65_536
_MOST_SECONDS = 7 * 24 * 3600.0
_THREADS_A_CORE = 16


def counted(least: int = 1, most: int = _MOST) -> Callable[[typer.CallbackParam, int | None], int | None]:
    """A check for options that count something: a whole number between two bounds, or none given."""

    def check(param: typer.CallbackParam, value: int | None) -> int | None:
        if value is not None and not least <= value <= most:
            rule = f"at least {least}" if value < least else f"at most {most}"
            raise typer.BadParameter(f"{param.name} must be {rule}: got {value}; leave it out for the default")
        return value

    return check


def timed(zero: bool = False) -> Callable[[typer.CallbackParam, float | None], float | None]:
    """A check for options in seconds: finite, and positive unless zero means that nothing is timed."""

    def check(param: typer.CallbackParam, value: float | None) -> float | None:
        if value is None or (0 < value <= _MOST_SECONDS) or (zero and value == 0):
            return value
        rule = "0, which times nothing, or positive" if zero else "positive"
        raise typer.BadParameter(
            f"{param.name} must be {rule}, and at most {_MOST_SECONDS:.0f}, a week: got {value}; a few seconds will do"
        )

    return check


def listed(names: str) -> tuple[str, ...]:
    """The parts of a comma-separated text."""
    return tuple(part for part in (name.strip() for name in names.split(",")) if part)


def whole_numbers(param: typer.CallbackParam, value: str) -> str:
    """A check for comma-separated whole numbers from 1."""
    for part in listed(value):
        if not (part.isascii() and part.isdigit() and 1 <= int(part[:20]) <= _MOST):
            raise typer.BadParameter(
                f"{param.name} must be whole numbers from 1 to {_MOST}, comma-separated: got {part!r}; "
                "for example 128,256"
            )
    return value


def shares(param: typer.CallbackParam, value: str) -> str:
    """A check for comma-separated numbers above 0 and up to 1."""
    for part in listed(value):
        try:
            share = float(part)
        except ValueError:
            share = math.nan
        if not 0 < share <= 1:
            raise typer.BadParameter(
                f"{param.name} must be numbers above 0 and up to 1, comma-separated: got {part!r}; for example 0.5,0.25"
            )
    return value


def output_file(value: Path) -> Path:
    """A check for files and folders that are written. Their names must be text, since reports show them."""
    try:
        str(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"output must be a name in UTF-8: got {value!r}; give another name") from error
    return value


def _threads(param: typer.CallbackParam, value: int | None) -> int | None:
    """Refuse far more threads than are of use. Threads beyond the cores only wait, and too many of them end the
    process."""
    cores = os.cpu_count() or 1
    if value is not None and value > _THREADS_A_CORE * cores:
        raise typer.BadParameter(
            f"{param.name} must be at most {_THREADS_A_CORE} for each of the {cores} cores here, "
            f"{_THREADS_A_CORE * cores}: got {value}; more threads than cores make nothing faster"
        )
    return counted()(param, value)


def positive(param: typer.CallbackParam, value: float | None) -> float | None:
    """A check for numbers that must be positive and finite, or are not given."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{param.name} must be positive and finite: got {value}; leave it out for the default")
    return value


def _option(help: str, check: Callable[..., Any], *names: str) -> Any:
    return typer.Option(*names, help=help, callback=check)


Model = Annotated[
    str, typer.Option(help="minilm, smollm2, dinov2, whisper (packages carry these); or a folder or hub id.")
]
Dtype = Annotated[
    str, typer.Option(help="The dtype of the model's weights and of both attentions: float32, bfloat16, float16.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code that a model's folder or repository brings; else it is refused.",
    ),
]
Text = Annotated[
    Path | None, typer.Option(help="Your own texts: a folder of .txt and .md files, or a file with one a line.")
]
TrainedMethods = Annotated[
    str,
    typer.Option(
        help="Comma-separated, as in nm-1-2,nm-2-4, or of weights, as in sr-ste-2-4; the dense model is always trained "
        "beside them."
    ),
]
Items = Annotated[int | None, _option("Items of each task: passages, pages, texts, keys, pictures.", counted())]
Tokens = Annotated[int | None, _option("Tokens of each text.", counted())]
Steps = Annotated[int | None, _option("Steps of the optimizer. Default: the task's.", counted())]
Seeds = Annotated[
    int, _option("Runs of each method; 3 or more for intervals that hold for others.", counted(most=_MOST_SEEDS))
]
LearningRate = Annotated[float | None, _option("The highest learning rate. Default: the task's.", positive)]
Threads = Annotated[int | None, _option("Threads of PyTorch and the kernels. Default: as PyTorch is set.", _threads)]
Reports = Annotated[Path, _option("Folder for the report and the JSON.", output_file)]
Runs = Annotated[Path, _option("Folder for the report, the JSON and the runs.", output_file)]
