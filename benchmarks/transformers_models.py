"""Hold ``dynattn:dense`` against a model's own attention, on tiny random models of every architecture of Transformers.

    python benchmarks/transformers_models.py                    # results/transformers/models.json, and the page
    python benchmarks/transformers_models.py --only bert llama  # these alone, printed, and put into the record
    python benchmarks/transformers_models.py --table            # docs/integrations/transformers-models.md alone

Each model is loaded with ``dynattn:dense`` by ``from_pretrained``, and switched to it by ``set_attn_implementation``;
with and without padding, in one pass and through a cache. Nothing is timed. Models that the record has from the same
code are not tried again, so that a run that was stopped goes on; ``--fresh`` begins anew. Ten minutes of a core.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import forked
import model_checks
import tiny_models
import torch
from marked import markdown, rewritten

import dynattn.integrations.transformers
from dynattn.lab.machine import describe, machine
from dynattn.lab.records import write_json, write_whole

RECORD = Path(__file__).parent / "results" / "transformers" / "models.json"
PAGE = Path(__file__).parent.parent / "docs" / "integrations" / "transformers-models.md"
START, END = "<!-- models: start -->", "<!-- models: end -->"
SECONDS = 15  # of the processor, for one model
IMPORTED = ("bert", "llama", "clip", "siglip", "whisper", "mixtral", "wav2vec2", "detr")  # before processes are forked
# Modules of the integration on which a result depends.
DECIDING = ("attend", "classes", "configs", "contracts", "coverage", "flows", "loading", "masks", "packed")

MEANING = {
    "exact": "all attention modules take part, and outputs are the model's own",
    "partly covered": "outputs are the model's own; a warning names modules that keep attention of their own",
    "keeps its own": "outputs are the model's own; a warning says that nothing takes part",
    "no attention": "outputs are the model's own; it has no attention, and a warning says that nothing takes part",
    "refused": "a call raises an error that says why",
    "random": "the model's own outputs differ from call to call, so nothing can be compared",
    "not built": "no tiny model of it was built, or no inputs were found for it",
    "silent": "outputs are the model's own, but no warning named what does not take part",
    "wrong": "outputs differ, or an error of somebody else's",
}
JUDGED = (
    f"Outputs match where no value differs by more than {model_checks.TOLERANCE:g} of the largest of that output from "
    "those of eager, of sdpa, or of what Transformers loads by itself, in float32; where they do not, in float64. "
    "Outputs at padding, and attention weights that eager returns unasked, are not compared. Modules that are said to "
    "take part and run without a call, and attention that the operators show in modules that no warning names, count "
    "as silent."
)


def main(arguments: Sequence[str]) -> int:
    """Measure and write the record and the page; the exit code is 1 where a model is wrong or silent."""
    options = _options(arguments)
    if options.table:
        write_page()
        return 0
    known = kinds()
    kept = {} if options.fresh or not RECORD.exists() else {one["model"]: one for one in _rows()}
    todo = [kind for kind in options.only or known if options.only or not _is_current(kept.get(kind))]
    _prepare()
    for one in forked.each(examined, todo, _failed, jobs=options.jobs, seconds=SECONDS):
        print(one["model"], one["result"], one.get("words", ""), sep="\t", flush=True)
        kept[one["model"]] = one
        save([kept[kind] for kind in known if kind in kept])
    write_page()
    return int(any(kept[kind]["result"] in ("wrong", "silent") for kind in options.only or known))


def kinds() -> list[str]:
    """The model types of the installed Transformers that AutoModel knows."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return list(MODEL_MAPPING_NAMES)


def examined(kind: str) -> dict[str, Any]:
    """What one architecture does, as the record holds it."""
    try:
        model, cases = tiny_models.found(kind)
    except Exception as error:  # whatever anybody's model raises
        return _failed(kind, model_checks.short(error))
    try:
        row = model_checks.checked(model, cases)
    except TimeoutError as error:
        return _failed(kind, model_checks.short(error))
    except Exception as error:
        row = {"result": "wrong", "words": model_checks.short(error)}
    return {"model": kind, "class": type(model).__name__, "code": code(row["result"]), **row}


