"""The speeds that dynattn promises on a CPU, as data: float32, two threads, medians of ratios within a round."""

from __future__ import annotations

from dataclasses import dataclass

SHAPES = {  # (batch · heads, length, head_dim): how many times as fast as SDPA 1:2 has to be
    (48, 384, 64): 1.6,
    (48, 512, 64): 1.6,
    (24, 1024, 64): 1.5,
    (12, 2048, 64): 1.5,
    (6, 4096, 64): 1.5,
    (12, 512, 32): 1.7,
    (12, 1024, 128): 1.4,
}
TRAINING = {(24, 1024, 64): 1.3, (12, 2048, 64): 1.3}  # forward and backward against SDPA's
CAUSAL_FROM = 1024  # the same ratios against causal SDPA, from this length on
SMALL_HEADS, SMALL_LENGTHS = (1, 12), (64, 128, 256, 384)
WINDOW = "nm-1-2-w64-s4"


@dataclass(frozen=True)
class Target:
    """``function`` has to be at least ``least`` times as fast as ``baseline`` on ``shape``.

    Attributes:
        promise: which promise this is a part of.
        suite: whose record holds it.
        shape: (batch · heads, length, head_dim).
        causal: of the workload.
    """

    promise: str
    suite: str
    shape: tuple[int, int, int]
    causal: bool
    function: str
    baseline: str
    least: float


def _of_main_shape(shape: tuple[int, int, int], causal: bool, least: float) -> list[Target]:
    def target(promise: str, function: str, baseline: str, at_least: float) -> Target:
        return Target(promise, "targets", shape, causal, function, baseline, at_least)

    targets = [
        target("1:2 against SDPA", "nm-1-2", "sdpa", least),
        target("1:2 against own dense", "nm-1-2", "dense", 1.2),
        target("dense against SDPA", "dense", "sdpa", 1.0),
        target("2:4 within 5% of 1:2", "nm-2-4", "nm-1-2", 0.95),
    ]
    if shape == (12, 2048, 64):
        targets.append(target("window of 64 and 4 sinks costs under 8%", WINDOW, "nm-1-2", 1 / 1.08))
    return targets


def _of_small_shape(heads: int, length: int, causal: bool) -> list[Target]:
    return [
        Target("small: never slower than SDPA", "small", (heads, length, 64), causal, function, "sdpa", 1.0)
        for function in ("dense", "nm-1-2", "nm-2-4")
    ]


def targets() -> list[Target]:
    """All of them."""
    main = [
        target
        for shape, least in SHAPES.items()
        for causal in (False, True)
        if not causal or shape[1] >= CAUSAL_FROM
        for target in _of_main_shape(shape, causal, least)
    ]
    small = [
        target
        for heads in SMALL_HEADS
        for length in SMALL_LENGTHS
        for causal in (False, True)
        for target in _of_small_shape(heads, length, causal)
    ]
    training = [
        Target("training: 1:2 against SDPA", "training", shape, False, "nm-1-2", "sdpa", least)
        for shape, least in TRAINING.items()
    ]
    return main + small + training
