"""Which shared bundles the processes of a run make before its tests, and that each is made once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exports import made_once
from filelock import FileLock
from parallel import wanted_bundles


def item(*fixtures: str, **params: Any) -> Any:
    return SimpleNamespace(fixturenames=fixtures, callspec=SimpleNamespace(params=params))


def test_bundles_follow_from_fixtures_and_parameters() -> None:
    items = [
        item("tmp_path", name="sd15"),
        item("family", "capsys", name="sd2-v"),
        item("family", case=SimpleNamespace(family="sdxl-refiner")),
        item("family", options={"steps": 2}),
        item("sdxl_bundle", "family", name="sd2-v"),
        item("sdxl_copy_fp16", "sdxl_bundle_fp16"),
        SimpleNamespace(),
    ]
    longest_first = [("sdxl", "fp16"), ("sdxl", "fp32"), ("sd2-v", "fp32"), ("sdxl-refiner", "fp32")]
    assert wanted_bundles(items) == longest_first
    assert wanted_bundles([item("tmp_path")]) == []


def test_what_another_process_makes_is_left_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    with FileLock(folder.with_name("bundle.lock")):
        assert made_once(folder, Path.mkdir, wait=False) == folder
        assert not folder.exists()
    assert made_once(folder, Path.mkdir, wait=False).is_dir()
    made_once(folder, lambda target: pytest.fail("made twice"))


def test_a_failure_is_followed_by_another_attempt(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        target.mkdir()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        made_once(tmp_path / "bundle", fail)
    assert made_once(tmp_path / "bundle", Path.mkdir, wait=False).is_dir()
