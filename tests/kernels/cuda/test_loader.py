"""The loader: what it keeps on disk and when it compiles anew; several processes at once; what it says when it cannot.

A tiny kernel stands for the real ones, so that these tests take no compile time worth mentioning.
"""

import multiprocessing
import os
import subprocess
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dynattn.kernels.cuda import loader, warm
from dynattn.kernels.cuda.loader import Compiled, compile_variant
from dynattn.kernels.cuda.variants import HEAD_DIMS, WGMMA_HEAD_DIMS, Variant, variants

needs_nvrtc = pytest.mark.skipif(loader.missing() is not None, reason=f"needs NVRTC: {loader.missing()}")

VARIANT = Variant("mma", "bfloat16", 64, 1, 2)
_HEADER = """
namespace dynattn {
struct BFloat16 {}; struct Float16 {};
enum class Pattern { one_of_two, two_of_four };
enum class MaskKind { none, boolean, float32, element };
constexpr float FACTOR = 2.0f;
}
"""
_SOURCE = """
#include "tiny.cuh"
namespace dynattn {
template <class Element, int head_dim, Pattern pattern, MaskKind mask, bool aux, bool band, int row_tiles, int stride,
          bool dropout>
__global__ void nm_forward_mma(float* out) { out[threadIdx.x] = FACTOR * head_dim; }
}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources with one tiny kernel, and an empty cache on disk."""
    use(tmp_path / "sources", monkeypatch)
    monkeypatch.setenv("DYNATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def use(folder: Path, monkeypatch: pytest.MonkeyPatch, header: str = _HEADER, source: str = _SOURCE) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.cuh").write_text(header)
    (folder / "nm_mma.cu").write_text(source)
    monkeypatch.setattr(loader, "_FOLDER", folder)


