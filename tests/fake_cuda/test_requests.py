"""Whole requests on the fake device: what the host still does once everything is warm."""

from pathlib import Path

import pytest
from fake_cuda.device import CAPABILITIES, FakeDevice

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_warm_step_is_one_graph_launch(
    fake_device: FakeDevice, demo_bundle_fp16: Path, tmp_path: Path, capability: str
) -> None:
    _, parts = fake_device.run(tmp_path / "log", "draw", demo_bundle_fp16, 2, capability=capability)
    assert [part.name for part in parts if part.illegal] == []
    second = [part for part in parts if part.name.startswith("1 ")]
    for step in second:
        if step.name.startswith("1 step") and step.name != "1 step 0":  # the first uploads the request
            assert step.graph_launches == 1, step.summary()
            assert step.replayed.operations > 0, step.summary()
            assert step.enqueued.operations == 0, step.summary()
            assert (step.waits.total(), step.executed.host_copies) == (0, 0), step.summary()
    assert {part.allocations for part in second} == {0}
    assert len({part.device_bytes for part in second}) == 1
    assert parts[-1].device_bytes == 0, "memory is left when the pipeline is closed"
