"""The table of the methods that take part, with their names at a budget.

A budget is the share of the allowed pairs that a method is asked to keep, so that methods are compared at equal
density. For methods that take tokens away, it is the share of the tokens in the last layer; for those that set weights
to 0, the share of the linear layers' weights that stay; for those that leave inputs of linear layers out, the share of
the inputs (of an MLP's neurons) that stay. What methods keep is measured. A method whose density follows
the data, or that adds a window, keeps somewhat more or less than the budget, and the report shows how much;
:mod:`dynattn.lab.frontier.budgets` finds what to ask for instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dynattn.lab.frontier.apply import canonical
from dynattn.lab.frontier.cell import Entry, Phase
from dynattn.lab.models import Kind

BUDGETS = (1 / 2, 1 / 4, 1 / 8)
"""The budgets at which methods are compared by default."""

_FINE = 4  # significant digits of what a family is asked for where its budget is solved
_LENGTHS: dict[Kind, int] = {"encoder": 512, "decoder": 1024, "vision": 1370, "speech": 1500}  # where none is given


class _Place(NamedTuple):
    """Everything that a method's name may depend on."""

    budget: float
    length: int
    causal: bool
    searched: bool = False  # whether budgets are a knob that is turned, finely and from one end to the other

    @property
    def digits(self) -> int:
        """How many digits a threshold, a mass or a margin has."""
        return _FINE if self.searched else 2

    @property
    def sinks(self) -> int:
        """How many first keys are always kept: decoders put much weight on a few, and encoders on the class token."""
        return 4 if self.causal else 1


def _nm(suffix: str) -> Callable[[_Place], str]:
    return lambda place: f"nm-1-{round(1 / place.budget)}{suffix}"


def _nm_window(place: _Place) -> str:
    """A window of 1/32 of the keys to each side, and the first keys."""
    return f"nm-1-{round(1 / place.budget)}-w{max(4, place.length // 32)}-s{place.sinks}"


def _window(place: _Place) -> str:
    """Each key less than so far away that a share of the allowed pairs is within it, and the first keys.

    With a causal mask and without one, a window of w = r · n keys holds r · (2 - r) of the pairs.
    """
    reach = 1 - math.sqrt(1 - place.budget)
    return f"window-{max(1, round(reach * place.length))}-s{place.sinks}"


def _threshold(place: _Place) -> str:
    """Half of what exponentially distributed weights would need, ``P(weight > t) = exp(-t · keys)``: real ones have
    a heavier tail, and at half of it MiniLM keeps 0.42, 0.26 and 0.18 of its pairs for budgets of 1/2, 1/4 and 1/8."""
    keys = place.length / 2 if place.causal else place.length  # that a query may attend, on average
    return f"threshold-{float(f'{-math.log(place.budget) / (2 * keys):.{place.digits}g}'):.8f}"


def _mass_of(prefix: str, suffix: str = "") -> Callable[[_Place], str]:
    return lambda place: f"{prefix}-{_mass(place)}{suffix}"


def _mass(place: _Place) -> float:
    """Exponentially distributed weights lose ``1 - b · (1 - ln b)`` at a budget of b; four tenths of that loss are
    allowed, since real ones have a heavier tail, and all of it where the right mass is searched."""
    loss = 1 - place.budget * (1 - math.log(place.budget))
    return float(f"{1 - (1.0 if place.searched else 0.4) * loss:.{place.digits}g}")


def _skip(place: _Place) -> str:
    """Margins of 6, 4.5 and 3 nats for budgets of 1/2, 1/4 and 1/8, about as layers of SmolLM2 keep at 2048 tokens."""
    return f"blockskip-{max(0.0, float(f'{7.5 + 1.5 * math.log2(place.budget):.{place.digits + 1}g}'))}"


def _vertical_slash(place: _Place) -> str:
    """As many columns as slashes: r · n of each hold r and about 2 · r of the pairs."""
    keys = max(1, round(place.budget * place.length / 3))
    return f"verticalslash-{keys}-{keys}-b16"


def _ratio(prefix: str, suffix: str = "") -> Callable[[_Place], str]:
    return lambda place: f"{prefix}-{place.budget}{suffix}"


def _nm_weights(suffix: str) -> Callable[[_Place], str]:
    return lambda place: f"nmweight-2-{round(2 / place.budget)}{suffix}"