def entries(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def compile_here(folder: str, _: int) -> Compiled:
    """In a process of its own: the tiny kernel through the cache that DYNATTN_CACHE names."""
    loader._FOLDER = Path(folder)
    return compile_variant(VARIANT, "sm_80")


@needs_nvrtc
def test_compiles_once_and_then_reads_from_the_disk(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_variant(VARIANT, "sm_80")
    assert first.cubin.startswith(b"\x7fELF")
    assert first.symbol.encode() in first.cubin
    assert "nm_forward_mma" in first.symbol
    assert "Used" in first.log  # registers, as ptxas reports them
    monkeypatch.setattr("cuda.core.Program", None)  # a second compilation would fail
    assert compile_variant(VARIANT, "sm_80") == first._replace(log="")


@needs_nvrtc
def test_without_the_cache_nothing_is_read_or_left(tiny: Path) -> None:
    compile_variant(VARIANT, "sm_80")
    before = entries(tiny)
    assert compile_variant(replace(VARIANT, head_dim=128), "sm_80", cached=False).log
    assert compile_variant(VARIANT, "sm_80", cached=False).log
    assert entries(tiny) == before


@needs_nvrtc
def test_whatever_changes_the_code_changes_the_entry(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled_anew() -> bool:
        return bool(compile_variant(VARIANT, "sm_80").log)

    assert compiled_anew()
    assert not compiled_anew()
    use(tiny / "sources", monkeypatch, header=_HEADER.replace("2.0f", "3.0f"))
    assert compiled_anew()
    use(tiny / "sources", monkeypatch, source=_SOURCE + "// another source\n")
    assert compiled_anew()
    assert compile_variant(VARIANT, "sm_89").log
    assert compile_variant(replace(VARIANT, n=2, m=4), "sm_80").log
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    monkeypatch.setattr(nvrtc, "nvrtcVersion", lambda: (nvrtc.nvrtcResult.NVRTC_SUCCESS, 99, 9))
    assert compiled_anew()
    assert len(entries(tiny)) == 6


@pytest.mark.usefixtures("forked_python")
@needs_nvrtc
def test_several_processes_at_once(tiny: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=spawn) as pool:
        results = list(pool.map(compile_here, [str(tiny / "sources")] * 6, range(6)))
    assert len({result.symbol for result in results}) == 1
    assert len(entries(tiny)) == 1  # and no temporary file
    # equal code is not equal bytes, NVRTC salts names of sections; what is on the disk is whole and one of them
    assert compile_variant(VARIANT, "sm_80") in [result._replace(log="") for result in results]


@needs_nvrtc
def test_an_emptied_entry_is_compiled_again(tiny: Path) -> None:
    first = compile_variant(VARIANT, "sm_80")
    (entry,) = entries(tiny)
    entry.write_bytes(b"")
    second = compile_variant(VARIANT, "sm_80")
    assert second.log
    assert second.symbol == first.symbol
    assert compile_variant(VARIANT, "sm_80") == second._replace(log="")


@needs_nvrtc
def test_a_folder_that_cannot_be_written_costs_only_time(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny / "file").write_text("no folder")
    monkeypatch.setenv("DYNATTN_CACHE", str(tiny / "file"))
    assert compile_variant(VARIANT, "sm_80").log
    assert compile_variant(VARIANT, "sm_80").log


@needs_nvrtc
def test_what_the_compiler_says_reaches_the_user(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tiny / "sources", monkeypatch, source=_SOURCE.replace("FACTOR", "NO_SUCH_FACTOR"))
    with pytest.raises(RuntimeError, match=r"(?s)^compile_variant: NVRTC [\d.]+ refused .*sm_80.*NO_SUCH_FACTOR"):
        compile_variant(VARIANT, "sm_80")


@pytest.mark.parametrize(
    ("variant", "arch", "text"),
    [
        (VARIANT, "ampere", "arch must look like sm_80 or sm_90a: got 'ampere'"),
        (VARIANT, "sm_75", "arch must be sm_80 or later: got sm_75"),
        (Variant("wgmma", "bfloat16", 64, 1, 2), "sm_90", "the wgmma kernel needs sm_90a: got sm_90"),
    ],
)
def test_an_architecture_that_cannot_run_it_is_refused(variant: Variant, arch: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        compile_variant(variant, arch)


def test_without_cuda_core_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core.utils", None)
    _expect_remedy(monkeypatch, "cuda-core does not import")


def test_an_older_cuda_core_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("cuda.core.utils")
    if hasattr(utils, "FileStreamProgramCache"):
        monkeypatch.setitem(sys.modules, "cuda.core.utils", types.ModuleType("utils"))
    _expect_remedy(monkeypatch, r"cuda-core \d\S* has no cache of programs")


def test_without_nvrtc_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")

    def not_there() -> None:
        raise RuntimeError("Failure finding libnvrtc.so\nand more")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", not_there)
    _expect_remedy(monkeypatch, r"NVRTC, the compiler, does not load \(Failure finding libnvrtc.so\)")


def _expect_remedy(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(loader, "missing", loader.missing.__wrapped__)  # what was found before is cached
    with pytest.raises(ImportError, match=rf"^compile_variant: {text}.*; pip install 'dynattn\[cuda\]'$"):
        compile_variant(VARIANT, "sm_80")
    with pytest.raises(ImportError, match=rf"^warmup: {text}"):
        next(warm.warm([(VARIANT, "sm_80")]))


def test_nothing_of_nvidia_is_imported_before_it_is_needed() -> None:
    code = (
        "import torch, sys; before = set(sys.modules); import dynattn; "
        "sys.exit(any(name.split('.')[0] == 'cuda' for name in set(sys.modules) - before))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNATTN_CACHE", "/a")
    assert loader.cache_folder() == Path("/a/cuda")
    monkeypatch.delenv("DYNATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert loader.cache_folder() == Path("/b/dynattn/cuda")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert loader.cache_folder() == Path(os.path.expanduser("~/.cache/dynattn/cuda"))


def test_warmup_takes_what_models_use() -> None:
    common = warm.chosen(["sm_80"], [], every=False)
    assert {variant.head_dim for variant, _ in common} == {64, 128}
    assert {(variant.mask, variant.aux) for variant, _ in common} == {("none", False), ("bool", False)}
    assert {variant.kernel for variant, _ in common} == {"mma"}
    assert {variant.head_dim for variant, _ in warm.chosen(["sm_80"], [72, 256], every=False)} == {96, 256}
    kernels = {variant.kernel for variant, _ in warm.chosen(["sm_90a"], [], every=False)}
    assert kernels == ({"mma", "wgmma"} if WGMMA_HEAD_DIMS else {"mma"})
    assert len(warm.chosen(["sm_90a"], [], every=True)) == len(list(variants()))


def test_warmup_refuses_what_no_kernel_takes() -> None:
    with pytest.raises(ValueError, match=f"head_dim must be between 1 and {HEAD_DIMS[-1]}: got 257"):
        warm.chosen(["sm_80"], [257], every=False)
    with pytest.raises(ValueError, match="arch must be sm_80 or later: got sm_70"):
        warm.chosen(["sm_70"], [], every=False)


@pytest.mark.usefixtures("forked_python")
@needs_nvrtc
def test_warmup_leaves_the_kernels_on_the_disk(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = [(VARIANT, "sm_80"), (replace(VARIANT, n=2, m=4), "sm_80")]
    monkeypatch.setattr(loader, "_FOLDER", Path(loader.__file__).parent)  # its processes compile the real sources
    assert list(warm.warm(real, jobs=2)) == [True, True]
    assert list(warm.warm(real, jobs=1)) == [False, False]
    assert not compile_variant(VARIANT, "sm_80").log
