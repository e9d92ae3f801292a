"""What a run of ``dynattn tune --phase decode`` found: in a terminal, as a page, and as the file to load."""

from __future__ import annotations

from markupsafe import Markup
from rich.console import Console

from dynattn.integrations.transformers import Evidence, Tuned, attention_modules
from dynattn.lab.machine import describe
from dynattn.lab.models import Pretrained
from dynattn.lab.page import Section, facts, render, table
from dynattn.lab.terminal import Grid, print_grid, say
from dynattn.lab.tune.candidates import DENSE
from dynattn.lab.tune.decode import Decoding
from dynattn.lab.tune.decoding import parted
from dynattn.lab.tune.linears.words import grid as linears_grid
from dynattn.lab.tune.linears.words import sentence
from dynattn.lab.tune.terminal import losses_of
from dynattn.lab.tune.write import evidence_of
from dynattn.sparsity import LinearSetting

_USE = """tuned = dynattn.integrations.transformers.load(model, "model.dynattn.json")
model.generate(**prompt, past_key_values=dynattn.kv_caches.make(tuned.cache, model.config))"""
_CACHE = "cache-"


def show(found: Decoding, console: Console) -> None:
    """Print the verdict and the tables.

    Args:
        found: the run.
        console: where to.
    """
    say(console, "")
    for line in _sentences(found):
        say(console, line)
    for grid in (*_linears(found), _considered(found)):
        print_grid(console, grid)
    if found.tries:
        print_grid(console, losses_of([each.lost for each in found.tries]))


def page(found: Decoding) -> str:
    """The report, one HTML text.

    Args:
        found: the run.
    """
    title = f"{found.model}, decoding" if found.way is not None else f"{found.model}: keep the default cache"
    return render(title, f"{found.description}. {describe(found.machine)}", sections(found))


def sections(found: Decoding) -> list[Section]:
    """What the page is made of."""
    lines = Markup("").join(Markup("<li>{}</li>").format(line) for line in _sentences(found))
    use = Markup("<pre>{}</pre>").format(_USE) if found.way is not None else ""
    made = [Section("What was found", Markup("<ul>{}</ul>{}").format(lines, use))]
    grids = [
        *_linears(found),
        _considered(found),
        *([losses_of([each.lost for each in found.tries])] if found.tries else []),
    ]
    made += [Section(grid.title, table(grid.columns, [list(map(str, row)) for row in grid.rows])) for grid in grids]
    body = Markup(facts(found.settings)) + Markup(facts(found.machine))
    return [*made, Section("The run", body, f"It took {found.seconds:.0f} s.")]


def tuned(found: Decoding, pretrained: Pretrained) -> Tuned:
    """What the file says: attention is dense, over a cache that may forget; linear layers may leave something out.

    Args:
        found: a run that made decoding faster.
        pretrained: the model.
    """
    cache, method = attends(found)
    return Tuned.of(
        pretrained.model, dict.fromkeys(attention_modules(pretrained.model), method), dtype=found.dtype, phase="both",
        lengths=(1, found.length), cache=cache, linears=linears(found), machine=found.machine, evidence=evidence(found),
    )  # fmt: skip


def linears(found: Decoding) -> dict[str, LinearSetting]:
    """What linear layers leave out, as the file has it."""
    return {} if found.linears is None else {"decode": LinearSetting(**found.linears)}


def attends(found: Decoding) -> tuple[str, str]:
    """The cache's name, and that of the method by which all modules attend over it.

    Raises:
        ValueError: decoding did not become faster.
    """
    if found.way is None:
        raise ValueError("tune: a file is written where decoding became faster alone")
    way = parted(found.way)[0]
    cache = way.removeprefix(_CACHE) if way.startswith(_CACHE) else "full"
    return cache, DENSE


def evidence(found: Decoding) -> tuple[Evidence, ...]:
    """What was measured, as the file holds it."""
    speed = found.speed
    if speed is None:
        return ()
    raced = Evidence(
        what="speed-up of a decode step over Transformers' default cache",
        data=f"steps after {found.length} tokens, interleaved", value=speed.speedup.median, low=speed.speedup.q1,
        high=speed.speedup.q3, items=speed.rounds,
        details={"interval": "quartiles over rounds", "phase": "decode", "dense_seconds": speed.dense.median,
                 "tuned_seconds": speed.tuned.median},
    )  # fmt: skip
    return (raced,) if found.exact else (*map(evidence_of, found.tries[-1].lost), raced)


def _sentences(found: Decoding) -> list[str]:
    said = [f"{found.model}, decoding after {found.length} tokens, {found.dtype}: {found.reason}."]
    if found.speed is not None:
        speed = found.speed
        said.append(
            f"A step: {speed.dense.median * 1e3:.1f} ms with Transformers' default cache, "
            f"{speed.tuned.median * 1e3:.1f} ms tuned (quartiles of the speed-up {speed.speedup.q1:.2f} to "
            f"{speed.speedup.q3:.2f}, {speed.rounds} rounds in alternation)."
        )
    if found.linears is not None:
        said.append(f"In steps something is left out by linear layers: {sentence(found.linears['methods'])}.")
    return said


def _linears(found: Decoding) -> list[Grid]:
    return [] if found.linears is None else [linears_grid(found.linears["methods"])]


def _considered(found: Decoding) -> Grid:
    rows = [
        [each.way, *(f"{loss:+.2%}" for loss in each.losses), "yes" if each.keeps else "no",
         "–" if each.speedup is None else f"{each.speedup:.2f}×"]
        for each in found.considered
    ]  # fmt: skip
    columns = ["way to decode", "loss", "loss of hidden numbers", "keeps the limits", "a step"]
    if any(each.linears is not None for each in found.considered):
        columns.append("left out by linear layers")
        rows = [[*row, each.linears or "nothing"] for row, each in zip(rows, found.considered, strict=True)]
    return Grid("What was considered, on the texts of the search", columns, rows)
