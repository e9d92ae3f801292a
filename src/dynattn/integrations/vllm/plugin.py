"""The plugin that vLLM calls in each of its processes when it starts."""

from __future__ import annotations

import os

from dynattn.integrations.vllm.chosen import VARIABLE, read


def register() -> None:
    """Put dynattn in the place of vLLM's own attention on CPUs, where the environment asks for it.

    ``DYNATTN_VLLM`` names a method, for example ``nm-2-4``, or the path of a tuned file, which ends in ``.json``.

    Raises:
        ValueError: it names no method, or a file that cannot be read or served.
    """
    asked = os.environ.get(VARIABLE, "")
    if not asked:
        return
    read(asked)  # what is wrong with it is said at the start, and not in the first layer
    from vllm.v1.attention.backends.registry import (  # type: ignore[import-not-found]
        AttentionBackendEnum,
        register_backend,
    )

    # on CPUs vLLM takes its own backend whatever is asked for, so that another has to come in its name
    register_backend(AttentionBackendEnum.CPU_ATTN, "dynattn.integrations.vllm.backend.Backend")
