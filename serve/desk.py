"""The front's own core, under every API: takes requests in, watches them, hands answers out."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentrt.runtime import LatentRTError, RequestError, errors
from latentrt.serve.limits import ServerLimits
from latentrt.serve.messages import (
    Cancel,
    Cancelled,
    Failed,
    FromWorker,
    LoadFailed,
    Memory,
    ModelNote,
    Ready,
    Started,
    Stepped,
    Submit,
)
from latentrt.serve.metrics import Metrics
from latentrt.serve.refusals import QueueFullError, UnavailableError
from latentrt.serve.supervisor import Supervisor
from latentrt.serve.ticket import KeptTickets, Ticket
from latentrt.serve.worker import WorkerConfig

log = logging.getLogger(__name__)

MOST_DEATHS = 2
"""How many workers may die under a request before it is answered with an error."""

FAILED_STARTS = 3
"""How many workers in a row may fail to load before waiting requests are answered with an error."""


@dataclass(frozen=True, slots=True)
class DeskConfig:
    """How many requests may wait, and how long answers are kept.

    `max_queue`: requests that wait beside those being drawn. `keep_seconds`, `keep_answers`: for how long, and how
    many, answers can be asked for. `stall_seconds`: a worker that has work and says nothing for so long is replaced.
    """

    max_queue: int = 64
    keep_seconds: float = 600.0
    keep_answers: int = 128
    stall_seconds: float = 600.0


class Desk:
    """Requests by id, and the worker that draws them. Belongs to one event loop."""

    def __init__(self, worker: WorkerConfig, config: DeskConfig | None = None, metrics: Metrics | None = None):
        self.config = config or DeskConfig()
        self.limits: ServerLimits = worker.limits
        self.metrics = metrics or Metrics()
        self.models: dict[str, ModelNote] = {}
        self.is_ready = False
        self.is_draining = False
        self.load_error: LatentRTError | None = None
        self._supervisor = Supervisor(worker, self._from_thread(self._receive), self._from_thread(self._died))
        self._tickets: dict[str, Ticket] = {}
        self._kept = KeptTickets(self.config.keep_seconds, self.config.keep_answers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = asyncio.Event()
        self._empty = asyncio.Event()
        self._failed_starts = 0
        self._heard = time.monotonic()
        self._seconds_each = 1.0
        self._last_end: float | None = None
        self._watch: asyncio.Task[None] | None = None

    def _from_thread(self, work: Any) -> Any:
        def call(*args: Any) -> None:
            loop = self._loop
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(work, *args)

        return call

    async def start(self) -> None:
        """Start the worker, without waiting for it."""
        self._loop = asyncio.get_running_loop()
        self._empty.set()
        self._supervisor.start()
        self._watch = asyncio.create_task(self._look_after())

    async def ready(self) -> None:
        """Wait until the first worker is ready.

        Raises:
            LatentRTError: it cannot load its bundles.
        """
        await self._ready.wait()
        if self.load_error is not None:
            raise self.load_error

    async def drain(self) -> None:
        """Refuse new requests, and wait until those that are here have their answers."""
        self.is_draining = True
        await self._empty.wait()

    async def stop(self) -> None:
        """End the worker; requests that are still there are answered with an error."""
        self.is_draining = True
        if self._watch is not None:
            self._watch.cancel()
        for ticket in list(self._tickets.values()):
            self._receive(Failed(ticket.id, "worker", "the server was stopped"))
        await asyncio.to_thread(self._supervisor.stop, at_once=not self.is_ready)

    @property
    def waiting(self) -> int:
        """Requests that wait to be drawn."""
        return sum(ticket.state == "queued" for ticket in self._tickets.values())

    @property
    def running(self) -> int:
        """Requests that are being drawn."""
        return sum(ticket.state == "running" for ticket in self._tickets.values())

    def live(self) -> Sequence[Ticket]:
        """Every request without an answer, those that came first ahead."""
        return list(self._tickets.values())

    def submit(
        self,
        model: str | None,
        prompt: tuple[str, ...],
        settings: Iterable[Mapping[str, Any]],
        *,
        seconds: float | None = None,
        previews: int = 0,
        kept: bool = False,
    ) -> list[Ticket]:
        """Take in one request for each entry of `settings`: all of them or none.

        Raises:
            RequestError: the model is not served here, or a text is too long.
            QueueFullError: too many wait.
            UnavailableError: the server is going down, or is not ready.
        """
        wanted = list(settings)
        name = self.model(model).name
        for one in wanted:
            self.limits.check_texts(prompt, one)
        self._check_room(len(wanted))
        tickets = [Ticket(Submit(secrets.token_hex(12), name, prompt, one, seconds, previews), kept) for one in wanted]
        if not self._tickets:
            self._heard = time.monotonic()
        for ticket in tickets:
            self._tickets[ticket.id] = ticket
            self._supervisor.send(ticket.submit)
        self._empty.clear()
        self._count()
        return tickets

    def model(self, name: str | None) -> ModelNote:
        """The model that a request names; the first one if it names none.

        Raises:
            RequestError: it is not served here.
            UnavailableError: the models are not loaded yet.
        """
        if not self.models:
            raise UnavailableError("the models are being loaded", 5)
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise RequestError(f"model {name!r}: not served here; this server has {', '.join(self.models)}")
        return self.models[name]

    def _check_room(self, wanted: int) -> None:
        if self.is_draining:
            self.metrics.rejected.labels("draining").inc()
            raise UnavailableError("the server is going down", 10)
        if self._failed_starts >= FAILED_STARTS:
            self.metrics.rejected.labels("no worker").inc()
            raise UnavailableError("the worker cannot be started", 30)
        if self.waiting + wanted > self.config.max_queue:
            self.metrics.rejected.labels("queue full").inc()
            raise QueueFullError(self.waiting, self._seconds_to_wait())

    def _seconds_to_wait(self) -> int:
        """About how long it takes until half of the requests that wait are gone."""
        return max(1, min(300, math.ceil(self.waiting * self._seconds_each / 2)))

    def find(self, id: str) -> Ticket | None:
        """A request that is here, or whose answer is kept."""
        return self._tickets.get(id) or self._kept.find(id)

    def cancel(self, ticket: Ticket) -> None:
        """Let a request leave at the next step boundary. Does nothing to one that is done."""
        if not ticket.is_done:
            ticket.leaving = True
            self._supervisor.send(Cancel(ticket.id))

    def _receive(self, message: FromWorker) -> None:
        self._heard = time.monotonic()
        match message:
            case Ready():
                self.models = {note.name: note for note in message.models}
                self.is_ready, self._failed_starts, self.load_error = True, 0, None
                self._ready.set()
                log.info("ready", extra={"models": list(self.models), "worker": message.pid})
            case LoadFailed():
                self.load_error = getattr(errors, message.kind)(message.message)
            case Memory():
                self.metrics.memory.set(message.resident)
            case Stepped():
                self.metrics.stepped(message)
                for id in message.done:
                    self._tell(id, message)
            case _:
                self._tell(message.id, message)

    def _tell(self, id: str, message: FromWorker) -> None:
        ticket = self._tickets.get(id)
        if ticket is None:
            return
        ticket.take(message)
        if isinstance(message, Started):
            self.metrics.wait.observe(message.seconds)
        if ticket.is_done:
            self._close(ticket)
        if not isinstance(message, Stepped):
            self._count()

    def _close(self, ticket: Ticket) -> None:
        del self._tickets[ticket.id]
        now = time.monotonic()
        if self._last_end is not None:
            self._seconds_each = 0.9 * self._seconds_each + 0.1 * min(60.0, now - self._last_end)
        self._last_end = now if self._tickets else None
        self.metrics.ended(ticket)
        log.info("request %s", ticket.state, extra=ticket.log_fields())
        if ticket.kept:
            self._kept.add(ticket)
        if not self._tickets:
            self._empty.set()

    def _count(self) -> None:
        self.metrics.queue.set(self.waiting)
        self.metrics.running.set(self.running)

    def _died(self, exit_code: int | None) -> None:
        """The worker has ended: its requests are drawn again, or answered if that has happened before."""
        self._supervisor.renew()
        self.metrics.deaths.inc()
        was_ready = self.is_ready
        self._failed_starts = 0 if was_ready else self._failed_starts + 1
        self.is_ready = False
        self._heard = time.monotonic()
        log.error("the worker has died", extra={"exit_code": exit_code, "requests": len(self._tickets)})
        if self._failed_starts >= FAILED_STARTS:
            died = LatentRTError(f"the worker process ended with exit code {exit_code} while it loaded")
            self.load_error = self.load_error or died
        if self.load_error is not None:
            self._ready.set()
        for ticket in list(self._tickets.values()):
            ticket.deaths += was_ready and ticket.in_hand
            if ticket.leaving:
                self._tell(ticket.id, Cancelled(ticket.id))
            elif self._failed_starts >= FAILED_STARTS:
                self._tell(ticket.id, Failed(ticket.id, "worker", "no process could be started to draw this request"))
            elif ticket.deaths >= MOST_DEATHS:
                self._tell(ticket.id, Failed(ticket.id, "worker", "the process that drew this request has died twice"))
            else:
                ticket.start_over()
                self._supervisor.send(ticket.left())

    async def _look_after(self) -> None:
        """Forget old answers, and replace a worker that has work and says nothing."""
        while True:
            await asyncio.sleep(1.0)
            self._kept.forget_old()
            if self._tickets and self.is_ready and time.monotonic() - self._heard > self.config.stall_seconds:
                log.error("the worker hangs", extra={"seconds": self.config.stall_seconds})
                self._heard = time.monotonic()
                self._supervisor.kill()
