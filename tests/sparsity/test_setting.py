"""A setting of linear layers: what it does, what it needs, and how it goes into a file and back."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.sparsity import TEAL, WINA, BySite, Calibrated, LinearSetting, NMWeights, calibrate, calibrate_thresholds
from tests.pruning.structure.models import close, inputs, make, output

WEIGHTS = "nmweight-2-4-wanda"


def _setting(model, given) -> LinearSetting:
    limits = calibrate_thresholds(TEAL(0.5), model, [given]).thresholds["1.down"]
    norms = calibrate(model, [given])["model.layers.2.self_attn.o_proj"].norm
    methods = {"0.q": "wina-0.5", "1.down": "teal-0.5", "2.o": WEIGHTS}
    return LinearSetting(methods, {"1.down": limits}, {"2.o": tuple(norms.tolist())})


def test_each_site_works_by_its_method_and_the_model_is_itself_again():
    model, given = make("llama"), inputs("llama")
    before, setting = output(model, given), _setting(model, given)
    layer = model.model.layers[2].self_attn.o_proj
    mask = NMWeights(2, 4, score="wanda").masks(
        {"": layer.weight}, {"": calibrate(model, [given])["model.layers.2.self_attn.o_proj"]}
    )[""]
    other = make("llama")
    other.model.layers[2].self_attn.o_proj.weight.data *= mask
    plan = Calibrated(BySite((("0.q", WINA(0.5)), ("1.down", TEAL(0.5)))), setting.thresholds)
    with plan.apply(other):
        expected = output(other, given)
    with setting.apply(model):
        close(output(model, given), expected)
    assert not torch.allclose(expected, before)
    assert torch.equal(output(model, given), before)
    packs = {}
    switch = setting.prepared(model, packs)
    first = dict(packs)
    assert list(first) == [("2.o", WEIGHTS)]
    assert setting.prepared(model, packs) is not switch
    assert packs["2.o", WEIGHTS] is first["2.o", WEIGHTS]
    for _ in range(2):
        with switch():
            close(output(model, given), expected)


def test_a_file_holds_all_of_it():
    model, given = make("llama"), inputs("llama")
    setting = _setting(model, given)
    again = LinearSetting(**json.loads(json.dumps(setting.plain())))
    assert again.methods == setting.methods
    assert again.thresholds == {"1.down": tuple(float(f"{x:.9g}") for x in setting.thresholds["1.down"])}
    with setting.apply(model):
        expected = output(model, given)
    with again.apply(model):
        assert torch.equal(output(model, given), expected)


@pytest.mark.parametrize(
    ("fields", "error", "reason"),
    [
        ({"methods": {}}, ValueError, "methods must name one site at least"),
        (
            {"methods": {"0.q": "teal-0.5"}},
            ValueError,
            "0.q must have thresholds or norms.* for teal-0.5",
        ),
        ({"methods": {"0.q": WEIGHTS}}, ValueError, "0.q must have thresholds or norms"),
        (
            {"methods": {"0.q": "magnitude-0.5"}},
            TypeError,
            "0.q must have a method that chooses inputs, or N:M",
        ),
        ({"methods": {"0.q": "nmweight-4-8"}}, TypeError, ".*N:M weights of 1:2, 1:4, 2:4 or 3:4"),
        ({"methods": {"0.q": "nmweight-2-4-wanda-dsnot"}}, TypeError, ".*without a refinement"),
        ({"methods": {"0.q": "bysite(wina-0.5=0.q)"}}, TypeError, "0.q must have a method that chooses inputs"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, error, reason):
    with pytest.raises(error, match=f"LinearSetting: {reason}"):
        LinearSetting(**fields)


def test_unknown_methods_and_sites_are_refused():
    with pytest.raises(ValueError, match=r"sparsity\.parse: name must be"):
        LinearSetting({"0.q": "nm-1-2"})
    with pytest.raises(ValueError, match="BySite: a site must be"):
        LinearSetting({"q": "wina-0.5"})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"methods": {"9.q": "wina-0.5"}}, "every site must be in the model: 9.q is not, of LlamaForCausalLM"),
        ({"methods": {"0.in": "nmweight-1-2"}}, "every site must be in the model: 0.in is not"),
        ({"methods": {"0.q": "teal-0.5"}, "thresholds": {"0.q": (1.0, 2.0)}}, "thresholds of 0.q must be .* 32: got 2"),
        ({"methods": {"0.q": WEIGHTS}, "norms": {"0.q": (1.0,)}}, "norms of 0.q must be as many .* 32: got 1"),
    ],
)
def test_another_model_is_refused_and_stays_as_it_was(fields, reason):
    model = make("llama")
    with pytest.raises(ValueError, match=f"LinearSetting: {reason}"), LinearSetting(**fields).apply(model):
        pass
    assert not any("forward" in vars(module) for module in model.modules())
