"""SpAtten against loops that read like its definition."""

from __future__ import annotations

import math

import pytest
import torch

from dynattn.integrations.transformers import register
from dynattn.pruning import SpAtten, parse
from dynattn.pruning.layout import find
from dynattn.pruning.schedule import schedule
from tests.pruning.models import close, ends, inputs, make, walk, weights


def _best(importance, count):
    """The ``count`` largest, ties to the lower key, as a sorted list of keys."""
    return sorted(sorted(importance, key=lambda key: (-importance[key], key))[:count])


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "dynattn:nm-1-2"])
def test_cascade_token_pruning(implementation):
    register()
    model, given, lengths = make("bert"), inputs("bert"), (17, 12, 5)
    model.set_attn_implementation(implementation)
    with SpAtten(0.3).apply(model) as trace:
        first, last = ends(model, given)
    ratios = schedule(0.3, 4, 0.15)
    for sample, length in enumerate(lengths):
        importance = dict.fromkeys(range(length), 0.0)

        def choose(layer, places, before, importance=importance, length=length):
            p, _ = weights(model, layer, before)
            for column, place in enumerate(places):
                importance[place] += float(p[:, :, column].sum())
            if layer == 3:
                return places
            left = {place: importance[place] for place in places}
            left[0] = math.inf
            return _best(left, math.ceil(ratios[layer + 1] * length))

        expected = walk(model, first[sample, :length], choose)
        close(last[sample, :length], expected)
    assert trace.last.tokens[:, 0].tolist() == [17, math.ceil(17 * ratios[1]), math.ceil(17 * ratios[2]), 6]


def test_cascade_head_pruning():
    model, given = make("bert"), inputs("bert", lengths=(14,))
    with SpAtten(1.0, heads=0.5).apply(model) as trace:
        first, last = ends(model, given)
    state, left, importance, seen = first[0], list(range(4)), dict.fromkeys(range(4), 0.0), []
    ratios = schedule(0.5, 4, 0.3)
    for layer, block in enumerate(model.encoder.layer):
        seen.append(list(left))
        p, v = weights(model, layer, state)
        heads = [p[head] @ v[head] if head in left else torch.zeros_like(v[head]) for head in range(4)]
        with torch.no_grad():
            attention = block.attention.output(torch.cat(heads, dim=1), state)
            state = block.feed_forward_chunk(attention)
        for head in left:
            importance[head] += float(heads[head].abs().sum())
        if layer < 3:
            left = _best({head: importance[head] for head in left}, math.ceil(ratios[layer + 1] * 4))
    close(last[0], state)
    assert [len(heads) for heads in seen] == [4, 4, 3, 2] == trace.last.heads[:, 0].tolist()


def test_pruned_heads_are_not_computed():
    model, given, shapes = make("dinov2"), inputs("dinov2", lengths=(1,)), []
    for block in model.encoder.layer:
        block.attention.o_proj.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[-1]))
        block.attention.q_proj.register_forward_hook(lambda _, args, out: shapes.append(out.shape[-1]))
    with torch.no_grad(), SpAtten(1.0, heads=0.5).apply(model):
        model(**given)
    assert shapes == [32, 32, 32, 32, 24, 24, 16, 16]


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_heads_of_each_sample_are_its_own(kind):
    model, given = make(kind), inputs(kind, lengths=(17, 17, 17, 17))
    with torch.no_grad(), SpAtten(0.5, heads=0.5).apply(model):
        together = model(**given).last_hidden_state
        for sample in range(4):
            alone = model(**{name: value[sample : sample + 1] for name, value in given.items()}).last_hidden_state[0]
            close(together[sample], alone)


def _values(p, v, share):
    """Row by row: the values of the largest probabilities, the others unread."""
    out = torch.zeros(p.shape[0], p.shape[1], v.shape[2])
    for head in range(p.shape[0]):
        for row in range(p.shape[1]):
            probabilities = {key: float(p[head, row, key]) for key in range(p.shape[2])}
            for key in _best(probabilities, math.ceil(share * p.shape[2])):
                out[head, row] += p[head, row, key] * v[head, key]
    return out


def _quantised(x, high, low):
    """Head by head, number by number: the value of all bits and of the high ones."""
    x = x.contiguous()
    whole, top = torch.empty_like(x), torch.empty_like(x)
    for head in range(x.shape[0]):
        step = float(x[head].abs().max()) / (2 ** (high + low - 1) - 1)
        for index, value in enumerate(x[head].flatten().tolist()):
            bits = round(value / step)
            whole[head].view(-1)[index] = bits * step
            top[head].view(-1)[index] = (bits >> low << low) * step
    return whole, top


