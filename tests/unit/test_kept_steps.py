"""Which captured steps a loop keeps, and when it gives them up. No network runs."""

import weakref
from typing import Any

import numpy as np
import pytest

from latentrt.runtime.drawing import loop
from latentrt.runtime.drawing.loop import KEPT_STEPS, Loop
from latentrt.runtime.drawing.picture import Picture
from latentrt.runtime.drawing.turns import Turns
from latentrt.runtime.errors import BackendError
from latentrt.runtime.samplers import ScheduleConfig, compile_sampler


class Device:
    """Has room for so many captured steps; `alive` are those that there are."""

    def __init__(self, room: int):
        self.room = room
        self.made = 0
        self.alive: weakref.WeakSet[Step] = weakref.WeakSet()


class Step:
    """Stands in for a captured step."""

    def __init__(self, device: Device, _engines: Any, sizes: dict[str, int], _loras: Any):
        device.alive.add(self)  # what it takes, it takes before it fails
        device.made += 1
        if len(device.alive) > device.room:
            raise BackendError("cuda:0: 1.00 GB asked, 0.10 of 8.00 GB free")
        self.sizes = sizes

    def upload(self, arrays: dict[str, np.ndarray]) -> None:
        self.state = arrays["state"]

    def run(self) -> None:
        pass

    def fetch(self, *_names: str) -> dict[str, np.ndarray]:
        return {"state": self.state, "failed": np.full(len(self.state), -1)}


def picture(width: int) -> Picture:
    table = compile_sampler("euler", ScheduleConfig(), 2)
    return Picture(
        inputs={"encoder_hidden_states": np.zeros((1, 77, 2))},
        guidance=np.ones((2, 1), np.float32),
        table=table,
        noise=np.zeros((1, 4, 2, width), np.float32),
        state=np.full((table.state_count, 4, 2, width), width, np.float32),
    )


def draw(device: Device, widths: list[int], monkeypatch: pytest.MonkeyPatch) -> Loop:
    monkeypatch.setattr(loop, "CapturedStep", Step)
    made = Loop(device, {}, Turns(), None)  # type: ignore[arg-type]
    for width in widths:
        drawn = picture(width)
        made.advance([drawn])
        made.read_back()
        assert drawn.state.min() == width
    return made


def test_the_sizes_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(room=100)
    made = draw(device, [*range(1, KEPT_STEPS + 2), 2, KEPT_STEPS + 1], monkeypatch)
    assert device.made == KEPT_STEPS + 1
    assert {step.sizes["latent_width"] for step in device.alive} == set(range(2, KEPT_STEPS + 2))
    made.close()
    assert not device.alive


def test_a_full_device_gives_up_the_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(room=3)
    made = draw(device, [1, 2, 3, 4, 4], monkeypatch)
    assert {step.sizes["latent_width"] for step in device.alive} == {4}
    assert device.made == 3 + 2
    made.close()


def test_one_size_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(room=1)
    made = draw(device, [1], monkeypatch)
    device.room = 0
    drawn = picture(2)
    with pytest.raises(BackendError, match=r"1\.00 GB asked"):
        made.advance([drawn])
    assert drawn.holder is None
    assert drawn.state.min() == 2
    device.room = 1
    made.advance([drawn])
    made.read_back()
    made.close()
