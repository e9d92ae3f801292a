"""Trained predictors for a Hugging Face model: they are fitted to it, and then choose what its attention keeps.

    predictors = dsa.new(model, inputs)
    dsa.fit(model, predictors, batches)
    with dsa.predicting(model, predictors, ratio=0.1):
        model(**inputs)                                # every layer keeps the 10% of its pairs that are predicted best

It works for self-attention over a whole sequence. The input of the layer has to be known for every key, so a key-value
cache and cross-attention are refused. The choice goes to exact attention as a mask, which takes memory quadratic in
length.

Source: arXiv:2110.11299.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.integrations.transformers import Call, attend, masks, observing, register
from dynattn.maths.scores import scores as exact_scores
from dynattn.methods import NM
from dynattn.methods.dsa import TOGETHER, top_of_runs
from dynattn.nn import DSAPredictor, prediction_loss
from dynattn.nn.parameters import gradients

_NAME = "dynattn:predicted"
_DENSE = NM(1, 1)


@torch.no_grad()
def new(
    model: nn.Module, inputs: Mapping[str, Any], *, share: float = 0.25, bits: int = 4, seed: int = 0
) -> dict[str, DSAPredictor]:
    """Untrained predictors for the attention modules that a model calls.

    Args:
        model: a Transformers model.
        inputs: keyword arguments of its forward, for any example. The model is run once.
        share: the rank of the predictor over the width of the layer's input; the rank is at least 1.
        bits: how many bits the factors of the predicted scores have, 4 or 8.
        seed: the seed of the random projections; every layer has its own projection.

    Returns:
        A predictor for each module, by the module's name in the model.

    Raises:
        ValueError: an argument is out of its range, or the model takes its attention from elsewhere.
    """
    if not 0 < share <= 1:
        raise ValueError(f"dsa.new: share must be above 0 and at most 1: got {share}; try 0.25")
    register()
    calls: list[Call] = []
    with _layer_inputs(model, dict(model.named_modules())) as entered, _implementation(model, "dynattn:dense"):
        with observing(calls.append):
            model(**inputs)
        widths = {call.module: entered[call.module].shape[-1] for call in calls}
    if not calls:
        raise ValueError(
            f"dsa.new: the model must take its attention from Transformers' interface: {type(model).__name__} "
            "made no call of it"
        )
    names = {module: name for name, module in model.named_modules()}
    heads = {call.module: call.query.shape[1] for call in calls}
    return {
        names[module]: DSAPredictor(
            width, heads[module], max(1, round(share * width)), bits=bits, seed=seed + index
        ).to(next(model.parameters()).device)
        for index, (module, width) in enumerate(widths.items())
    }  # fmt: skip


@contextmanager
def predicting(
    model: nn.Module, predictors: Mapping[str, DSAPredictor], *, ratio: float, together: int = 1
) -> Iterator[list[Tensor]]:
    """While active, the model's attention keeps the pairs that the predictors choose; afterwards it is as it was.

    Args:
        model: a Transformers model.
        predictors: by module name, as :func:`new` makes them; other modules are left dense.
        ratio: keep ratio, above 0 and at most 1; 1 predicts and keeps everything.
        together: how many queries share their keys, 1, 4, 8 or 16; see :class:`dynattn.DSA`.

    Yields:
        A list to which every call of a predictor in training mode adds its :func:`~dynattn.nn.prediction_loss`
        where gradients are on: ``loss = task + λ · sum(losses)`` is the published joint loss. Clear it between steps.

    Raises:
        ValueError: an argument is out of its range, or there is no such module.
    """
    if not 0 < ratio <= 1 or together not in TOGETHER:
        raise ValueError(
            f"predicting: ratio must be above 0 and at most 1 and together one of {TOGETHER}: got {ratio}, {together}"
        )
    modules = dict(model.named_modules())
    unknown = sorted(set(predictors) - set(modules))
    if unknown:
        raise ValueError(
            f"predicting: predictors must be of modules of the model: {type(model).__name__} has no {unknown[0]!r}; "
            "make them with dsa.new(model, inputs)"
        )
    losses: list[Tensor] = []
    with _layer_inputs(model, {name: modules[name] for name in predictors}) as entered:
        by_module = {modules[name]: predictor for name, predictor in predictors.items()}
        _register(partial(_attend, by_module, entered, losses, ratio, together))
        with _implementation(model, _NAME):
            yield losses


def fit(
    model: nn.Module,
    predictors: Mapping[str, DSAPredictor],
    batches: Iterable[Mapping[str, Any]],
    *,
    learning_rate: float = 3e-3,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train predictors on a model that stays as it is, with dense attention and a step of Adam for each batch.

    Args:
        model: a Transformers model; its weights are not touched.
        predictors: trained in place.
        batches: keyword arguments of the model's forward.
        learning_rate: the rate of the first step; it falls to 0 along half a cosine where the number of batches is
            known.
        on_step: called with the number and the loss of each step; the loss is the mean over layers.

    Raises:
        ValueError: no batch is given.
    """
    step = -1
    parameters = [p for predictor in predictors.values() for p in predictor.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    steps = len(batches) if hasattr(batches, "__len__") else None  # pyright: ignore[reportArgumentType]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if steps else None
    with gradients(model.parameters(), False), predicting(model, predictors, ratio=1.0) as losses, torch.enable_grad():
        for step, inputs in enumerate(batches):
            model(**inputs)
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            if on_step is not None:
                on_step(step, loss.item() / len(losses))
            losses.clear()
    if step < 0:
        raise ValueError("fit: batches must hold at least one: there is none; a generator can be read only once")


def _attend(
    predictors: Mapping[nn.Module, DSAPredictor], entered: Mapping[nn.Module, Tensor], losses: list[Tensor],
    ratio: float, together: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, is_causal: bool | None = None, position_bias: Tensor | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The function that Transformers calls in place of its own attention."""
    predictor = predictors.get(module)
    if predictor is None:
        return attend.forward(
            module, query, key, value, attention_mask, is_causal=is_causal, position_bias=position_bias,
            method=_DENSE, **kwargs,
        )  # fmt: skip
    x = entered[module]
    if not x.shape[1] == query.shape[2] == key.shape[2]:
        raise ValueError(
            f"predicting: attention must be from the layer's whole input to itself: got an input of {x.shape[1]}, "
            f"{query.shape[2]} queries and {key.shape[2]} keys; run without a cache (use_cache=False)"
        )
    causal = attend.causal_without_mask(module, query, key, attention_mask, is_causal)
    mask = attend.merge(attention_mask, position_bias)
    predicted = predictor(x)
    if predictor.training and torch.is_grad_enabled():
        scale = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
        losses.append(prediction_loss(predicted, exact_scores(query, key, mask, causal, scale)))
    kept = _allowed(predicted, mask, causal)
    if ratio < 1:
        kept = top_of_runs(predicted.detach(), kept, ratio, together)
    mask = mask.masked_fill(~kept, -math.inf) if mask is not None and mask.is_floating_point() else kept
    return attend.forward(module, query, key, value, mask, method=_DENSE, **kwargs)


def _allowed(like: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    allowed = torch.ones_like(like, dtype=torch.bool)
    if mask is not None:
        allowed = allowed & masks.visible(mask)
    return allowed.tril() if causal else allowed


def _register(attend: Callable[..., tuple[Tensor, None]]) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, partial(masks.make, positions=False))


@contextmanager
def _implementation(model: Any, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _layer_inputs(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """While active, a mapping from each module to the last hidden states that entered it, if any did."""
    entered: dict[nn.Module, Tensor] = {}

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x = kwargs.get("hidden_states", args[0] if args else None)
        if isinstance(x, Tensor) and x.dim() == 3:
            entered[module] = x

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in modules.values()]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()
