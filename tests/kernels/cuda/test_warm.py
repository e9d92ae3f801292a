"""Compiling ahead: what it says when nothing would be there afterwards."""

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from dynattn.kernels.cuda import loader, warm
from dynattn.kernels.cuda.variants import Variant

WORK = [(Variant("mma", "bfloat16", 64, 1, n), "sm_80") for n in (2, 4)]


class _Pool:
    """Answers at once, or fails at once, and keeps count of what it was asked."""

    asked = 0

    def __init__(self, answer: tuple[bool, bool] | BaseException) -> None:
        self.answer = answer

    def __call__(self, workers: int) -> "_Pool":
        return self

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, calls: list) -> list[Future]:
        self.asked += len(calls)
        futures = [Future() for _ in calls]
        for future in futures:
            if isinstance(self.answer, BaseException):
                future.set_exception(self.answer)
            else:
                future.set_result(self.answer)
        return futures


def _pool(monkeypatch: pytest.MonkeyPatch, answer: tuple[bool, bool] | BaseException) -> _Pool:
    pool = _Pool(answer)
    monkeypatch.setattr(warm, "Pool", pool)
    monkeypatch.setattr(loader, "missing", lambda: None)
    return pool


def test_a_cache_that_cannot_be_written_is_refused_before_the_compilers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DYNATTN_CACHE", str(tmp_path / "file"))
    pool = _pool(monkeypatch, (True, True))
    with pytest.raises(OSError, match=r"cache must be a folder that can be written: .*file/cuda: .*set DYNATTN_CACHE"):
        next(warm.warm(WORK))
    assert pool.asked == 0


def test_the_look_at_the_cache_leaves_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNATTN_CACHE", str(tmp_path / "new"))
    _pool(monkeypatch, (False, True))
    assert list(warm.warm(WORK)) == [False, False]
    assert list((tmp_path / "new" / "cuda").iterdir()) == []


def test_a_kernel_that_is_not_kept_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNATTN_CACHE", str(tmp_path))
    _pool(monkeypatch, (True, False))
    with pytest.raises(OSError, match=r"must be a folder that can be written: .*: the disk may be full; make room"):
        next(warm.warm(WORK))


def test_a_compiler_that_dies_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNATTN_CACHE", str(tmp_path))
    _pool(monkeypatch, BrokenProcessPool())
    with pytest.raises(RuntimeError, match=r"compilers must live until they are done: .* with fewer --jobs"):
        next(warm.warm(WORK))


@pytest.mark.skipif(loader.missing() is not None, reason=f"needs NVRTC: {loader.missing()}")
def test_what_the_disk_does_not_take_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.kernels.cuda.test_loader import VARIANT, use

    use(tmp_path / "sources", monkeypatch)

    class Full(dict):
        def __setitem__(self, key: object, value: object) -> None:
            raise OSError(28, "No space left on device")

    disk: dict[bytes, bytes] = {}
    assert loader._compile(VARIANT, "sm_80", disk).kept
    assert loader._compile(VARIANT, "sm_80", disk).kept  # read from there
    assert not loader._compile(VARIANT, "sm_80", Full()).kept
