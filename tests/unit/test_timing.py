"""Stages of drawings: summed per stage, shared by drawings, and by the clock of whoever marks."""

from types import SimpleNamespace

from latentrt.runtime.drawing.timing import Timeline, stage


class Mark:
    def __init__(self, time: float):
        self.time, self.waited = time, False

    def wait(self) -> None:
        self.waited = True

    def seconds_since(self, earlier: "Mark") -> float:
        assert self.waited
        return self.time - earlier.time


def test_stages_are_summed_and_shared() -> None:
    times = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0, 30.0, 38.0])
    backend = SimpleNamespace(mark=lambda: Mark(next(times)))
    first, second = Timeline(), Timeline()
    with stage(backend, "text", [first]):
        pass
    with stage(backend, "denoise", [first, second]):
        pass
    with stage(backend, "denoise", [second]):
        pass
    with stage(backend, "decode", [first]):
        pass
    assert first.seconds() == {"text": 1.0, "denoise": 2.0, "decode": 8.0}
    assert second.seconds() == {"denoise": 6.0}
