"""Draws requests as the scheduler says: one step of one batch at a time, on the pipelines of one process."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from latentrt.runtime import (
    BackendError,
    Drawing,
    NumericsError,
    Pipeline,
    Request,
    RequestError,
    Result,
    Settings,
)
from latentrt.runtime.backends import Mark
from latentrt.runtime.record.metadata import Metadata, describe
from latentrt.runtime.request.reading import read_given
from latentrt.serve.failures import kind_of, told
from latentrt.serve.limits import ServerLimits, check_loras
from latentrt.serve.messages import (
    Accepted,
    Cancelled,
    Failed,
    FailureKind,
    Finished,
    FromWorker,
    Preview,
    Started,
    Stepped,
    Submit,
)
from latentrt.serve.previews import PreviewMap
from latentrt.serve.scheduler import PATIENCE, Job, Lane, Scheduler, Turn

Send = Callable[[FromWorker], None]


@dataclass(slots=True)
class Work:
    """A request on its way. `previews_at`: the steps after which a preview is sent. `shared`: it had company."""

    job: Job
    request: Request
    metadata: Metadata = field(repr=False)
    previews_at: frozenset[int]
    drawing: Drawing | None = None
    shared: bool = False

    @property
    def steps_done(self) -> int:
        """Evaluations of the U-Net so far."""
        return 0 if self.drawing is None else self.drawing.pictures[0].step


class BatchEngine:
    """Pipelines by name, their scheduler, and the requests on their way. `send` takes what the front should know.

    One thread calls it: `submit` and `cancel` between steps, `work` for the next one. It raises `BackendError` when a
    device has failed, so that the process should be replaced; any other error is the answer to a request.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        limits: ServerLimits,
        max_batch: int,
        send: Send,
        previews: Mapping[str, PreviewMap] | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
    ):
        self._pipelines = pipelines
        self._limits = limits
        self._send = send
        self._previews = previews or {}
        self._clock = clock
        self._most = {name: min(max_batch, pipe.limits.bounds("images")[2]) for name, pipe in pipelines.items()}
        self._scheduler = Scheduler(self._most, patience)
        self._works: dict[str, Work] = {}
        self._last_batch: frozenset[str] = frozenset()
        self._last_mark: Mark | None = None

    def submit(self, message: Submit) -> None:
        """Read a request and let it wait for its turn; one that is not served is answered with an error."""
        now = self._clock()
        try:
            work = self._read(message, now)
        except Exception as error:  # nothing has run: whatever it is, it is about this request alone
            self._send(Failed(message.id, kind_of(error), told(error, message.id)))
            return
        self._works[message.id] = work
        self._scheduler.add(work.job)
        request = work.request
        self._send(
            Accepted(message.id, work.job.steps_left, request.count, request.width, request.height, request.seeds)
        )

    def _read(self, message: Submit, now: float) -> Work:
        if message.model not in self._pipelines:
            known = ", ".join(self._pipelines)
            raise RequestError(f"model {message.model!r}: not served here; this server has {known}")
        pipeline = self._pipelines[message.model]
        self._limits.check_sizes(message.settings)
        settings = read_given(cast(Settings, message.settings))
        request = pipeline.request(message.prompt, **settings)
        check_loras(request, pipeline.loras)
        demand = pipeline.check(request)
        self._limits.check(request, demand.evaluations)
        places, most = max(request.count, -(-demand.rows // 2)), self._most[message.model]
        if places > most:
            raise RequestError(f"{places} pictures, or pairs of prompts: a batch has up to {most} here. Ask one by one")
        lane = Lane(message.model, request.width, request.height, demand.tokens)
        deadline = None if message.seconds is None else now + message.seconds
        job = Job(message.id, lane, request.count, demand.evaluations, now, deadline, places)
        metadata = describe(pipeline.note, message.prompt, settings, request, pipeline.loras.values())
        return Work(job, request, metadata, _spread(message.previews, demand.evaluations))

    def cancel(self, id: str) -> None:
        """Let a request leave, if it is there."""
        if self._drop(id):
            self._send(Cancelled(id))

    def _drop(self, id: str) -> bool:
        self._scheduler.remove(id)
        return self._works.pop(id, None) is not None

    def _fail(self, id: str, kind: FailureKind, message: str) -> None:
        if self._drop(id):
            self._send(Failed(id, kind, message))

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to draw."""
        return not self._works

    def work(self) -> None:
        """Take one step of one batch: begin what joins, advance all, finish what is done."""
        now = self._clock()
        for job in self._scheduler.expired(now):
            seconds = (job.deadline or now) - job.came
            self._fail(job.id, "deadline", f"not drawn in time: the {seconds:.3g} s that it was given are over")
        turn = self._scheduler.next_turn()
        if turn is None:
            return
        works = [self._works[job.id] for job in turn.jobs]
        if not all([self._begun(work, now) for work in works]):
            return  # who is left decides the next turn
        self._advance(turn, works)
        here = [work for work in works if work.job.id in self._works]
        for work in here:  # before one is finished, since that takes the batch off the device
            self._preview(work)
        for work in here:
            work.shared |= len(works) > 1
            if work.drawing is not None and not work.drawing.steps_left:
                self._finish(work, work.drawing)

    def _begun(self, work: Work, now: float) -> bool:
        """Begin a drawing that has not; False if that fails."""
        if work.drawing is not None:
            return True
        id, lane = work.job.id, work.job.lane
        self._send(Started(id, now - work.job.came))  # before: the front knows under whom a process dies
        try:
            work.drawing = self._pipelines[lane.model].begin(work.request, lane.tokens)
        except BackendError:
            raise
        except Exception as error:
            self._fail(id, kind_of(error), told(error, id))
            return False
        work.job.begun = True
        return True

    def _advance(self, turn: Turn, works: Sequence[Work]) -> None:
        """One step of a batch. If it cannot be one, each of its requests takes the step alone, or fails alone."""
        began = self._clock()
        pipeline = self._pipelines[turn.lane.model]
        try:
            pipeline.advance([work.drawing for work in works if work.drawing is not None])
        except BackendError:
            raise
        except Exception:
            for work in works:
                self._advance_alone(pipeline, work)
        self._wait_for_the_step_before(pipeline)
        seconds = self._clock() - began
        for work in works:
            if work.drawing is not None:
                work.job.steps_left = work.drawing.steps_left
        self._scheduler.stepped(turn, seconds)
        batch = frozenset(work.job.id for work in works)
        joined, left = len(batch - self._last_batch), len(self._last_batch - batch)
        self._last_batch = batch
        done = {work.job.id: work.steps_done for work in works}
        scheduler = self._scheduler
        self._send(
            Stepped(str(turn.lane), turn.pictures, seconds, done, scheduler.lanes, scheduler.waiting, joined, left)
        )

    def _advance_alone(self, pipeline: Pipeline, work: Work) -> None:
        if work.drawing is None:
            return
        try:
            pipeline.advance([work.drawing])
        except BackendError:
            raise
        except Exception as error:
            self._fail(work.job.id, kind_of(error), told(error, work.job.id))

    def _wait_for_the_step_before(self, pipeline: Pipeline) -> None:
        """Let the device be one step behind, so that it always has work and what comes can join soon."""
        before, self._last_mark = self._last_mark, pipeline.backend.mark()
        if before is not None:
            before.wait()

    def _preview(self, work: Work) -> None:
        """Send a preview, if one is due."""
        id, model, drawing = work.job.id, work.job.lane.model, work.drawing
        if drawing is None or work.steps_done not in work.previews_at or model not in self._previews:
            return
        try:
            latents = self._pipelines[model].peek(drawing)
        except RequestError:  # the batch was drawn one by one, and another one was last
            return
        self._send(Preview(id, work.steps_done, tuple(self._previews[model].pictures(latents))))

    def _finish(self, work: Work, drawing: Drawing) -> None:
        id = work.job.id
        try:
            result = self._pipelines[work.job.lane.model].finish(drawing)
        except NumericsError as error:
            if work.shared:
                _draw_again_alone(work)
            else:
                self._fail(id, "numerics", str(error))
            return
        self._drop(id)
        self._send(_finished(id, result, work.metadata))


def _draw_again_alone(work: Work) -> None:
    """Begin anew without company: NaN in one picture's U-Net rows makes the others of its batch NaN as well."""
    job = work.job
    job.lane = replace(job.lane, alone=job.id)
    job.steps_left = job.steps
    work.drawing, work.shared, job.begun = None, False, False
    work.previews_at = frozenset()  # they were sent


def _finished(id: str, result: Result, metadata: Metadata) -> Finished:
    latents = None if result.images else result.latents
    return Finished(id, tuple(result.images), latents, dict(result.timings), metadata)


def _spread(count: int, steps: int) -> frozenset[int]:
    """So many steps, evenly spread over all but the last one."""
    return frozenset(round(steps * (number + 1) / (count + 1)) for number in range(min(count, steps - 1)))
