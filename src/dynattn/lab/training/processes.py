"""The processes that share a training."""

from __future__ import annotations

from typing import Any

import torch


def processes() -> Any:
    """The processes that the launcher started, and this one's place among them: accelerate's ``PartialState``.

    Raises:
        ImportError: accelerate is missing.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError("run: training needs accelerate: pip install 'dynattn[train]'") from error
    return PartialState(cpu=not torch.cuda.is_available())
