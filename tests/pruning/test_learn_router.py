"""Learning of routers: the same output as at run time, gradients for the choices, what falls and what is refused."""

from __future__ import annotations

import pytest
import torch

from dynattn.pruning import FTP, Router
from dynattn.pruning.learn_router import SoftRouted, learn_router
from dynattn.pruning.router import RUN, SKIP
from dynattn.pruning.skipping import skipped
from tests.pruning.models import close
from tests.pruning.test_ftp import router
from tests.pruning.walks import decoder, texts


def soft(model, method: FTP, given) -> tuple[torch.Tensor, SoftRouted]:
    assert method.router is not None
    judge = method.router
    ways: list[SoftRouted] = []

    def begin(layers: int, alive: torch.Tensor) -> SoftRouted:
        ways.append(SoftRouted(method.of_layers(layers), alive, judge))
        return ways[-1]

    with skipped(model, begin, watches=True):
        return model(**given).last_hidden_state, ways[0]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("look_ahead", [True, False])
def test_the_masked_forward_is_the_gathered_one(side: str, look_ahead: bool) -> None:
    model, given, method = decoder(), texts(side), FTP(0.4, router(look_ahead))
    alive = given["attention_mask"].bool()
    with torch.no_grad(), method.apply(model) as trace:
        expected = model(**given).last_hidden_state
    found, way = soft(model, method, given)
    close(found[alive], expected[alive])
    for layer, share in enumerate(way.shares):
        assert share.item() == pytest.approx(1 - int(trace.last.tokens[layer].sum()) / int(alive.sum()))


def test_a_choice_has_the_gradient_of_what_the_layer_makes_of_its_token() -> None:
    """One layer, one text: ``d loss / d weight_i = (layer(h)_i - h_i) · d loss / d h'_i``, through the softmax."""
    model, given, judge = decoder(layers=1), {"input_ids": texts()["input_ids"][:1]}, router()
    model.requires_grad_(False)
    model.norm = torch.nn.Identity()
    toward = torch.randn(1, 13, 32, dtype=torch.float64)
    found, _ = soft(model, FTP(0.4, judge), given)
    (found * toward).sum().backward()
    with torch.no_grad():
        logits = judge(torch.ones(1, 13, dtype=torch.bool), torch.ones(1, 13), 0.4)
        runs = logits[..., RUN] >= logits[..., SKIP]
        states = model.embed_tokens(given["input_ids"])
        gains = torch.zeros(1, 13, dtype=torch.float64)
        for i in range(13):  # what the token would get, beside those that run
            rows = sorted({*runs[0, : i + 1].nonzero().flatten().tolist(), i})
            rotary = model.rotary_emb(states, position_ids=torch.tensor([rows]))
            out = model.layers[0](states[:, rows], position_embeddings=rotary)[0, -1]
            gains[0, i] = (out - states[0, i]) @ toward[0, i]
    assert 0 < int(runs.sum()) < 13
    bias = list(judge.parameters())[-1]
    assert bias.grad is not None
    probability = logits.softmax(-1)[..., RUN]
    slope = (gains * probability * (1 - probability)).sum()
    close(bias.grad.double(), torch.stack([slope, -slope]))


def begun(logit: float) -> Router:
    """A router that has every token run, or skip where the logit is negative."""
    torch.manual_seed(0)
    found = Router(16)
    with torch.no_grad():
        list(found.parameters())[-1].add_(torch.tensor([logit, -logit]))
    return found


def test_a_router_learns_to_skip_as_much_as_asked_for_where_that_costs_nothing() -> None:
    model, given, asked = decoder(layers=2), texts(lengths=(8, 5)), (0.0, 0.7)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-3)
            layer.mlp.down_proj.weight.mul_(1e-3)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    router = begun(1.0)
    found = learn_router(model, [given] * 20, sparsity=asked, router=router, rate=0.03)
    assert found.skipped[0] == 0
    assert found.distillation[0] == pytest.approx(0, abs=1e-12)
    assert found.skipped[-1] > 0.25
    assert found.guide[-1] < found.guide[0]
    assert found.method == FTP(asked, router)
    assert not router.training
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    with torch.no_grad(), found.method.apply(model) as trace:
        model(**given)
    assert 1 - int(trace.last.tokens.sum()) / (2 * 13) > 0.25


def test_a_router_learns_to_run_tokens_that_are_missed() -> None:
    """Nothing is to be skipped: the sparsity term is 0, and both the guide and the distance to the dense model pull."""
    found = learn_router(decoder(), [texts()] * 12, sparsity=0.0, router=begun(-0.5), rate=0.05)
    assert found.skipped[0] > 0.9
    assert found.skipped[-1] < 0.1
    assert found.distillation[-1] < found.distillation[0] / 2


def test_what_cannot_be_learnt_is_refused() -> None:
    model, given = decoder(layers=1), texts()
    with pytest.raises(ValueError, match="rate must be positive: got 0"):
        learn_router(model, [given], sparsity=0.3, router=Router(), rate=0)
    with pytest.raises(ValueError, match="batches must hold at least one"):
        learn_router(model, [], sparsity=0.3, router=Router())
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"masks that are bool: .*; call model.set_attn_implementation\('sdpa'\)"):
        learn_router(model, [given], sparsity=0.3, router=Router())
    assert all(weight.requires_grad for weight in model.parameters())
    with pytest.raises(ValueError, match="must be in eval mode"):
        learn_router(model.train(), [given], sparsity=0.3, router=Router())
