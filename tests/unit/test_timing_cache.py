"""TensorRT's kernel timings between builds: kept, dropped where they do not match, and never worth an engine."""

from pathlib import Path

import pytest

from latentrt.engine.tensorrt import load_timing_cache, save_timing_cache


class Cache(bytes):
    """Timings, as TensorRT holds them."""

    def serialize(self) -> bytes:
        return bytes(self)


class Config:
    """A builder's config that takes timings unless they say `other`."""

    def __init__(self) -> None:
        self.cache = Cache(b"new")

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        if cache == b"other":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache:
        return self.cache


def test_timings_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.cache"
    config = Config()
    save_timing_cache(config, file)
    again = Config()
    load_timing_cache(again, file)
    assert again.cache == b"new"


def test_timings_of_another_machine_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "a.cache"
    file.write_bytes(b"other")
    config = Config()
    load_timing_cache(config, file)
    assert config.cache == b""
    assert not file.exists()


def test_a_system_that_refuses_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.cache"
    file.write_bytes(b"old")

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    config = Config()
    load_timing_cache(config, file)
    save_timing_cache(config, file)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "cannot be read, so kernels are timed anew: [Errno 13] Permission denied",
        f"cannot be written, so the next build times its kernels again: [Errno 13] Permission denied: '{file}'",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.cache"]
