"""From a call to a launch, without a device: the parameters' bytes, the choice of the variant, the tensor maps."""

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynattn.kernels.cuda import launch as launching
from dynattn.kernels.cuda.driver import Device, TensorMap
from dynattn.kernels.cuda.launch import ForwardParams, Launch
from dynattn.kernels.cuda.variants import WGMMA_HEAD_DIMS
from dynattn.kernels.pattern import Pattern
from tests.kernels.cuda import layout

AMPERE = Device(0, "sm_80", 108, 163 * 1024)
ADA = Device(0, "sm_89", 76, 99 * 1024)
HOPPER = Device(0, "sm_90a", 132, 227 * 1024)

needs_wgmma = pytest.mark.skipif(not WGMMA_HEAD_DIMS, reason="this build has no wgmma kernel")


def prepare(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, device: Device = AMPERE,
    aux: bool = False, n: int = 2, m: int = 4, window: int = 0, sinks: int = 0, stride: int = 1, causal: bool = False,
    dropout_p: float = 0.0, seed: Tensor | None = None,
) -> Launch:  # fmt: skip
    rows = query.shape[:3]
    out = torch.empty(*rows, value.shape[3], dtype=query.dtype)
    floats, ints = torch.empty(2, *rows), torch.empty(2, *rows, dtype=torch.int32)
    asked = (floats[1], ints[0], ints[1]) if aux else (None, None, None)
    return launching.prepare(
        query, key, value, mask, out, floats[0], *asked,
        Pattern(n, m, window, sinks, stride, causal, 0.5, dropout_p), device, seed=seed,
    )  # fmt: skip


def tensors(
    q_len: int = 100, kv_len: int = 60, head_dim: int = 64, value_dim: int = 64, batch: int = 2, heads: int = 4,
    kv_heads: int = 2, dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        torch.randn(batch, heads, q_len, head_dim).to(dtype),
        torch.randn(batch, kv_heads, kv_len, head_dim).to(dtype),
        torch.randn(batch, kv_heads, kv_len, value_dim).to(dtype),
    )


def test_the_parameters_lie_as_the_kernels_read_them(tmp_path: Path) -> None:
    layout.check(ForwardParams, Path(launching.__file__).parent / "params.cuh", tmp_path)


