"""The machine's limits: measured, attained, and shares of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from dynattn.lab.bench.roofline import Roofline, roofline
from dynattn.lab.bench.table import limits


def test_products_are_measured_in_each_dtype_asked_for():
    found = roofline(0.02, dtypes=("float32", "bfloat16"))
    assert list(found.products) == ["float32", "bfloat16"]
    assert all(flops > 0 for flops in found.products.values())


def test_attainable_is_the_lower_roof():
    roofline = Roofline(flops=2e11, bandwidth=2e10, isa="avx2", threads=2)
    assert roofline.attainable(1.0) == 2e10
    assert roofline.attainable(1000.0) == 2e11
    assert limits(roofline) == "200 GFLOP/s peak (avx2), 20.0 GB/s copy, 2 threads"


def test_higher_of_two_measurements():
    one, two = Roofline(2e11, 1e10, "avx2", 2), Roofline(1e11, 2e10, "avx2", 2)
    assert one.or_higher(two) == two.or_higher(one) == Roofline(2e11, 2e10, "avx2", 2)
    two, high = replace(two, products={"float16": 2.0, "float32": 1.0}), {"float16": 3.0, "float32": 1.0}
    assert replace(one, products={"float16": 3.0}).or_higher(two).products == high
    assert replace(one, flops=None).or_higher(replace(two, flops=None)).flops is None


def test_limits_are_measured():
    here = roofline(seconds=0.6)
    assert here.threads == torch.get_num_threads()
    assert 1e8 < here.bandwidth < 1e13
    if here.flops is not None:
        assert 1e8 < here.flops < 1e14
