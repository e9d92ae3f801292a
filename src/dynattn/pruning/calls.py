"""How a pruned model's layers are called: what they may be given, and which attention function they find.

Two engines share it: the one that takes tokens out for good (:mod:`dynattn.pruning.engine`), and the one whose tokens
skip single layers (:mod:`dynattn.pruning.skipping`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.pruning.replaced import StandInConfig


@torch.compiler.disable(reason="dynattn.pruning looks at what tokens receive, and decides who goes on")
def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """The attention function that Transformers calls for a module whose config is a stand-in."""
    config = module.config
    if isinstance(config, StandInConfig):
        return config.attend(module, query, key, value, mask, **kwargs)
    # The context ended in another thread after this one had asked for the function.
    return attention_function(module, config._attn_implementation)(module, query, key, value, mask, **kwargs)  # type: ignore[union-attr]


def attention_function(module: nn.Module, implementation: str) -> Callable[..., Any]:
    """The attention function that the module would have found by itself.

    Args:
        module: an attention module of Transformers.
        implementation: the name that its model's own config has.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)


def is_compiled(model: nn.Module) -> bool:
    """Whether a module of the model was compiled, by ``torch.compile`` or in place."""
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())


def accepted(implementation: str | None) -> str:
    """The implementation, if it is one that takes masks as the engines make them.

    Raises:
        ValueError: it is another one.
    """
    if implementation is None or implementation.startswith(("flash", "flex", "paged")):
        raise ValueError(
            f"pruning: attn_implementation must be 'sdpa', 'eager' or 'dynattn:...': the model has {implementation!r}; "
            "call model.set_attn_implementation('sdpa')"
        )
    return implementation


def refuse(layer: nn.Module, config: Any, given: dict[str, Any]) -> None:
    """Refuse other tensors that a layer is given: they may belong to its tokens, and nobody would shorten them.

    Args:
        layer: the layer.
        config: the model's.
        given: the arguments that nobody shortens, by name.

    Raises:
        ValueError: there is one, or the layer is asked for what a pruned one cannot give.
    """
    more = [name for name, value in given.items() if value is not None and not isinstance(value, (bool, int, float))]
    if more:
        raise ValueError(
            f"pruning: a layer must take hidden states and a mask alone: {type(layer).__name__} is given "
            f"{', '.join(more)} too; call the model without"
        )
    if given.get("output_attentions") or getattr(config, "output_attentions", False):
        raise ValueError("pruning: attention weights cannot be returned: call the model without output_attentions")
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        raise ValueError(
            "pruning: gradient checkpointing would run a layer again without its hooks: call "
            "model.gradient_checkpointing_disable()"
        )