def test_parameters_of_a_call() -> None:
    query, key, value = tensors(value_dim=32)
    query = query.transpose(1, 2).contiguous().transpose(1, 2)  # (batch, length, heads, head_dim) in memory
    mask = torch.ones(2, 1, 1, 60, dtype=torch.bool)
    launch = prepare(query, key, value, mask, aux=True, window=7, sinks=3, causal=True)
    params = launch.params
    assert (params.query, params.key, params.value, params.mask) == tuple(
        x.data_ptr() for x in (query, key, value, mask)
    )
    assert None not in (params.out, params.logsumexp, params.kept_mass, params.kept, params.allowed)
    assert list(params.query_strides) == list(query.stride()[:3])
    assert list(params.key_strides) == [2 * 60 * 64, 60 * 64, 64]
    assert list(params.value_strides) == [2 * 60 * 32, 60 * 32, 32]
    assert list(params.out_strides) == [4 * 100 * 32, 100 * 32, 32]
    assert list(params.mask_strides) == [60, 0, 0, 1]  # broadcast, not expanded in memory
    sizes = (params.batch, params.heads, params.kv_heads, params.q_len, params.kv_len, params.head_dim)
    assert sizes == (2, 4, 2, 100, 60, 64)
    assert (params.value_dim, params.window, params.sinks, params.causal, params.scale) == (32, 7, 3, 1, 0.5)
    assert launch.blocks == -(-100 // launch.variant.query_tile) * 4 * 2
    assert launch.variant.aux
    assert launch.variant.band


def test_without_mask_and_aux_their_pointers_are_null() -> None:
    params = prepare(*tensors()).params
    assert (params.mask, params.kept_mass, params.kept, params.allowed, params.seed) == (None, None, None, None, None)
    assert (params.drop_below, params.keep_factor) == (0, 1.0)


def test_dropouts_seed_stays_where_it_is() -> None:
    """The kernel reads it: its number here would make the host wait, and a captured graph drop the same for ever."""
    seed = torch.tensor(5)
    launch = prepare(*tensors(), dropout_p=0.25, seed=seed)
    params = launch.params
    assert (params.seed, params.drop_below, params.keep_factor) == (
        seed.data_ptr(),
        1 << 30,
        ctypes.c_float(4 / 3).value,
    )
    assert any(tensor is seed for tensor in launch.tensors)  # it lives until the kernel is on the stream
    assert launch.variant.dropout
    assert not prepare(*tensors()).variant.dropout


def test_rows_that_are_not_aligned_are_copied_and_no_others() -> None:
    query, key, value = tensors()
    wide = torch.randn(2, 2, 60, 65).to(torch.bfloat16)
    off_by_one = wide.flatten()[1 : 1 + key.numel()].view(key.shape)  # contiguous, but 2 bytes off
    transposed = torch.randn(2, 2, 64, 60).to(torch.bfloat16).mT  # last dimension not contiguous
    for key_in in (wide[..., :64], off_by_one, transposed):
        _, copy, kept, *_ = prepare(query, key_in, value).tensors
        assert copy is not None
        assert kept is value
        assert copy.data_ptr() % 16 == 0
        assert torch.equal(copy, key_in)
        assert copy.is_contiguous()
    sliced = torch.randn(2, 2, 60, 72).to(torch.bfloat16)[..., :64]  # rows of 144 bytes
    for key_in in (key, sliced, key[:, :1].expand(-1, 2, -1, -1)):
        assert prepare(query, key_in, value).tensors[1] is key_in


@pytest.mark.parametrize(
    ("dtype", "mask_dtype", "kind"),
    [
        (torch.bfloat16, torch.bool, "bool"),
        (torch.bfloat16, torch.bfloat16, "element"),
        (torch.float16, torch.float16, "element"),
        (torch.bfloat16, torch.float32, "float32"),
        (torch.float16, torch.bfloat16, "float32"),
        (torch.bfloat16, torch.float16, "float32"),
    ],
)
def test_masks(dtype: torch.dtype, mask_dtype: torch.dtype, kind: str) -> None:
    mask = (torch.arange(60) % 3 == 0).to(mask_dtype)
    launch = prepare(*tensors(dtype=dtype), mask)
    assert launch.variant.mask == kind
    seen = launch.tensors[3]
    assert seen is not None
    assert torch.equal(seen, mask.to(torch.float32 if kind == "float32" else mask_dtype).expand(2, 4, 100, 60))
    assert list(launch.params.mask_strides) == [0, 0, 0, 1]


def test_float32_takes_the_kernel_for_tf32() -> None:
    mask = torch.zeros(60)
    for head_dim, padded in ((8, 32), (64, 64), (72, 96), (128, 128)):
        sizes = {"head_dim": head_dim, "value_dim": head_dim, "q_len": 8192, "batch": 1}
        variant = prepare(*tensors(dtype=torch.float32, **sizes), mask, device=HOPPER).variant
        assert (variant.kernel, variant.dtype, variant.head_dim, variant.mask) == ("mma", "tf32", padded, "float32")
        assert variant.row_tiles == 1
        assert variant.shared_bytes <= ADA.shared_bytes
    half = torch.zeros(60, dtype=torch.float16)
    assert prepare(*tensors(dtype=torch.float32), half).variant.mask == "float32"


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "padded"), [(8, 8, 32), (32, 32, 32), (64, 8, 64), (40, 72, 96), (128, 128, 128),
                                          (136, 64, 192), (256, 200, 256)],
)  # fmt: skip
def test_head_dims_are_padded_to_the_next_size(head_dim: int, value_dim: int, padded: int) -> None:
    launch = prepare(*tensors(head_dim=head_dim, value_dim=value_dim))
    assert launch.variant.kernel == "mma"
    assert launch.variant.head_dim == padded


def test_large_query_tiles_only_where_they_fill_the_device() -> None:
    assert prepare(*tensors(q_len=64, batch=1)).variant.row_tiles == 1
    assert prepare(*tensors(q_len=8192, batch=1, kv_len=64)).variant.row_tiles == 2
    assert prepare(*tensors(q_len=8192, batch=1, head_dim=256)).variant.row_tiles == 1  # no registers for two


def test_no_kernel_asks_for_more_shared_memory_than_there_is() -> None:
    for head_dim in (64, 128, 192, 256):
        for device in (AMPERE, ADA, HOPPER):
            for length in (64, 8192):
                query, key, value = tensors(q_len=length, head_dim=head_dim)
                variant = prepare(query, key, value, device=device).variant
                assert variant.shared_bytes <= device.shared_bytes, (variant, device)


@needs_wgmma
@pytest.mark.parametrize(
    ("change", "kernel", "why"),
    [
        ({}, "wgmma", "as it should be"),
        ({"head_dim": 40}, "wgmma", "pads to 64"),
        ({"head_dim": 96}, "wgmma", "pads to 128"),
        ({"head_dim": 32, "value_dim": 32}, "mma", "padding to 64 would double the work"),
        ({"head_dim": 136}, "mma", "too wide"),
        ({"kv_len": 61}, "mma", "pairs of keys would read a row past the end"),
        ({"kv_len": 2}, "mma", "no second pair"),
        ({"kv_len": 0}, "mma", "nothing to describe"),
    ],
)
def test_hopper_takes_wgmma_where_it_can(change: dict, kernel: str, why: str) -> None:
    assert prepare(*tensors(**change), device=HOPPER).variant.kernel == kernel, why
    assert prepare(*tensors(**change), device=AMPERE).variant.kernel == "mma"