@cache
def code(result: str) -> str:
    """A digest of the code that a result stands on; that of the builder counts only where nothing was built."""
    import transformers

    here = Path(__file__).parent
    folder = Path(dynattn.integrations.transformers.__path__[0])
    files = [*(folder / f"{name}.py" for name in DECIDING), here / "model_checks.py", here / "attention_watch.py"]
    if result == "not built":
        files += [here / "tiny_configs.py", here / "tiny_models.py"]
    found = hashlib.sha256(f"{transformers.__version__} {torch.__version__}".encode())
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of these rows."""
    import transformers

    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    if importlib.util.find_spec("timm"):  # which some models wrap
        versions["timm"] = importlib.metadata.version("timm")
    return {
        "generated_by": "benchmarks/transformers_models.py", "versions": versions, "machine": machine(),
        "judged": JUDGED, "known": len(kinds()), "current": sum(_is_current(row) for row in rows), "models": rows,
    }  # fmt: skip


def save(rows: list[dict[str, Any]]) -> None:
    """Write the record of these rows and the page, so that the two agree where the script is ended in the midst."""
    write_json(RECORD, record(rows))
    write_page()


def write_page() -> None:
    """Write the tables of the record into the page."""
    write_whole(PAGE, with_table(PAGE.read_text(), json.loads(RECORD.read_text())))


def with_table(page: str, recorded: dict[str, Any]) -> str:
    """The page with the tables of a record."""
    rows = []
    for result, meaning in MEANING.items():
        models = [one["model"] for one in recorded["models"] if one["result"] == result]
        if models:
            rows.append((f"**{result}**: {meaning}", str(len(models)), ", ".join(models)))
    versions = ", ".join(f"{name} {version}" for name, version in recorded["versions"].items())
    built = sum(one["result"] != "not built" for one in recorded["models"])
    text = (
        f"{versions}; {describe(recorded['machine'])}; {built} of {recorded['known']} model types built, "
        f"{len(recorded['models'])} tried, {recorded['current']} of them with the code as it was when the record was "
        f"written, the others with what came before it.\n\n{recorded['judged']}\n\n"
        f"{markdown(('', 'models', '`model_type`'), rows)}"
    )
    for title, results, says in (
        ("Modules that keep attention of their own", ("partly covered", "keeps its own"), _own),
        ("What refusals say", ("refused",), _words),
        ("Why a model was not built", ("not built",), _words),
        ("What is wrong", ("wrong", "silent"), _words),
    ):
        found: dict[str, list[str]] = {}
        for one in recorded["models"]:
            if one["result"] in results:
                found.setdefault(says(one), []).append(one["model"])
        if found:
            lines = [(", ".join(models), words) for words, models in found.items()]
            text += f"\n\n### {title}\n{markdown(('`model_type`', ''), lines)}"
    return rewritten(page, START, text, END, "transformers_models")


def _own(row: dict[str, Any]) -> str:
    return ", ".join(f"`{kind}`" for kind in row["own"])


def _words(row: dict[str, Any]) -> str:
    words = row["words"].replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return words.split(": ", 2)[-1] if row["result"] == "refused" else words


def _rows() -> list[dict[str, Any]]:
    return json.loads(RECORD.read_text())["models"]


def _is_current(row: dict[str, Any] | None) -> bool:
    return row is not None and row.get("code") == code(row["result"])


def _failed(kind: str, words: str) -> dict[str, Any]:
    return {"model": kind, "result": "not built", "words": words, "code": code("not built")}


def _prepare() -> None:
    """What every process needs, imported once; and quiet."""
    import transformers

    torch.set_num_threads(1)
    for result in MEANING:
        code(result)  # of the files as they are now
    dynattn.integrations.transformers.register()
    for name in IMPORTED:
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    examined("bert")  # which fills caches: halves the time


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="model types to try, also where they are recorded")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--fresh", action="store_true", help="try again what is recorded too")
    parser.add_argument("--table", action="store_true", help="write the page from the record")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