def _nm_activations(place: _Place) -> str:
    """Groups of 16 or nearly so, of which 8 stay at a budget of 1/2."""
    every = round(1 / place.budget)
    n = max(1, 16 // every)
    return f"nmact-{n}-{n * every}-norm"


def _scatterbrain(place: _Place) -> str:
    """One hash with so many buckets that about the budget's share of the pairs is computed exactly, and 64 random
    features for the other pairs."""
    return f"scatterbrain-f64-b{2 * max(1, round(0.5 / place.budget))}-r1"


def _cache_window(place: _Place) -> str:
    return f"cache-window-{max(1, round(place.budget * place.length))}-s{place.sinks}"


def _cache_quest(place: _Place) -> str:
    """Whole pages of 16."""
    return f"cache-quest-{16 * max(1, round(place.budget * place.length / 16))}"


def _cut_once(kind: str) -> Callable[[_Place], str]:
    def name(place: _Place) -> str:
        from dynattn.lab.decode.ways import cut_once

        return cut_once(kind, max(6, round(place.budget * place.length)))

    return name


def _ltp(place: _Place) -> str:
    """Importances are 1 over the length in the mean; 0.7 · ln(1 / budget) of that leaves about the budget's share of
    MiniLM's tokens in the last layer."""
    return f"ltp-{float(f'{-0.7 * math.log(place.budget) / place.length:.{place.digits}g}'):.8f}"


class Family(NamedTuple):
    """Methods that differ only in the budget.

    Attributes:
        name: gives the name of the family's method for a place.
        phases: the phases in which it takes part.
        kinds: the kinds of models that it fits.
        baselines: the families that look at nothing and take away as much, which this one has to beat at the same
            budget.
        looks_ahead: whether choices look at the end of the text, so that a score of every token cannot judge them.
    """

    name: Callable[[_Place], str]
    phases: tuple[Phase, ...] = ("prefill", "decode")
    kinds: tuple[Kind, ...] = ("encoder", "decoder", "vision", "speech")
    baselines: tuple[str, ...] = ("random", "fixed")
    looks_ahead: bool = False


_PREFILL: tuple[Phase, ...] = ("prefill",)
_DECODE: tuple[Phase, ...] = ("decode",)
_DECODERS: tuple[Kind, ...] = ("decoder",)
_NOT_CAUSAL: tuple[Kind, ...] = ("encoder", "vision")
_EVERY_TOKEN = ("perplexity",)  # tasks whose score is one of every token
_SHORTENED: tuple[Kind, ...] = ("encoder", "vision")  # models whose layers lose tokens
_TEXT: tuple[Kind, ...] = ("encoder", "decoder")  # models that can be calibrated on texts
_TOKENS = ("random tokens",)
_WEIGHTS = ("random weights",)

FAMILIES = {
    "N:M": Family(_nm("")),
    "N:M, stride 16": Family(_nm("-x16")),
    "N:M, window": Family(_nm_window),
    "top-k": Family(_ratio("topk")),
    "threshold": Family(_threshold),
    "mass": Family(_mass_of("mass")),
    "block top-k": Family(_ratio("blocktopk", "-b16"), _PREFILL),
    "block top-k, low rank": Family(_ratio("blocktopk", "-b16-lowrank"), _PREFILL),
    "block mass": Family(_mass_of("blockmass", "-b16-sampled"), _PREFILL),
    "blocks with a proof": Family(_mass_of("blockbound", "-b16"), _PREFILL),
    "skips": Family(_skip, _PREFILL),
    "clustered": Family(_ratio("clustered-blocktopk", "-b16-sampled-w0-s0"), _PREFILL, _NOT_CAUSAL),
    "vertical-slash": Family(_vertical_slash, _PREFILL, _DECODERS, looks_ahead=True),
    "FlexPrefill": Family(_mass_of("flexprefill", "-b16-m16"), _PREFILL, _DECODERS, looks_ahead=True),
    "window": Family(_window),
    "DSA": Family(_ratio("dsa")),
    "Scatterbrain": Family(_scatterbrain, _PREFILL),
    "random": Family(_ratio("random"), baselines=()),
    "fixed": Family(_ratio("fixed"), baselines=()),
    "SpAtten": Family(_ratio("spatten"), _PREFILL, _SHORTENED, _TOKENS),
    "LTP": Family(_ltp, _PREFILL, _SHORTENED, _TOKENS),
    "random tokens": Family(_ratio("random-tokens"), _PREFILL, _SHORTENED, ()),
    "magnitude": Family(_ratio("magnitude"), _PREFILL, baselines=_WEIGHTS),
    "N:M weights": Family(_nm_weights(""), _PREFILL, baselines=_WEIGHTS),
    "N:M weights, Wanda": Family(_nm_weights("-wanda"), _PREFILL, _TEXT, _WEIGHTS),
    "N:M weights, DSnoT": Family(_nm_weights("-wanda-dsnot"), _PREFILL, _TEXT, _WEIGHTS),
    "Wanda": Family(_ratio("wanda"), _PREFILL, _TEXT, _WEIGHTS),
    "N:M activations": Family(_nm_activations, _PREFILL, baselines=_WEIGHTS),
    "WINA": Family(_ratio("wina"), _PREFILL, baselines=_WEIGHTS),
    "TEAL": Family(_ratio("teal"), _PREFILL, _TEXT, _WEIGHTS),
    "CHESS": Family(_ratio("chess"), _PREFILL, _TEXT, _WEIGHTS),
    "random weights": Family(_ratio("randomweight"), _PREFILL, baselines=()),
    "cache: window": Family(_cache_window, _DECODE),
    "cache: SpAtten": Family(_ratio("cache-spatten-flat"), _DECODE),
    "cache: Quest": Family(_cache_quest, _DECODE),
    "cache: SnapKV": Family(_cut_once("snapkv"), _DECODE),
    "cache: Ada-SnapKV": Family(_cut_once("adasnapkv"), _DECODE),
}
"""Every family by its name."""

WITHOUT_BUDGET = ("efficient",)
"""The methods of the prefill phase that have no budget."""


def check(budgets: Sequence[float]) -> None:
    """Raise unless every budget is one that all families can have.

    Raises:
        ValueError: a budget is not 1 over a whole number, as that of 1:M is.
    """
    for budget in budgets:
        if not 0 < budget <= 0.5 or abs(1 / budget - round(1 / budget)) > 1e-9:
            raise ValueError(
                f"frontier: a budget must be 1 over a whole number of at least 2: got {budget:g}; try 0.5 or 0.25"
            )


def taking_part(kind: Kind, phase: Phase, task: str | None = None, families: Sequence[str] = ()) -> list[str]:
    """The families of the table for one exam.

    Args:
        kind: the model's.
        phase: the exam's.
        task: the exam's; None for all families that fit some.
        families: those that are asked for; empty for all.
    """
    return [
        label
        for label, family in FAMILIES.items()
        if phase in family.phases
        and kind in family.kinds
        and not (family.looks_ahead and task in _EVERY_TOKEN)
        and (not families or label in families)
    ]


def asked(family: str, share: float, kind: Kind, tokens: int | None) -> str:
    """The name of a family's method that is asked to keep a share, finer than the table writes it: a knob.

    Args:
        family: a key of :data:`FAMILIES`.
        share: above 0, below 1.
        kind: the model's.
        tokens: the number of tokens of the exam's texts; None where its inputs have one size.

    Raises:
        ValueError: the family has no method for this share.
    """
    length = _LENGTHS[kind] if tokens is None else tokens
    place = _Place(float(f"{share:.{_FINE}g}"), length, kind == "decoder", searched=True)
    return canonical(FAMILIES[family].name(place))


def entries(
    kind: Kind, phase: Phase, tokens: int | None, budgets: Sequence[float], task: str | None = None,
    families: Sequence[str] = (),
) -> list[Entry]:  # fmt: skip
    """The methods of the table for one exam.

    Args:
        kind: the model's.
        phase: the exam's.
        tokens: the number of tokens of the exam's texts; None where its inputs have one size.
        budgets: shares of the pairs, see :func:`check`.
        task: the exam's; None for all methods that fit some.
        families: those that are asked for; empty for all, and for the methods without a budget.

    Returns:
        One entry a family and budget, and those without a budget.
    """
    length = _LENGTHS[kind] if tokens is None else tokens
    found = [
        Entry(
            name=canonical(FAMILIES[label].name(_Place(budget, length, kind == "decoder"))), family=label, budget=budget
        )
        for label in taking_part(kind, phase, task, families)
        for budget in budgets
    ]
    return [*found, *named(WITHOUT_BUDGET)] if phase == "prefill" and not families else found


def baselines(family: str) -> tuple[str, ...]:
    """Families that a family has to beat; none for the baselines themselves, and for methods without a family."""
    return FAMILIES[family].baselines if family in FAMILIES else ()


def is_baseline(family: str) -> bool:
    """Whether a family looks at nothing, and others are held against it."""
    return any(family in other.baselines for other in FAMILIES.values())


def named(names: Sequence[str]) -> list[Entry]:
    """Methods that were asked for by name: each a family of its own.

    Raises:
        ValueError: no method has this name.
    """
    chosen = dict.fromkeys(canonical(name) for name in names)
    return [Entry(name=name, family=name, budget=None) for name in chosen]
