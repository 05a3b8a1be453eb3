"""Whole requests on the fake device: what the host still does once everything is warm."""

import shutil
from pathlib import Path

import pytest
from fake_cuda.device import CAPABILITIES, FakeDevice
from fake_cuda.take_turns import PER_PART, STEPS
from fake_cuda.trace import Part

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built_bundle(fake_device: FakeDevice, demo_bundle_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with engines for a card of capability 8.9."""
    folder = tmp_path_factory.mktemp("built")
    bundle = shutil.copytree(demo_bundle_fp16, folder / "demo")
    fake_device.run(folder / "log", "build", bundle, "cuda-sm89")
    return bundle


def host_copies(part: Part) -> dict[tuple[str, str], int]:
    return {places: count for places, count in part.executed.copies.items() if places != ("device", "device")}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_warm_request_is_one_upload_one_launch_per_step_and_no_pageable_copy(
    fake_device: FakeDevice, demo_bundle_fp16: Path, tmp_path: Path, capability: str
) -> None:
    _, parts = fake_device.run(tmp_path / "log", "draw", demo_bundle_fp16, 3, capability=capability)
    assert [part.name for part in parts if part.illegal] == []
    warm = {part.name.removeprefix("2 "): part for part in parts if part.name.startswith("2 ")}
    for name, part in warm.items():
        assert part.enqueued.operations == 0, part.summary()
        assert (part.captures, part.allocations, part.pinned_allocations) == (0, 0, 0), part.summary()
        if name.startswith("step"):
            assert (part.graph_launches, part.waits.total()) == (1, 0), part.summary()
            assert part.replayed.operations > 0, part.summary()
    # The prompt is known. Noise, prompt, tables: one block.
    assert {name: host_copies(part) for name, part in warm.items() if host_copies(part)} == {
        "step 0": {("pinned", "device"): 1},
        "read back": {("device", "pinned"): 2},
        "finish": {("pinned", "device"): 1, ("device", "pinned"): 2},
    }
    # For the latents, for the picture, and for the end of the last stage that is timed.
    waits = {name: part.waits.total() for name, part in warm.items() if part.waits}
    assert waits == {"read back": 1, "finish": 2}
    assert len({part.device_bytes for part in warm.values()}) == 1
    assert parts[-1].device_bytes == 0, "memory is left when the pipeline is closed"


def test_a_warm_request_with_a_new_prompt_is_a_graph_per_engine(
    fake_device: FakeDevice, built_bundle: Path, tmp_path: Path
) -> None:
    _, parts = fake_device.run(tmp_path / "log", "draw", built_bundle, 4, "new")
    assert [part.name for part in parts if part.illegal] == []
    warm = {part.name.removeprefix("3 "): part for part in parts if part.name.startswith("3 ")}
    assert {part.enqueued.operations for part in warm.values()} == {0}
    launches = {name: part.graph_launches for name, part in warm.items() if part.graph_launches}
    # Two text encoders; the prologue with the first step; the decoder.
    assert launches == {"begin": 2, "step 0": 2} | {f"step {number}": 1 for number in range(1, 5)} | {"finish": 1}
    assert {name: part.waits.total() for name, part in warm.items() if part.waits} == {
        "begin": 1,
        "read back": 1,
        "finish": 2,
    }
    assert sum(part.executed.pageable_copies for part in warm.values()) == 0
    # Ids and skips go to each encoder as one block; the second one gives pooled texts, too.
    assert host_copies(warm["begin"]) == {("pinned", "device"): 2, ("device", "pinned"): 3}
    assert {(part.captures, part.allocations, part.pinned_allocations) for part in warm.values()} == {(0, 0, 0)}


def test_five_sizes_and_four_threads_for_200_requests(
    fake_device: FakeDevice, demo_bundle_fp16: Path, tmp_path: Path
) -> None:
    _, parts = fake_device.run(tmp_path / "log", "take_turns", demo_bundle_fp16, 200)
    assert [part.name for part in parts if part.illegal] == []
    warm = [part for part in parts if part.name.startswith("warm")]
    assert len(warm) * PER_PART == 200
    for part in warm:
        # One launch per step, and one of the decoder.
        assert part.graph_launches == PER_PART * (STEPS + 1), part.summary()
        assert (part.enqueued.operations, part.captures) == (0, 0), part.summary()
        assert (part.allocations, part.frees, part.pinned_allocations) == (0, 0, 0), part.summary()
        assert part.executed.pageable_copies == 0, part.summary()
    assert len({part.device_bytes for part in warm}) == 1
    assert parts[-1].device_bytes == 0


def test_pipelines_are_loaded_and_closed_while_another_one_draws(
    fake_device: FakeDevice, demo_bundle_fp16: Path, tmp_path: Path
) -> None:
    """A capture spares other threads, and is spared by them."""
    printed, parts = fake_device.run(tmp_path / "log", "two_at_once", demo_bundle_fp16)
    (together,) = [part for part in parts if part.name == "together"]
    assert [part.name for part in parts if part.illegal] == []
    assert together.captures >= 3, together.summary()
    assert "cannot be captured" not in printed
