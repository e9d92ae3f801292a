"""A loss of a task that can be differentiated, by which gradient flow is measured: on texts that no item is from, or on
the first validation text where perplexity has no others."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dynattn.lab.finetune.pairs import ranking_loss
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks import Manpages, Perplexity, Prepared, Retrieval, Task, embedding

_TOKENS = 256  # the second derivative keeps everything that the first one computes
_PAIRS = 8


def differentiable(task: Task, data: Prepared, pretrained: Pretrained) -> Callable[[], Tensor]:
    """The loss of a model on what it could be trained on for a task.

    Args:
        task: the task.
        data: prepared by it.
        pretrained: the model.

    Returns:
        Runs the model, and gives a scalar.

    Raises:
        ValueError: the task has no such loss, or it is retrieval or manpages and has no texts besides its items.
    """
    model = pretrained.model
    if isinstance(task, Perplexity):
        blocks = task.blocks(pretrained, data) or [data.payload[0][0]]  # the first text is one of validation
        ids = blocks[0][:_TOKENS].unsqueeze(0).to(model.device)
        return lambda: model(input_ids=ids, labels=ids, use_cache=False).loss
    if isinstance(task, (Retrieval, Manpages)):
        pairs = task.pairs(pretrained, data)[:_PAIRS]
        if len(pairs) < 2:
            raise ValueError(
                f"prune: gradient flow must have texts that no item is from: {task.name} has none left; pass more "
                "texts, or fewer items"
            )
        query, document = (
            {
                name: tensor.to(model.device)
                for name, tensor in embedding.inputs(pretrained, texts, embedding.longest(pretrained, _TOKENS)).items()
            }
            for texts in ([pair.query for pair in pairs], [pair.document for pair in pairs])
        )
        return lambda: ranking_loss(embedding.pool(model, query), embedding.pool(model, document))
    raise ValueError(
        f"prune: gradient flow must have a loss: the task {task.name} has none; take --order greedy, or the task "
        "retrieval, manpages or perplexity"
    )
