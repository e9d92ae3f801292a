"""Methods that shorten the sequence, for encoders and vision models: alone, and on top of an assignment of methods.

They are a property of the whole model and save in its linear layers as well as in attention, so that their loss is
measured by the model's output and their time by the model's clock. Of each family the strongest setting that keeps the
limits is looked for on dense attention, and the fastest family is tried on top of an assignment of half of the harm,
which leaves room in the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynattn.pruning import layout, parse

_KEEP = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the tokens, in the last layer
_ABOVE = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)  # threshold of the last layer, in means over the tokens' importances
_MILDER = 2  # steps back after a proof that failed

MEASURED = 3
"""Settings of a method that are measured on one base: seven are halved three times."""


def families(model: object, length: int) -> tuple[tuple[str, ...], ...]:
    """The settings of each method, the mildest first; empty where tokens of the model cannot be pruned.

    Args:
        model: of Transformers.
        length: tokens. Thresholds fit a length, since importances are 1 over it in the mean.
    """
    try:
        layout.find(model)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return ()
    named = (
        [f"spatten-{keep}" for keep in _KEEP],
        [f"ltp-{above / length:.7f}" for above in _ABOVE],
        [f"random-tokens-{keep}" for keep in _KEEP],
    )
    return tuple(tuple(parse(name).name for name in names) for names in named)


def measurements(many: int) -> int:
    """How often a loss is measured: each of so many families on dense attention, and one on top of an assignment."""
    return MEASURED * (many + 1) if many else 0


def milder(families: Sequence[Sequence[str]], name: str) -> str | None:
    """A setting of the same family that leaves less out; None where there is none."""
    names = next(each for each in families if name in each)
    at = names.index(name) - _MILDER
    return names[at] if at >= 0 else None
