"""From a call of the backward to its launches, without a device: bytes, variants, how the keys are dealt out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynattn.kernels.cuda import cannot_backward, driver, launch, launch_backward, warm
from dynattn.kernels.cuda.driver import Device
from dynattn.kernels.cuda.launch_backward import BackwardLaunch, BackwardParams, Launches, prepare_backward
from dynattn.kernels.cuda.variants_backward import BackwardVariant, WgmmaBackwardVariant
from dynattn.kernels.pattern import Pattern
from dynattn.methods import NM
from tests.kernels.cuda import layout

AMPERE = Device(0, "sm_80", 108, 163 * 1024)
ADA = Device(0, "sm_89", 76, 99 * 1024)
HOPPER = Device(0, "sm_90a", 132, 227 * 1024)


def tensors(
    q_len: int = 100, kv_len: int = 60, head_dim: int = 64, batch: int = 2, heads: int = 4, kv_heads: int = 2
) -> list[Tensor]:
    """Query, key and value."""
    shapes = (batch, heads, q_len, head_dim), (batch, kv_heads, kv_len, head_dim), (batch, kv_heads, kv_len, head_dim)
    return [torch.randn(shape).bfloat16() for shape in shapes]


def prepare(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, d_mask: Tensor | None = None, *,
    device: Device = AMPERE, method: NM = NM(2, 4), scale: float = 0.5, grad_out: Tensor | None = None,
    dropout_p: float = 0.0, seed: Tensor | None = None,
) -> Launches:  # fmt: skip
    out, logsumexp = torch.empty_like(query), torch.empty(query.shape[:3])
    return prepare_backward(
        torch.empty_like(out) if grad_out is None else grad_out, torch.empty_like(logsumexp), query, key, value, mask,
        out, logsumexp, pattern=Pattern.of(method, True, scale)._replace(dropout_p=dropout_p),
        d_query=torch.empty_like(query), d_key=torch.empty_like(key), d_value=torch.empty_like(value), d_mask=d_mask,
        device=device, seed=seed,
    )  # fmt: skip


def main(*arguments, **options) -> tuple[BackwardVariant, BackwardLaunch]:
    """The launch of the main kernel of sm_80 and its variant."""
    one = prepare(*arguments, **options).main
    assert isinstance(one.variant, BackwardVariant)
    return one.variant, one


def test_the_parameters_lie_as_the_kernels_read_them(tmp_path: Path) -> None:
    layout.check(BackwardParams, Path(launch_backward.__file__).parent / "backward_params.cuh", tmp_path)


def test_the_launches_of_a_call() -> None:
    query, key, value = tensors(kv_len=300)
    sums, before, one, after = prepare(query, key, value)
    assert sums.blocks == 2 * 4 * 2  # of 64 queries
    assert before.blocks == -(-2 * 4 * 100 // 16)
    assert after.blocks == 2 * 4 * 7 * (64 // 8) // 4  # 7 blocks of 16 queries
    assert one.blocks == 2 * 2 * 5  # 300 keys are five tiles: fewer than would fill the device
    params = one.params
    assert (params.splits, params.forward.q_len, params.forward.kv_len) == (5, 100, 300)
    assert params.forward.logsumexp
    assert params.d_mask is None
    assert bytes(before.params) == bytes(params) == bytes(after.params)
    assert sums.params.row_sums == params.forward.row_sums
    assert sums.params.logsumexp == params.forward.logsumexp
    assert list(params.d_key_strides) == [2 * 300 * 64, 300 * 64, 64]


@pytest.mark.parametrize(
    ("batch", "kv_len", "splits"),
    [
        (1, 65536, 16),  # more would cost too much memory
        (8, 65536, 14),  # 2 · 108 blocks wanted, 16 heads of keys
        (8, 256, 4),  # no more than there are tiles
        (200, 65536, 1),
        (1, 1, 1),
    ],
)
def test_keys_are_dealt_out_to_fill_the_device(batch: int, kv_len: int, splits: int) -> None:
    query, key, value = tensors(q_len=1, head_dim=8, batch=batch)
    key, value = (x[:, :, :1].expand(-1, -1, kv_len, -1) for x in (key, value))
    out, figures = torch.empty_like(query), torch.empty(query.shape[:3])
    prepared = prepare_backward(
        out, figures, query, key, value, None, out, figures, pattern=Pattern.of(NM(1, 2), True, 1.0), d_query=out,
        d_key=key, d_value=value, d_mask=None, device=AMPERE,
    )  # fmt: skip
    assert prepared.main.params.splits == splits


def test_two_row_tiles_where_there_are_queries_for_them_and_registers() -> None:
    assert main(*tensors(q_len=65))[0].row_tiles == 2
    assert main(*tensors(q_len=64))[0].row_tiles == 1
    assert main(*tensors(q_len=4096, batch=1, head_dim=128))[0].row_tiles == 1
    bias = torch.zeros(1, 60)
    assert main(*tensors(), bias)[0].row_tiles == 2
    assert main(*tensors(), bias, method=NM(1, 2, window=3))[0].row_tiles == 1


def test_no_kernel_asks_for_more_shared_memory_than_there_is() -> None:
    for device in (AMPERE, HOPPER, ADA):
        for head_dim in (8, 64, 96, 128, *([] if device is ADA else [192, 256])):
            for one in prepare(*tensors(head_dim=head_dim), device=device):
                assert one.variant.shared_bytes <= device.shared_bytes, (one.variant, device)
    with pytest.raises(ValueError, match="needs 114688 bytes of shared memory: the device has 101376"):
        main(*tensors(head_dim=192), device=ADA)


def test_wide_heads_are_done_in_two_parts() -> None:
    variant, one = main(*tensors(head_dim=136))
    assert (variant.head_dim, variant.parts) == (192, 2)
    assert one.blocks == 2 * 2 * 2 * one.params.splits


def expanded(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


@pytest.mark.parametrize(
    ("options", "change", "kernel"),
    [
        ({}, {}, "wgmma"),
        ({}, {"kv_len": 61}, "mma"),
        ({}, {"head_dim": 72}, "wgmma"),
        ({}, {"head_dim": 32}, "mma"),
        ({}, {"head_dim": 192}, "mma"),
        ({"scale": -0.5}, {}, "wgmma"),
        ({"scale": -0.5}, {"where": 0}, "wgmma"),
        ({}, {"where": 1}, "wgmma"),
        ({"method": NM(1, 2, window=5)}, {}, "wgmma"),
        ({"method": NM(1, 1)}, {}, "wgmma"),
        ({"method": NM(1, 2, stride=16)}, {"kv_len": 64}, "wgmma"),
        ({"method": NM(1, 2, stride=4)}, {}, "mma"),
        ({"dropout_p": 0.1, "seed": torch.tensor(5)}, {}, "mma"),
    ],
)
def test_forward_and_backward_on_hopper_are_a_pair(options: dict, change: dict, kernel: str) -> None:
    """Both sum scores by the same instructions, padded alike; of a few heads, and of tensors with other strides too."""
    sizes = {name: size for name, size in change.items() if name != "where"}
    inputs = [expanded(x) if i == change.get("where") else x for i, x in enumerate(tensors(**sizes))]
    pattern = Pattern.of(options.get("method", NM(2, 4)), True, options.get("scale", 0.5))
    pattern = pattern._replace(dropout_p=options.get("dropout_p", 0.0))
    query, key, value = inputs
    out, logsumexp = torch.empty_like(query), torch.empty(query.shape[:3])
    figures = torch.empty_like(logsumexp), logsumexp.int(), logsumexp.int()
    forward, with_kept_mass = (
        launch.prepare(
            query, key, value, None, out, logsumexp, *aux, pattern, HOPPER, for_backward=True, seed=options.get("seed")
        ).variant
        for aux in ((None, None, None), figures)
    )
    assert forward.kernel == with_kept_mass.kernel == kernel
    elsewhere = query.clone(), key.contiguous(), value.mT.contiguous().mT
    for q, k, v in ((query, key, value), (query[1:2, :2], key[1:2, :1], value[1:2, :1]), elsewhere):
        sums, _, (variant, _, _, _, maps), _ = prepare(q, k, v, device=HOPPER, **options)
        assert (sums.variant.kernel, sums.variant.head_dim) == (forward.kernel, forward.head_dim)
        assert sums.params.scale == pattern.scale  # with its sign, as the forward has it
        assert isinstance(variant, WgmmaBackwardVariant if kernel == "wgmma" else BackwardVariant)
        assert (variant.head_dim, variant.stride, variant.band) == (forward.head_dim, forward.stride, forward.band)
        assert not any(0 in one.strides for one in maps)


@pytest.mark.parametrize(
    ("batch", "kv_len", "head_dim", "shares"),
    [
        (1, 65536, 64, 16),  # more would cost too much memory
        (33, 65536, 64, 2),  # 66 heads of keys: twice as many blocks fill 132 multiprocessors at once
        (33, 256, 64, 1),  # no more than there are tiles
        (66, 65536, 128, 1),
        (50, 2048, 128, 1),  # 100 heads: 8 shares would end after 7 rounds of 2 of 16 tiles, but sums cost more
        (1, 4, 64, 1),
    ],
)
def test_keys_are_dealt_out_on_hopper(batch: int, kv_len: int, head_dim: int, shares: int) -> None:
    query, key, value = tensors(q_len=1, kv_len=4, head_dim=head_dim, batch=batch)
    variant = prepare(query, key, value, device=HOPPER).main.variant
    assert isinstance(variant, WgmmaBackwardVariant)
    splits, blocks = launch_backward._grid(HOPPER, variant, 2 * batch, kv_len)
    assert (splits, blocks) == (shares, 2 * batch * shares)


def test_what_the_copy_engine_is_told_of_a_backward() -> None:
    query, key, value = tensors(kv_len=62)
    everywhere = torch.ones(1, 1, 1, 64, dtype=torch.bfloat16).expand_as(query)
    one = prepare(query, key, value, device=HOPPER, grad_out=everywhere).main
    maps = one.tensor_maps
    halves, rows = [(64, 2, 16, 1, 1)] * 2, [(64, 64, 1, 1)]
    assert [x.box for x in maps] == halves + rows + halves + 2 * rows
    assert [x.address for x in maps[:6]] == [
        key.data_ptr(), key.data_ptr() + 2 * 2 * 64, key.data_ptr(),
        value.data_ptr(), value.data_ptr() + 2 * 2 * 64, query.data_ptr(),
    ]  # fmt: skip
    assert 0 not in maps[6].strides
    assert maps[6].address == one.params.grad_out


def test_a_negative_scale_goes_into_the_query() -> None:
    query, key, value = tensors()
    _, one = main(query, key, value, scale=-0.25)
    assert (one.params.forward.scale, one.params.query_scale) == (0.25, -0.25)
    assert one.tensors[0] is not None
    assert torch.equal(one.tensors[0], -query)
    assert main(query, key, value)[1].tensors[0] is query


def test_dropout_is_told_what_the_forward_was() -> None:
    query, key, value = tensors()
    seed = torch.tensor(5)
    variant, one = main(query, key, value, dropout_p=0.25, seed=seed)
    assert variant.dropout
    assert (one.params.forward.seed, one.params.forward.drop_below) == (seed.data_ptr(), 1 << 30)
    assert any(tensor is seed for tensor in one.tensors)
    assert not main(query, key, value)[0].dropout


def test_rows_that_are_not_aligned_are_copied() -> None:
    query, key, value = tensors()
    everywhere = torch.ones((), dtype=torch.bfloat16).expand_as(query)  # the gradient of a sum
    _, one = main(query, key, value, grad_out=everywhere)
    grad_out = one.tensors[6]
    assert grad_out is not None
    assert grad_out.is_contiguous()
    assert torch.equal(grad_out, everywhere)


def test_the_masks_gradient_starts_at_zero() -> None:
    d_mask = torch.full((2, 4, 100, 60), float("nan"))
    _, one = main(*tensors(), torch.zeros(100, 60), d_mask)
    assert (d_mask == 0).all()
    assert one.params.d_mask == d_mask.data_ptr()


def test_what_is_compiled_ahead_for_training() -> None:
    common = [variant for variant, _ in warm.chosen_for_training(["sm_80"], [], every=False)]
    forward = {variant for variant, _ in warm.chosen(["sm_90a"], [], every=False)}
    main_ones = [variant for variant in common if isinstance(variant, BackwardVariant)]
    assert {variant.head_dim for variant in main_ones} == {64, 128}
    assert {variant.mask for variant in main_ones} == {"none", "bool"}
    assert not any(variant.dropout for variant in main_ones)
    assert len(common) == len(main_ones) + 4  # before and after, for both types
    query, key, value = tensors()
    assert {one.variant for one in prepare(query, key, value)} <= {*common, *forward}
    every = warm.chosen_for_training(["sm_80", "sm_90a"], [40], every=True)
    of_hopper = [(variant, arch) for variant, arch in every if isinstance(variant, WgmmaBackwardVariant)]
    assert {arch for _, arch in of_hopper} == {"sm_90a"}
    others = len(every) - len(of_hopper)
    assert others == 2 * len(warm.chosen_for_training(["sm_80"], [], every=True)) > 2 * len(common)
    on_hopper = {variant for variant, _ in warm.chosen_for_training(["sm_90a"], [], every=False)}
    assert {one.variant for one in prepare(query, key, value, device=HOPPER)} <= on_hopper | forward
    assert {x.mask for x in on_hopper if isinstance(x, WgmmaBackwardVariant)} == {"none", "bool"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"dtype": torch.float32}, "the backward kernels take bfloat16 and float16, not float32"),
        ({"method": NM(3, 8)}, "the kernels compute 1:2 and 2:4, not 3:8"),
        ({"head_dim": 20}, "the kernels take a head_dim of 8"),
        ({"head_dim": 256}, "a block of the backward needs 147456 bytes of shared memory, and the device has 101376"),
    ],
)
def test_why_not(change: dict, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "unavailable_reason", lambda index: None)
    monkeypatch.setattr(driver, "device", lambda index: ADA)
    call = {"dtype": torch.bfloat16, "method": NM(1, 2), "head_dim": 64, "value_dim": 64} | change
    answer = cannot_backward(**call, device=torch.device("cuda", 0))
    assert answer is None if reason is None else reason in str(answer)
