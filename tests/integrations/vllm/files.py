"""Tuned files of models that there are not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynattn.integrations.transformers import Fingerprint, Tuned


def tuned(folder: Path, methods: Mapping[str, str], **more: Any) -> str:
    """The path of a file with these methods, of the prefill phase unless told otherwise."""
    model = Fingerprint("llama", "LlamaForCausalLM", len(methods), {}, "", "float32", "")
    given: dict[str, Any] = {"phase": "prefill", "pruning": None, **more}
    path = folder / "model.dynattn.json"
    Tuned(
        model=model, dtype="float32", lengths=(1, 100), methods=methods, machine={}, evidence=(), versions={}, **given
    ).save(path)  # fmt: skip
    return str(path)
