"""A file that makes a model faster within a proved loss: ``model.dynattn.json``.

    load(model, "model.dynattn.json")        # or attn_implementation="dynattn:model.dynattn.json", after register()

It holds a method for each attention module, what linear layers leave out, a fingerprint of the model, and how the claim
about its loss was proved: dtype, phase, lengths, machine, evidence, versions. Loading it into another model is an
error. The first call outside of the lengths or the dtype gives a warning.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dynattn.integrations.transformers import assigned, thinned
from dynattn.integrations.transformers.assigned import PHASES, attention_modules, checked
from dynattn.integrations.transformers.fingerprint import Fingerprint, is_dtype
from dynattn.methods import Method, parse
from dynattn.paths import write_text_whole
from dynattn.version import VERSION

if TYPE_CHECKING:
    from dynattn.sparsity import LinearSetting

FORMAT = 1
"""The version of the file's format that this dynattn writes and reads."""

SUFFIX = ".json"
_REMEDY = "run `dynattn tune` again, or take the file that it wrote"


def _check_pruning(name: str) -> None:
    from dynattn import pruning  # imports torch._dynamo, which takes a second

    if pruning.find(name) is None:
        raise ValueError(f"pruning must be the name of a method that shortens the sequence, or null: got {name!r}")


@dataclass(frozen=True)
class Evidence:
    """One thing that was measured.

    Attributes:
        what: what was measured, for example ``loss of perplexity, relative``.
        data: the data that it was measured on, for example ``40 held-out Wikipedia articles of 4096 tokens``.
        value: the figure.
        low: the lower end of its interval, or None where the interval is open there.
        high: the upper end, or None.
        level: the level of the interval, for example 0.95; None where there is no interval.
        items: how many items were measured.
        details: further numbers and words.
    """

    what: str
    data: str
    value: float
    low: float | None = None
    high: float | None = None
    level: float | None = None
    items: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuned:
    """The content of a tuned file.

    Attributes:
        model: the fingerprint of the model.
        dtype: the dtype of the queries that were measured, for example ``bfloat16``.
        phase: the phase in which the methods are used, ``prefill``, ``decode`` or ``both``; the other one is dense.
        lengths: the fewest and the most keys for which the evidence holds.
        methods: the names of the methods, by the names of all attention modules that take part.
        pruning: the name of the method that shortens the sequence, or None.
        machine: the machine that was measured on.
        evidence: what was measured.
        versions: the versions of packages.
        cache: the name of the cache to decode with, as ``dynattn.kv_caches.make`` takes it, or None.
        decoding: the name of the method by which all modules decode where ``methods`` are of the prefill phase, or None
            for dense attention.
        linears: what linear layers leave out, by phase: ``prefill`` is calls of more than eight tokens, ``decode`` all
            others; a phase that is not named is dense.
    """

    model: Fingerprint
    dtype: str
    phase: str
    lengths: tuple[int, int]
    methods: Mapping[str, str]
    pruning: str | None
    machine: Mapping[str, Any]
    evidence: tuple[Evidence, ...]
    versions: Mapping[str, str]
    cache: str | None = None
    decoding: str | None = None
    linears: Mapping[str, LinearSetting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_dtype(self.dtype):
            raise ValueError(f"dtype must be a floating-point one of PyTorch's: got {self.dtype!r}; try 'bfloat16'")
        if self.phase not in PHASES:
            raise ValueError(f"phase must be one of {', '.join(PHASES)}: got {self.phase!r}")
        if len(self.lengths) != 2 or not 1 <= self.lengths[0] <= self.lengths[1]:
            raise ValueError(f"lengths must be the fewest and the most keys, from 1 on: got {list(self.lengths)}")
        if len(self.methods) != self.model.layers:
            raise ValueError(
                f"methods must be one for each of {self.model.layers} attention modules: got {len(self.methods)}"
            )
        if self.pruning is not None:
            _check_pruning(self.pruning)
        if self.decoding is not None and self.phase != "prefill":
            raise ValueError(
                f"decoding must be left out unless methods are of the prefill phase: phase is {self.phase!r}"
            )
        if unknown := [phase for phase in self.linears if phase not in thinned.PHASES]:
            raise ValueError(f"linears must be by phase, {' or '.join(thinned.PHASES)}: got {unknown[0]!r}")
        named = {f"methods.{module}": name for module, name in self.methods.items()}
        for where, name in {**named, **({} if self.decoding is None else {"decoding": self.decoding})}.items():
            try:
                parse(name)
            except ValueError as error:
                raise ValueError(
                    f"{where} must be a method's name: got {name!r}, which no class of this process knows; "
                    "import the module that defines it first, or name it in DYNATTN_METHODS"
                ) from error

    @classmethod
    def of(
        cls,
        model: Any,
        methods: Mapping[str, Method | str],
        *,
        dtype: torch.dtype | str,
        phase: str,
        lengths: tuple[int, int],
        pruning: str | None = None,
        machine: Mapping[str, Any] | None = None,
        evidence: tuple[Evidence, ...] = (),
        cache: str | None = None,
        decoding: str | None = None,
        linears: Mapping[str, LinearSetting] | None = None,
    ) -> Tuned:
        """The content of a file for a model that was tuned. The versions are those of this process.

        Args:
            model: a Transformers model with its weights.
            methods: as :func:`assign` takes them.
            dtype: the dtype of the queries that were measured.
            phase: the phase in which the methods are used; the other one is dense.
            lengths: the fewest and the most keys for which the evidence holds.
            pruning: the name of the method that shortens the sequence.
            machine: the machine that was measured on.
            evidence: what was measured.
            cache: the name of the cache to decode with.
            decoding: the name of the method by which all modules decode; None for dense attention.
            linears: what linear layers leave out, by phase.

        Raises:
            ValueError: an argument does not fit the model, or is out of its range.
        """
        given = checked(model, methods, phase)
        return cls(
            model=Fingerprint.of(model, len(given)),
            dtype=str(dtype).removeprefix("torch."),
            phase=phase,
            lengths=(int(lengths[0]), int(lengths[1])),
            methods={name: method.name for name, method in given.items()},
            pruning=pruning,
            machine=dict(machine or {}),
            evidence=tuple(evidence),
            versions=_versions(),
            cache=cache,
            decoding=decoding,
            linears=dict(linears or {}),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file. After a kill, or on a full disk, either the earlier file or this one is there, whole.

        Args:
            path: the path of the file, ending in ``.json``; its folder is made where there is none.

        Raises:
            ValueError: the path ends otherwise, or a figure is not finite.
            OSError: the file cannot be written.
        """
        target = Path(os.path.realpath(_checked_path(path)))
        linears = {phase: setting.plain() for phase, setting in self.linears.items()}
        told = {"format": FORMAT, **asdict(self), "linears": linears}
        try:
            text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Tuned.save: evidence and machine must be finite numbers, words, lists and dictionaries: {error}; "
                "leave out what is not known"
            ) from error
        write_text_whole(target, text)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Tuned:
        """Read a file.

        Args:
            path: the path of the file.

        Raises:
            ValueError: there is no such file, it is cut short or damaged, of another version, or a field of it is
                missing, unknown or out of its range; the text names the file, the field and a remedy.
        """
        path = _checked_path(path)
        try:
            told = json.loads(path.read_bytes())
        except OSError as error:
            raise ValueError(
                f"Tuned.read: {path} must be a file that can be read: {error.strerror}; {_REMEDY}"
            ) from error
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"Tuned.read: {path} must hold JSON: it is cut short or damaged ({reason}); {_REMEDY}"
            ) from error
        try:
            return _tuned(told)
        except ValueError as error:
            raise ValueError(f"Tuned.read: {path} must hold a tuned model: {error}; {_REMEDY}") from error

    def refuse_other(self, model: Any, weights: bool = True, source: str = "the file") -> None:
        """Refuse another model than the one that was tuned.

        Args:
            model: a Transformers model.
            weights: whether its weights are there to be compared.
            source: the name of the file, for the error.

        Raises:
            ValueError: the model is another one; the text says in what.
        """
        names = attention_modules(model)
        difference = self.model.difference(Fingerprint.of(model, len(names)), weights)
        missing = sorted(set(self.methods) ^ set(names))
        if difference is None and missing:
            difference = f"attention modules have other names: {missing[0]} is only in one of the two"
        if difference is not None:
            ours, here = (versions.get("transformers") for versions in (self.versions, _versions()))
            told = f" (made with transformers {ours}; this is {here})" if ours != here else ""
            raise ValueError(
                f"load: the model must be the one that {source} was made for: {difference}{told}; run `dynattn tune` "
                "on this model"
            )

    def limits(self, source: str) -> assigned.Limits:
        """The limits of the calls for which the claim was proved."""
        everywhere = [phase for phase in self.linears if self.phase in ("both", phase)]
        if self.pruning is not None:
            everywhere.append("prefill")
        return assigned.Limits(source, getattr(torch, self.dtype), *self.lengths, tuple(everywhere))


def _tuned(told: Any) -> Tuned:
    """The file's value as an object; errors name the field."""
    told = dict(_of(told, dict, "the whole"))
    version = told.pop("format", None)
    if version != FORMAT:
        later = isinstance(version, int) and not isinstance(version, bool) and version > FORMAT
        raise ValueError(
            f"format is {version!r}, and this dynattn reads {FORMAT}" + ("; a later dynattn wrote it" * later)
        )
    for name in ("cache", "decoding"):  # files of before have none
        told.setdefault(name, None)
    told.setdefault("linears", {})
    _complete(Tuned, told, "")
    model = _of(told["model"], dict, "model")
    _complete(Fingerprint, model, "model.")
    for name in ("model_type", "kind", "shapes", "dtype", "weights"):
        _of(model[name], str, f"model.{name}")
    _of(model["layers"], int, "model.layers")
    for name, value in _of(model["config"], dict, "model.config").items():
        _of(value, (int, float), f"model.config.{name}")
    for name in ("dtype", "phase"):
        _of(told[name], str, name)
    for name in ("methods", "versions"):
        for key, value in _of(told[name], dict, name).items():
            _of(value, str, f"{name}.{key}")
    for index, length in enumerate(_of(told["lengths"], list, "lengths")):
        _of(length, int, f"lengths.{index}")
    _of(told["machine"], dict, "machine")
    for name in ("pruning", "cache", "decoding"):
        _of(told[name], (str, type(None)), name)
    linears = {phase: _linears(its, f"linears.{phase}") for phase, its in _of(told["linears"], dict, "linears").items()}
    evidence = [_evidence(each, f"evidence.{i}") for i, each in enumerate(_of(told["evidence"], list, "evidence"))]
    try:
        fingerprint = Fingerprint(**model)
    except ValueError as error:
        raise ValueError(f"model: {error}") from error
    made = {"model": fingerprint, "lengths": tuple(told["lengths"]), "evidence": tuple(evidence), "linears": linears}
    return Tuned(**{**told, **made})


def _linears(told: Any, where: str) -> LinearSetting:
    from dynattn.sparsity import LinearSetting  # imports torch._dynamo, which takes a second

    told = _of(told, dict, where)
    _complete(LinearSetting, told, f"{where}.")
    for site, name in _of(told["methods"], dict, f"{where}.methods").items():
        _of(name, str, f"{where}.methods.{site}")
    for kind in ("thresholds", "norms"):
        for site, numbers in _of(told[kind], dict, f"{where}.{kind}").items():
            for i, number in enumerate(_of(numbers, list, f"{where}.{kind}.{site}")):
                _finite(_of(number, (int, float), f"{where}.{kind}.{site}.{i}"), f"{where}.{kind}.{site}.{i}")
    try:
        return LinearSetting(**told)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _evidence(told: Any, where: str) -> Evidence:
    told = _of(told, dict, where)
    _complete(Evidence, told, f"{where}.")
    number = (int, float, type(None))
    kinds: dict[str, Any] = {
        "what": str, "data": str, "value": (int, float), "low": number, "high": number, "level": number,
        "items": (int, type(None)), "details": dict,
    }  # fmt: skip
    for name, kind in kinds.items():
        _finite(_of(told[name], kind, f"{where}.{name}"), f"{where}.{name}")
    return Evidence(**told)


def _finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite: got {value}")


def _complete(kind: type, told: Mapping[str, Any], prefix: str) -> None:
    """Refuse an object that lacks a field or has one that is not known."""
    names = {each.name for each in fields(kind)}
    for name in sorted(names - told.keys()):
        raise ValueError(f"{prefix}{name} is missing")
    for name in sorted(told.keys() - names):
        raise ValueError(f"{prefix}{name} is no field of this format")


def _of(value: Any, kind: Any, where: str) -> Any:
    """The value, if it is of this kind. A bool does not count as a number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        words = " or ".join(_JSON[one] for one in kinds if one is not int or float not in kinds)
        raise ValueError(f"{where} must be {words}: got {_short(value)}")
    return value


_JSON = {
    dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number", type(None): "null",
}  # fmt: skip


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _checked_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path).expanduser()
    if path.suffix != SUFFIX:
        raise ValueError(f"Tuned: a tuned file's path must end in {SUFFIX}: got {path}; name it model.dynattn.json")
    return path


def _versions() -> dict[str, str]:
    import transformers

    return {"dynattn": VERSION, "torch": torch.__version__, "transformers": transformers.__version__}
