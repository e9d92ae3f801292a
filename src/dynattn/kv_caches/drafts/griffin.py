"""Griffin's choice: the neurons that a prompt uses most, for all of what follows it.

    a_t    = what the MLP's output projection reads at token t of the prompt
    s_j    = ‖ ( a_tj / ‖a_t‖₂ ) over t ‖₂
    kept   = the ⌊keep · neurons⌉ with the largest s, in each layer; ties go to the lower number

It is coarse: the choice is the same for all tokens that follow, and a cheap forward for :class:`Sirius`, whose source
takes half of the neurons so. Neurons that are left out are 0 here, which saves no time.

Source: "Prompt-prompted Adaptive Structured Pruning for Efficient LLM Generation", arXiv:2404.01365.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.kv_caches.drafts.greedy import forward
from dynattn.kv_caches.full import FullCache
from dynattn.maths.scores import arithmetic_dtype
from dynattn.maths.selection import largest
from dynattn.methods import share
from dynattn.pruning.structure.find import mlp_outputs
from dynattn.pruning.structure.masked import empty
from dynattn.sparsity.sites import given, unpadded


@dataclass(frozen=True)
class Griffin:
    """Keeps the neurons that a prompt uses most.

        cheap = Griffin(0.5).of(model, ids)
        Sirius(cheap).generate(model, ids, max_new_tokens=64)

    Args:
        keep: the share of the neurons of each layer that stay, between 1e-6 and 1.

    Raises:
        TypeError: it is not a float.
        ValueError: it is out of its range.
    """

    keep: float = 0.5

    def __post_init__(self) -> None:
        share.check("Griffin", self.keep, "keep")

    @torch.no_grad()
    def of(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Callable[[Any], AbstractContextManager[Any]]:
        """Read a prompt, and choose.

        Args:
            model: a Transformers decoder whose MLPs are plain linear layers.
            input_ids: (batch, tokens). All samples together choose.
            attention_mask: (batch, tokens) 0 where a token is padding; None where none is.

        Returns:
            A function of the model that gives a context, in which the other neurons are 0.

        Raises:
            ValueError: a layer has no such MLP.
        """
        squares: dict[nn.Module, Tensor] = {}

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            rows = unpadded(given(args, kwargs), attention_mask)  # [tokens, neurons]
            rows = rows.to(arithmetic_dtype(rows.dtype))
            squares[module] = nn.functional.normalize(rows, dim=-1).square().sum(0)

        with ExitStack() as undo:
            for output in mlp_outputs(model, "Griffin"):
                undo.callback(output.register_forward_pre_hook(look, with_kwargs=True).remove)
            forward(model, input_ids, attention_mask, FullCache())
        keep = share.exact(self.keep)
        gone = {module: ~largest(found, round(keep * len(found))) for module, found in squares.items()}
        return lambda _: _without(gone)


@contextmanager
def _without(gone: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """While active, neurons are 0."""
    with ExitStack() as undo:
        for output, neurons in gone.items():
            empty(output, neurons, undo)
        yield
