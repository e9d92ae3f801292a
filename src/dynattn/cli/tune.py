"""``dynattn tune``: make a model faster within a stated loss, and prove it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from dynattn.cli.options import Reports, Threads, TrustRemoteCode, counted
from dynattn.cli.running import running
from dynattn.lab.models.trust import trusting

_NAMES = {"--model": "MODEL", "--text": "--texts", "--tokens": "--length", "--tasks": "--task"}
_SHARE = re.compile(
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<percent>%?)", flags=re.IGNORECASE | re.ASCII
)


def _share(param: typer.CallbackParam, value: str) -> str:
    """A check for a share above 0% and up to 100%, given as 1% or 0.01."""
    if "%" not in value and share(value) >= 1:
        raise typer.BadParameter(
            f"{param.name} must be above 0% and at most 100%, with a percent sign from 1 on: got {value!r}, which "
            f"would be all there is to lose; write {value.strip()}% or a share as 0.01"
        )
    if not 0 < share(value) <= 1:
        raise typer.BadParameter(
            f"{param.name} must be above 0% and at most 100%: got {value!r}; write 1% or 0.01, since that nothing at "
            "all is lost can be proved by no number of texts"
        )
    return value


def share(text: str) -> float:
    """A share given as ``1%`` or ``0.01``; NaN where it is none."""
    match = _SHARE.fullmatch(text.strip())
    return math.nan if match is None else float(match["number"]) / (100 if match["percent"] else 1)


def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="minilm, smollm2, dinov2, whisper (packages carry these); or a folder or hub id."
        ),
    ],
    texts: Annotated[
        Path | None, typer.Option(help="Your own texts: a folder of .txt and .md files, or a file with one a line.")
    ] = None,
    max_loss: Annotated[
        str,
        typer.Option(
            help="The largest relative loss of the task's score, as 1% or 0.01. Of a likelihood: by how much the "
            "perplexity may grow.",
            callback=_share,
        ),
    ] = "1%",
    phase: Annotated[str, typer.Option(help="Of the model's work: prefill, decode, or both, in one file.")] = "prefill",
    length: Annotated[
        int | None,
        typer.Option(help="Tokens. Default: the longest that fits the model and the minutes.", callback=counted()),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the model's weights and of both attentions: float32, bfloat16, float16. Default: bfloat16 where "
            "the processor multiplies it (AMX, or AVX512-BF16 of AMD), else float32."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="To spend: less time means fewer texts, never a weaker claim.")] = 6.0,
    task: Annotated[
        str | None, typer.Option(help="Your own task, module:function; docs/tune.md says what it gives.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes for what can be measured apart; each has the model. Default: none but this one; with "
            "--ray, one for each CPU of the cluster.",
            callback=counted(most=4096),
        ),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Measure it on a Ray cluster.")] = False,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
    output: Reports = Path("reports"),
) -> None:
    """Make a model faster within a stated loss: find a method for each head, and prove it on held-out data.

    Writes model.dynattn.json to load in one line, and a report. Run it again to go on where it was stopped. That
    nothing can be gained is a result as well.
    """
    with running("tune", "evals", _NAMES), trusting(trust_remote_code):
        import torch

        from dynattn.lab.models import fastest_dtype
        from dynattn.lab.terminal import console
        from dynattn.lab.tune.command import run
        from dynattn.lab.tune.settings import Settings

        if threads is not None:
            torch.set_num_threads(threads)
        settings = Settings(
            model=model, texts=texts, max_loss=share(max_loss), phase=cast(Any, phase), length=length,
            dtype=fastest_dtype() if dtype is None else dtype, minutes=minutes, task=task,
        )  # fmt: skip
        run(settings, output, console(), workers, ray)
