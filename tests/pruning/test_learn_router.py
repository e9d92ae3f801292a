"""Learning of routers: the same output as at run time, gradients for the choices, what is reached, refusals."""

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
        runs[:, 0] = True  # whatever the router says of the first token, so that nothing is learnt from it
        states = model.embed_tokens(given["input_ids"])
        gains = torch.zeros(1, 13, dtype=torch.float64)
        for i in range(1, 13):  # what the token would get, beside those that run
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


@pytest.mark.parametrize("logit", [3.0, -3.0])
@pytest.mark.parametrize("asked", [0.1, 0.2, 0.3])
def test_a_router_skips_as_much_as_asked_for(asked: float, logit: float) -> None:
    """Skipping costs much here, and there is no way back from skipping everything by its gradient."""
    model, given, router = decoder(layers=4), texts(lengths=(60, 60)), begun(logit)
    found = learn_router(model, [given] * 8, sparsity=asked, router=router)
    assert found.skipped[0] == pytest.approx(asked, abs=0.1)  # it begins as the static router does
    assert found.reached == pytest.approx(asked, abs=0.02)
    assert not router.training
    with torch.no_grad(), found.method.apply(model) as trace:
        model(**given)
    assert float(trace.last.skipped.mean()) == pytest.approx(found.reached)


def test_learning_moves_the_router_alone_and_its_distance_to_the_dense_model_falls() -> None:
    model, given, asked = decoder(layers=3), texts(lengths=(40,)), (0.0, 0.4, 0.4)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    router = begun(1.0)
    found = learn_router(model, [given] * 30, sparsity=asked, router=router, rate=0.02)
    assert found.method == FTP(asked, router)
    assert len(found.distillation) == len(found.skipped) == len(found.guide) == 30
    assert sum(found.distillation[-5:]) < sum(found.distillation[:5])
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_more_is_skipped_than_asked_for_at_no_price_and_less_at_one() -> None:
    way = SoftRouted((0.0, 0.5, 0.2), torch.ones(1, 10, dtype=torch.bool), Router())
    way.shares = [torch.tensor(share) for share in (0.0, 0.1, 0.3)]
    assert way.too_few().item() == pytest.approx(0.1)
    way.shares[2] = torch.tensor(0.7)
    assert way.too_few().item() == 0


def test_what_cannot_be_learnt_is_refused() -> None:
    model, given = decoder(layers=1), texts()
    with pytest.raises(ValueError, match="rate must be positive: got 0"):
        learn_router(model, [given], sparsity=0.3, router=Router(), rate=0)
    with pytest.raises(ValueError, match="price must be positive: got -1"):
        learn_router(model, [given], sparsity=0.3, router=Router(), price=-1)
    with pytest.raises(ValueError, match=r"sparsity must be above 0 in some layer: got 0\.0"):
        learn_router(model, [given], sparsity=0.0, router=Router())
    with pytest.raises(ValueError, match="batches must hold at least one"):
        learn_router(model, [], sparsity=0.3, router=Router())
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"masks that are bool: .*; call model.set_attn_implementation\('sdpa'\)"):
        learn_router(model, [given], sparsity=0.3, router=Router())
    assert all(weight.requires_grad for weight in model.parameters())
    with pytest.raises(ValueError, match="must be in eval mode"):
        learn_router(model.train(), [given], sparsity=0.3, router=Router())
