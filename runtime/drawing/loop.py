"""The denoising loop: U-Net and sampler graph take turns on shared buffers; the host only launches.

A step is the U-Net, the sampler graph, and three copies that make the sampler's outputs its next inputs. Everything
that changes from step to step lies on the device, so the step is recorded once for each set of sizes and replayed for
every step, sampler and prompt.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.backends import Backend, Engine, Mark
from latentrt.runtime.bundle.specs import Precision
from latentrt.runtime.drawing.batch import lay_out
from latentrt.runtime.drawing.captured_step import CapturedStep
from latentrt.runtime.drawing.picture import Picture, hold
from latentrt.runtime.drawing.turns import Turns
from latentrt.runtime.errors import BackendError, NumericsError, RequestError, shown
from latentrt.runtime.lora.bank import LoraBank
from latentrt.runtime.recent import Recent
from latentrt.runtime.request.kinds import is_whole

StepProgress = Callable[[int, int], None]
"""Called after each step with (steps done, total steps)."""

KEPT_STEPS = 8
"""How many sets of sizes keep their buffers and their captured step."""


class Loop:
    """Draws batches of pictures. The batch advanced last stays on the device until another one comes.

    Every method but `give_back` is called in a turn of `turns`. `kept`: sets of sizes that keep their captured step.
    """

    def __init__(
        self, backend: Backend, engines: Mapping[str, Engine], turns: Turns, loras: LoraBank, kept: int = KEPT_STEPS
    ):
        self._backend = backend
        self._engines = engines
        self._turns = turns
        self._loras = loras
        self._kept: Recent[tuple[tuple[str, int], ...], CapturedStep] = Recent(kept)
        self._captured: CapturedStep | None = None
        self._held: tuple[Picture, ...] = ()
        self._held_from: list[int] = []
        self._steady_steps = 0

    def advance(self, pictures: Sequence[Picture], steps: int = 1, progress: StepProgress | None = None) -> None:
        """Advance every picture by `steps` steps as one batch; each may be at a step of its own.

        The caller has called `check_steps` and `check_progress`.

        Raises:
            RequestError: a picture does not go with the others, or is held by another loop.
        """
        report = None if progress is None else _ProgressReport(self._backend, progress, steps)
        try:
            left = steps
            while left:
                captured = self._upload(pictures)
                steady = min(self._steady_steps, left)
                for _ in range(steady):
                    captured.run()
                    if report is not None:
                        report.stepped()
                self._steady_steps -= steady
                left -= steady
                for picture in pictures:
                    picture.step += steady
            if report is not None:
                report.finish()
        except BaseException:
            self._roll_back()
            raise

    def _upload(self, pictures: Sequence[Picture]) -> CapturedStep:
        """The captured step with these pictures, and the rows that their next step needs, on the device."""
        if self._captured is None or not self._holds(pictures) or not self._steady_steps:
            self.read_back()
            self._held = tuple(pictures)
            hold(pictures, self)
            self._held_from = [picture.step for picture in pictures]
            sizes, arrays = lay_out(pictures)
            self._captured = None  # it may have to make room
            self._captured = self._step_for(sizes)
            self._captured.upload(arrays)
            self._steady_steps = min(picture.steady_steps for picture in pictures)
        return self._captured

    def _step_for(self, sizes: dict[str, int]) -> CapturedStep:
        """The captured step for these sizes. If the device has no room for it, all others are given up."""

        def make() -> CapturedStep:
            return CapturedStep(self._backend, self._engines, sizes, self._loras)

        key = tuple(sizes.items())
        try:
            return self._kept.get(key, make)
        except BackendError:
            if not len(self._kept):
                raise
        # Not before here: the error holds what had been made.
        self._kept.clear()
        return self._kept.get(key, make)

    def _holds(self, pictures: Sequence[Picture]) -> bool:
        return tuple(pictures) == self._held and all(picture.holder is self for picture in pictures)

    def peek(self, pictures: Sequence[Picture]) -> tuple[Float32s, Float32s]:
        """The latents of pictures on the device and the guided model output of their last step, both (n, 4, h, w).

        The pictures stay on the device.

        Raises:
            RequestError: one of them is not on the device, so that nothing is known of its last step.
        """
        if self._captured is None or not set(map(id, pictures)) <= {id(picture) for picture in self._held}:
            raise RequestError("this drawing was not in the batch that was advanced last; look at it after its step")
        found = self._captured.fetch("state", "noise_pred", "guidance")
        places = [next(place for place, held in enumerate(self._held) if held is picture) for picture in pictures]
        guided = np.einsum("bn,nchw->bchw", found["guidance"][places], found["noise_pred"].astype(np.float32))
        return found["state"][places, 0], guided

    def give_back(self) -> None:
        """Bring the pictures on the device up to date and let go of them, when it is this thread's turn."""
        self._turns.take_even_closed(self._give_back)

    def _give_back(self) -> None:
        if self._held:
            self._backend.activate()
            self.read_back()

    def read_back(self) -> None:
        """Copy the state of the pictures on the device back into them, and let go of them."""
        if self._captured is None or not self._held:
            return
        found = self._captured.fetch("state", "failed")
        for picture, state, step in zip(self._held, found["state"], found["failed"].tolist(), strict=True):
            if picture.holder is self:  # else an interrupted call has let go of it already
                kept = state[: picture.table.state_count]
                picture.state, picture.failed, picture.holder = kept, step, None
        self._held, self._held_from = (), []

    def _roll_back(self) -> None:
        """Leave the pictures as they were before they were uploaded, since a step failed or was interrupted."""
        steps = self._held_from or [picture.step for picture in self._held]  # none: stopped while it took them
        for picture, step in zip(self._held, steps, strict=True):
            if picture.holder is self:
                picture.step, picture.holder = step, None
        self._held, self._held_from = (), []

    @property
    def is_captured(self) -> bool | None:
        """Whether the step of the last batch is replayed as a CUDA graph; None where there is none."""
        return None if self._captured is None else getattr(self._captured.run, "is_captured", None)

    def close(self) -> None:
        """Release every buffer and captured step. The pictures on the device come back: others may go on with them."""
        try:
            self._give_back()
        finally:
            self._roll_back()
            self._captured = None
            self._kept.clear()