@needs_wgmma
def test_hopper_takes_mma_for_kept_mass_with_a_window_for_dropout_and_for_expanded_heads() -> None:
    query, key, value = tensors()
    assert prepare(query, key, value, device=HOPPER, aux=True).variant.kernel == "wgmma"
    assert prepare(query, key, value, device=HOPPER, window=3).variant.kernel == "wgmma"
    assert prepare(query, key, value, device=HOPPER, aux=True, window=3).variant.kernel == "mma"
    assert prepare(query, key, value, device=HOPPER, dropout_p=0.1, seed=torch.tensor(0)).variant.kernel == "mma"
    one = key[:, :1].expand(-1, 2, -1, -1)
    assert prepare(query, one, value, device=HOPPER).variant.kernel == "mma"
    assert prepare(query, key, one, device=HOPPER).variant.kernel == "mma"
    assert prepare(query, key, value, device=HOPPER).tensor_maps


def test_nothing_to_do_is_no_block() -> None:
    assert prepare(*tensors(q_len=0)).blocks == 0
    assert prepare(*tensors(batch=0)).blocks == 0
    assert prepare(*tensors(kv_len=0)).blocks > 0  # rows of zeros are to be written


@needs_wgmma
@pytest.mark.parametrize("kv_len", [4, 6, 62, 64, 130])
@pytest.mark.parametrize("transposed", [False, True])
def test_tensor_maps_reach_each_element_and_nothing_outside(kv_len: int, transposed: bool) -> None:
    query, key, value = tensors(kv_len=kv_len, head_dim=40, value_dim=56)
    if transposed:
        key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (key, value))
    low, high, values = prepare(query, key, value, device=HOPPER).tensor_maps
    for first, tensor_map in ((0, low), (2, high)):
        picked = view(tensor_map, key)  # [batch, kv_heads, quads, 2, head_dim]
        expected = torch.stack([key[:, :, first::4], key[:, :, first + 1 :: 4]], dim=3)
        assert torch.equal(picked, expected)
    assert torch.equal(view(values, value), value)
    assert low.box == high.box == (64, 2, 32, 1, 1)
    assert values.box == (64, 128, 1, 1)


@needs_wgmma
@pytest.mark.parametrize(("kv_len", "kernel"), [(16, "wgmma"), (48, "wgmma"), (192, "wgmma"), (62, "mma"), (72, "mma")])
@pytest.mark.parametrize("transposed", [False, True])
def test_strided_groups_take_wgmma_where_the_length_is_a_multiple(kv_len: int, kernel: str, transposed: bool) -> None:
    query, key, value = tensors(kv_len=kv_len, head_dim=40, value_dim=56)
    if transposed:
        key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (key, value))
    prepared = prepare(query, key, value, device=HOPPER, stride=16)
    assert (prepared.variant.kernel, prepared.variant.stride) == (kernel, 16)
    assert prepare(query, key, value, device=HOPPER, stride=8).variant.kernel == "mma"
    if kernel == "mma":
        return
    low, high, values = prepared.tensor_maps
    assert low == high
    assert torch.equal(view(low, key), key.unflatten(2, (-1, 16)).transpose(2, 3))  # [..., residue, member, head_dim]
    assert torch.equal(view(values, value), value.unflatten(2, (-1, 16)).transpose(2, 3))
    assert (low.box, values.box) == ((64, 2, 16, 1, 1), (64, 4, 16, 1, 1))


@pytest.mark.parametrize("n", [1, 4])
def test_dense_is_a_pattern_whose_window_holds_everything(n: int) -> None:
    launch = prepare(*tensors(), n=n, m=n, window=3, sinks=2, stride=16, aux=True)
    assert (launch.variant.n, launch.variant.m, launch.variant.band, launch.variant.stride) == (1, 2, True, 1)
    assert (launch.params.window, launch.params.sinks) == (2**31 - 1, 0)


def view(tensor_map: TensorMap, tensor: Tensor) -> Tensor:
    """What the copy engine sees, outermost dimension first; raises where it reaches past the storage."""
    offset = tensor_map.address - tensor.untyped_storage().data_ptr()
    assert offset % tensor.element_size() == 0
    flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return flat.as_strided(tensor_map.sizes[::-1], (*tensor_map.strides[::-1], 1), offset // tensor.element_size())
