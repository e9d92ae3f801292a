"""The encoder: padding changes nothing, and the attention is the one that was asked for."""

from __future__ import annotations

import pytest
import torch

from dynattn.lab.lra.model import Config, Encoder, Pools
from dynattn.lab.training.mixers import Pooling
from dynattn.methods import NM, parse
from dynattn.nn import equal_segments

METHODS = [None, parse("dense"), NM(1, 2), NM(2, 4), NM(1, 4, stride=2)]


def config(pool="mean", dropout=0.0, **changes) -> Config:
    return Config(**{"vocabulary": 20, "classes": 3, "length": 40, "width": 16, "layers": 2, "heads": 2, "mlp": 32,
                     "pool": pool, "dropout": dropout} | changes)  # fmt: skip


def encoder(method, pool="mean", dropout=0.0) -> Encoder:
    """With tables large enough for tokens and positions to matter."""
    torch.manual_seed(0)
    model = Encoder(config(pool, dropout), method).eval()
    with torch.no_grad():
        model.tokens.weight.mul_(50)
        model.positions.mul_(50)
    return model


def ragged(lengths=(40, 7, 1, 22), fill=0):
    torch.manual_seed(1)
    ids = torch.randint(1, 20, (len(lengths), max(lengths)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, fill), mask


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_padding_changes_nothing(method, pool):
    model, (ids, mask) = encoder(method, pool), ragged()
    together = model(ids, mask)["logits"]
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = model(ids[row : row + 1, :length])["logits"][0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)
    others, _ = ragged(fill=19)  # other tokens where there is padding
    torch.testing.assert_close(model(others, mask)["logits"], together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_dense_method_is_pytorchs_attention(pool):
    (ids, mask), labels = ragged(), torch.tensor([0, 2, 1, 1])
    ours, theirs = encoder(parse("dense"), pool), encoder(None, pool)
    found, wanted = ours(ids, mask, labels), theirs(ids, mask, labels)
    torch.testing.assert_close(found["logits"], wanted["logits"], rtol=1e-4, atol=1e-5)
    found["loss"].backward()
    wanted["loss"].backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert a.grad is not None, name
        assert a.grad.abs().sum() > 0, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_method_is_used_in_every_layer_and_can_be_set_anew():
    (ids, mask), dense, sparse = ragged(), encoder(None), encoder(NM(1, 4))
    before = sparse(ids, mask)["logits"]
    assert (before - dense(ids, mask)["logits"]).abs().max() > 1e-3
    for module in sparse.attentions():
        module.method = None
    torch.testing.assert_close(sparse(ids, mask)["logits"], dense(ids, mask)["logits"])
    sparse.attentions()[1].method = NM(1, 4)
    assert not torch.allclose(sparse(ids, mask)["logits"], dense(ids, mask)["logits"], atol=1e-4)
    assert len(sparse.attentions()) == 2


def test_attention_is_multi_head_attention():
    """Against torch.nn.MultiheadAttention with the same weights."""
    attention = encoder(None).attentions()[0]
    torch.manual_seed(2)
    x, mask = torch.randn(3, 9, 16), torch.rand(3, 9) > 0.3
    mask[:, 0] = True
    peer = torch.nn.MultiheadAttention(16, 2, bias=False, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(attention.inputs.weight)
        peer.out_proj.weight.copy_(attention.output.weight)
    expected, _ = peer(x, x, x, key_padding_mask=~mask, need_weights=False)
    torch.testing.assert_close(attention(x, mask[:, None, None, :]), expected, rtol=1e-4, atol=1e-5)


def test_weights_depend_on_the_seed_alone():
    states = [encoder(method).state_dict() for method in (None, NM(1, 2))]
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


def test_the_order_of_tokens_matters():
    model, (ids, _) = encoder(NM(2, 4)), ragged((40,))
    assert not torch.allclose(model(ids)["logits"], model(ids.flip(1))["logits"], atol=1e-3)


def test_dropout_only_in_training_and_the_loss_is_the_cross_entropy():
    model, (ids, mask), labels = encoder(NM(2, 4), dropout=0.5), ragged(), torch.tensor([0, 2, 1, 1])
    found = model(ids, mask, labels)
    picked = found["logits"].log_softmax(1).gather(1, labels[:, None])
    torch.testing.assert_close(found["loss"], -picked.mean())
    assert torch.equal(found["logits"], model(ids, mask)["logits"])
    assert "loss" not in model(ids, mask)
    model.train()
    assert not torch.allclose(found["logits"], model(ids, mask)["logits"], atol=1e-3)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width must be a multiple of heads: got 16, 3"):
        config(heads=3)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_an_encoder_of_poolings_pools_each_sequence_by_its_own_parts(pool):
    model, (ids, mask) = encoder(Pooling(4), pool), ragged()
    together = model(ids, mask)["logits"]
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = model(ids[row : row + 1, :length])["logits"][0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)
    assert model.attentions() == []
    (layer,) = (module for module in model.blocks[0].modules() if isinstance(module, Pools))
    x = torch.randn(4, 40, 16)
    segments = equal_segments(x, 4, mask)
    torch.testing.assert_close(layer(x, mask[:, None, None, :]), layer.pools(x, segments, mask))
    assert not torch.allclose(encoder(Pooling(1), pool)(ids, mask)["logits"], together, atol=1e-4)
    assert not [name for name, _ in layer.named_parameters() if name.endswith("bias")]
