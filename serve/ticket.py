"""One request as the front sees it, from its arrival until its answer is forgotten."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from latentrt.serve.logs import http_request
from latentrt.serve.messages import (
    Accepted,
    Cancelled,
    Failed,
    Finished,
    FromWorker,
    Preview,
    Started,
    Stepped,
    Submit,
)

State = Literal["queued", "running", "finished", "failed", "cancelled"]

ENDS: frozenset[State] = frozenset({"finished", "failed", "cancelled"})


@dataclass(eq=False)
class Ticket:
    """A request's state. Changed and watched in the event loop's thread alone.

    `kept`: the answer may be asked for later, so that nobody needs to be connected. `deaths`: how many workers died
    under it. `came`, `ended`: by `time.monotonic`; `created` by the calendar. `http_request`: id of the HTTP request.
    `leaving`: it was cancelled, and the worker may not know yet.
    """

    submit: Submit
    kept: bool = False
    leaving: bool = False
    state: State = "queued"
    accepted: Accepted | None = None
    step: int = 0
    previews: list[Preview] = field(default_factory=list)
    finished: Finished | None = None
    failed: Failed | None = None
    deaths: int = 0
    waited: float | None = None
    created: float = field(default_factory=time.time)
    came: float = field(default_factory=time.monotonic)
    ended: float | None = None
    http_request: str | None = field(default_factory=http_request.get)
    version: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def id(self) -> str:
        """The request's id."""
        return self.submit.id

    @property
    def is_done(self) -> bool:
        """Whether it has an answer."""
        return self.state in ENDS

    @property
    def in_hand(self) -> bool:
        """Whether the worker reads or draws it, so that it may be what a death comes from; others only wait."""
        return self.state == "running" or self.accepted is None

    @property
    def steps(self) -> int | None:
        """Evaluations of the U-Net in all; None until they are known."""
        return None if self.accepted is None else self.accepted.steps

    def take(self, message: FromWorker) -> None:
        """Note what the worker says."""
        if self.is_done:
            return
        match message:
            case Accepted():
                self.accepted = message
            case Started():
                self.state, self.waited = "running", message.seconds
            case Stepped():
                self.step = message.done[self.id]
            case Preview():
                self.previews.append(message)
            case Finished():
                self.state, self.finished = "finished", message
            case Failed():
                self.state, self.failed = "failed", message
            case Cancelled():
                self.state = "cancelled"
        if self.is_done:
            self.ended = time.monotonic()
        self._notify()

    def left(self) -> Submit:
        """The request with the time that is left of its own."""
        if self.submit.seconds is None:
            return self.submit
        return replace(self.submit, seconds=max(0.0, self.submit.seconds - (time.monotonic() - self.came)))

    def start_over(self) -> None:
        """It is drawn from its beginning by another worker."""
        self.state, self.step = "queued", 0
        self.previews.clear()
        self._notify()

    def _notify(self) -> None:
        self.version += 1
        before, self._changed = self._changed, asyncio.Event()
        before.set()

    async def changes(self, seconds: float | None = None) -> AsyncIterator[None]:
        """Once now, and again after every change, until it is done; changes that come fast are one.

        `seconds`: it also comes again when nothing has changed for so long.
        """
        while True:
            seen, done = self.version, self.is_done
            yield
            if done:
                return
            if self.version == seen:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), seconds)

    async def read(self) -> None:
        """Wait until the worker has accepted it, or it is done."""
        async for _ in self.changes():
            if self.accepted is not None:
                return

    async def done(self) -> None:
        """Wait until it is done."""
        async for _ in self.changes():
            pass

    def log_fields(self) -> dict[str, Any]:
        """What the log says of a request that is done."""
        fields: dict[str, Any] = {
            "request": self.id,
            "http_request": self.http_request,
            "model": self.submit.model,
            "state": self.state,
            "seconds": round((self.ended or self.came) - self.came, 4),
            "waited": None if self.waited is None else round(self.waited, 4),
            "step": self.step,
            "steps": self.steps,
        }
        if self.accepted is not None:
            fields |= {"size": f"{self.accepted.width}x{self.accepted.height}", "pictures": self.accepted.pictures}
        if self.finished is not None:
            fields["stages"] = {name: round(seconds, 4) for name, seconds in self.finished.seconds.items()}
        if self.failed is not None:
            fields |= {"kind": self.failed.kind, "error": self.failed.message}
        return fields


class KeptTickets:
    """Answers that can be asked for: the last `most` of them, for so many seconds."""

    def __init__(self, seconds: float, most: int):
        self._seconds = seconds
        self._most = most
        self._tickets: dict[str, Ticket] = {}

    def add(self, ticket: Ticket) -> None:
        """Keep a ticket that is done."""
        self._tickets[ticket.id] = ticket
        self.forget_old()

    def find(self, id: str) -> Ticket | None:
        """A ticket that is kept."""
        return self._tickets.get(id)

    def forget_old(self) -> None:
        """Drop what is too old, and what is too much."""
        now, over = time.monotonic(), len(self._tickets) - self._most
        for number, (id, ticket) in enumerate(list(self._tickets.items())):
            if number < over or now - (ticket.ended or now) > self._seconds:
                del self._tickets[id]
