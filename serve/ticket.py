"""One request as the front sees it, from its arrival until its answer is forgotten."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

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

    `kept`: the answer may be asked for later, so that nobody needs to be connected. `starts`: how many workers have had
    it. `came`, `ended`: by `time.monotonic`; `created` by the calendar.
    """

    submit: Submit
    kept: bool = False
    state: State = "queued"
    accepted: Accepted | None = None
    step: int = 0
    previews: list[Preview] = field(default_factory=list)
    finished: Finished | None = None
    failed: Failed | None = None
    starts: int = 1
    waited: float | None = None
    created: float = field(default_factory=time.time)
    came: float = field(default_factory=time.monotonic)
    ended: float | None = None
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

    def start_over(self) -> None:
        """It is drawn from its beginning by another worker."""
        self.state, self.step, self.starts = "queued", 0, self.starts + 1
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