class _ProgressReport:
    """Reports each step once the device has done it, one step late, so that the device always has work."""

    def __init__(self, backend: Backend, progress: StepProgress, steps: int):
        self._mark = backend.mark
        self._progress = progress
        self._steps = steps
        self._reported = 0
        self._last: Mark | None = None

    def stepped(self) -> None:
        """Note that a step was enqueued, and report the one before."""
        before, self._last = self._last, self._mark()
        if before is not None:
            self._wait_and_report(before)

    def finish(self) -> None:
        """Report the last step."""
        if self._last is not None:
            self._wait_and_report(self._last)

    def _wait_and_report(self, mark: Mark) -> None:
        mark.wait()
        self._reported += 1
        self._progress(self._reported, self._steps)


def check_progress(progress: StepProgress | None) -> None:
    """Raise `RequestError` unless it can be called."""
    if progress is not None and not callable(progress):
        raise RequestError(f"progress {shown(progress)}: must be a function of (steps done, steps in all)")


def check_steps(pictures: Sequence[Picture], steps: int) -> None:
    """Raise `RequestError` unless every picture is there once and has this many steps left."""
    if not pictures:
        raise RequestError("drawings: an empty list; give at least one drawing, as `begin` returns it")
    if len({id(picture) for picture in pictures}) < len(pictures):
        raise RequestError("drawings: one of them is there twice; give each only once")
    least = min(picture.steps_left for picture in pictures)
    if not is_whole(steps, 1):
        raise RequestError(f"steps {shown(steps)}: must be a whole number of at least 1")
    if steps > least:
        raise RequestError(f"advance by {steps} steps: the picture that is furthest has {least} left")


def check_finite(pictures: Sequence[Picture], precision: Precision) -> None:
    """Raise `NumericsError` for the first picture that the sampler graph marked as failed."""
    for number, picture in enumerate(pictures, 1):
        if picture.failed >= 0:
            raise NumericsError(
                f"unet: picture {number} holds NaN or infinity from step {picture.failed + 1} of "
                f"{picture.table.step_count} on. {overflow(precision)}"
            )


def overflow(precision: Precision) -> str:
    """Why a component gave NaN or infinity, and what to do."""
    if precision == "fp16":
        return "Its values left fp16's range. Export with fp32, or lower the guidance if that is high"
    return (
        f"Values of {precision} overflow where the request's are extreme: lower the guidance, and look at the latents "
        "or embeddings that it began with"
    )