def _attention(query, key, value, method):
    """(heads, tokens, head_dim) each; output and how many rows were computed again."""
    scale, again = query.shape[2] ** -0.5, 0
    if method.bits is None:
        p = torch.softmax(scale * query @ key.transpose(1, 2), -1)
    else:
        (q, q_high), (k, k_high), (value, _) = (_quantised(x, *method.bits) for x in (query, key, value))
        p = torch.softmax(scale * q_high @ k_high.transpose(1, 2), -1)
        better = torch.softmax(scale * q @ k.transpose(1, 2), -1)
        for head in range(p.shape[0]):
            for row in range(p.shape[1]):
                if float(p[head, row].max()) < method.threshold:
                    p[head, row], again = better[head, row], again + 1
    return _values(p, value, method.values), again


@pytest.mark.parametrize(
    "method", [SpAtten(1.0, values=0.4), SpAtten(1.0, bits=(4, 4), threshold=0.3), SpAtten(0.6, 0.5, 0.5, (10, 5), 0.4)]
)
def test_values_and_bits(method):
    model, given, calls = make("bert"), inputs("bert"), []
    for block in find(model).blocks:
        for name in ("query", "key", "value"):
            getattr(block, name).register_forward_hook(lambda _, args, out: calls.append(out))
        block.output.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    with torch.no_grad(), method.apply(model) as trace:
        model(**given)
    for layer, work in enumerate(trace.last.layers):
        q, k, v, out = calls[4 * layer : 4 * layer + 4]
        if layer > 1 and method.heads < 1:
            break  # heads of the samples differ: test_heads_of_each_sample_are_its_own
        for sample, count in enumerate(work.tokens.tolist()):
            query, key, value = (x[sample, :count].unflatten(1, (-1, 8)).transpose(0, 1) for x in (q, k, v))
            expected, again = _attention(query, key, value, method)
            close(out[sample, :count], expected.transpose(0, 1).flatten(1))
            if method.bits is not None:
                assert int(work.notes["rows_again"][sample]) == again
                assert int(work.notes["rows"][sample]) == 4 * count
            if method.values < 1:
                assert int(work.notes["values_read"][sample]) == 4 * count * math.ceil(method.values * count)
    if method.bits is not None:
        again = sum(work.notes["rows_again"].sum() for work in trace.last.layers)
        assert 0 < again < sum(work.notes["rows"].sum() for work in trace.last.layers)


def test_many_bits_and_all_values_are_dense():
    model, given = make("vit"), inputs("vit")
    with torch.no_grad():
        expected = model(**given).last_hidden_state
        with SpAtten(1.0, values=1.0, bits=(24, 0)).apply(model):
            close(model(**given).last_hidden_state, expected)


@pytest.mark.parametrize(
    "method",
    [SpAtten(0.7), SpAtten(0.5, heads=0.75), SpAtten(1e-5, values=0.125), SpAtten(1, 1, 1, (8, 4)),
     SpAtten(0.3, 0.5, 0.25, (6, 4), 1e-6)],
)  # fmt: skip
def test_names_round_trip(method):
    assert parse(method.name) == method


def test_names():
    assert SpAtten(0.5, 0.75, 0.5, (8, 4), 0.2).name == "spatten-0.5-h0.75-v0.5-q8.4-t0.2"
    assert SpAtten(0.7).name == "spatten-0.7"


def test_errors():
    for wrong in ({"keep": 0.0}, {"keep": 0.5, "heads": 1.5}, {"keep": 0.5, "values": -1}):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            SpAtten(**wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="keep must be a number"):
        SpAtten("0.5")  # pyright: ignore[reportArgumentType]
    for bits in ((1, 4), (8,), (20, 8), 8):
        with pytest.raises(ValueError, match="bits must be a pair"):
            SpAtten(0.5, bits=bits)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="threshold must be between"):
        SpAtten(0.5, bits=(8, 4), threshold=2)
    with pytest.raises(ValueError, match="which is off"):
        SpAtten(0.5, threshold=0.2)
    with pytest.raises(ValueError, match=r"parse: name must be .*'spatten-half'"):
        parse("spatten-half")
    register()
    model = make("bert")
    model.set_attn_implementation("dynattn:nm-1-2")
    with SpAtten(0.5, values=0.5).apply(model), pytest.raises(ValueError, match="must be dense"):
        model(**inputs("bert"))
    model.set_attn_implementation("sdpa")
    query = model.encoder.layer[1].attention.self.query
    query.forward = query.forward
    with pytest.raises(ValueError, match=r"plain torch\.nn\.Linear"), SpAtten(0.5, heads=0.5).apply(model):
        pass
