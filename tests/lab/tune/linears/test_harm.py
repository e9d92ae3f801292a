"""What layers are harmed by, held against layers that are run by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("rich")

from dynattn.lab.tune.linears.harm import look
from dynattn.sparsity import WINA, BySite, Sparsity
from tests.pruning.structure.models import inputs, make

LAYERS = 3


@pytest.mark.parametrize(("kind", "stack"), [("llama", "model.layers"), ("bert", "encoder.layer")])
@torch.no_grad()
def test_a_layers_harm_is_what_its_output_errs_by_on_the_dense_models_input(kind, stack):
    model, given = make(kind), inputs(kind)
    given = {**given, "use_cache": False} if kind == "llama" else given
    methods = {"o": Sparsity(out=WINA(0.5)), "q": Sparsity(qkv=WINA(0.3))}
    found = look(model, [given], {("wina", part): partial(plan.apply, model) for part, plan in methods.items()})
    layers, calls = list(model.get_submodule(stack)), []
    hooks = [layer.register_forward_hook(lambda _, *call: calls.append(call), with_kwargs=True) for layer in layers]
    model(**given)
    for hook in hooks:
        hook.remove()
    whole = given["attention_mask"].bool()
    for part, plan in methods.items():
        expected = []
        with plan.apply(model):
            for layer, (args, kwargs, output) in zip(layers, calls, strict=True):
                states = args[0] if args else kwargs["hidden_states"]
                own = layer(*args, **kwargs)
                own, dense = (each[0] if isinstance(each, tuple) else each for each in (own, output))
                error = (own - dense).double().square().sum(-1) / states.double().square().sum(-1)
                expected.append(float(error[whole].mean()))
        assert found["wina"][part] == pytest.approx(expected, rel=1e-4)
        assert min(expected) > 0


def test_the_model_is_as_it_was_and_nothing_left_out_harms_nothing():
    model, given = make("gpt2"), inputs("gpt2")
    given["use_cache"] = False
    plan = BySite((("0.o", WINA(1.0)), ("1.o", WINA(0.5))))
    found = look(model, [given, given], {("wina", "o"): partial(plan.apply, model)})
    assert len(found["wina"]["o"]) == LAYERS
    assert found["wina"]["o"][0] == found["wina"]["o"][2] == 0
    assert found["wina"]["o"][1] > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
