"""What the APIs share: waiting for requests as long as their client does, and server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request

from latentrt.serve.desk import Desk
from latentrt.serve.http.errors import ClientGoneError, FailedError
from latentrt.serve.messages import Failed, Finished
from latentrt.serve.ticket import Ticket

Value = TypeVar("Value")

QUIET_SECONDS = 15.0
"""After so long without an event, a comment keeps proxies from closing the connection."""


def desk_of(request: Request) -> Desk:
    """The desk that serves a request's app."""
    desk: Desk = request.app.state.desk
    return desk


@contextmanager
def attended(desk: Desk, tickets: Sequence[Ticket]) -> Iterator[None]:
    """Cancel what is not done when the `with` block is left: its client has gone."""
    try:
        yield
    finally:
        for ticket in tickets:
            desk.cancel(ticket)


async def while_connected(request: Request, work: Awaitable[Value]) -> Value:
    """Wait for `work` as long as the client is there. The body must have been read.

    Raises:
        ClientGoneError: it has gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def finished(request: Request, desk: Desk, tickets: Sequence[Ticket]) -> list[Finished]:
    """Wait for the pictures of several requests; they leave if the client goes, or if one of them fails.

    Raises:
        FailedError: one failed, or was cancelled.
        ClientGoneError: the client has gone.
    """

    async def all_done() -> list[Finished]:
        return [await picture_of(ticket) for ticket in tickets]

    with attended(desk, tickets):
        return await while_connected(request, all_done())


async def picture_of(ticket: Ticket) -> Finished:
    """Wait for one request's pictures.

    Raises:
        FailedError: it failed, or was cancelled.
    """
    await ticket.done()
    if ticket.finished is None:
        raise FailedError(ticket.failed or Failed(ticket.id, "request", "the request was cancelled"))
    return ticket.finished


def event(name: str, data: Any) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


async def with_comments(ticket: Ticket) -> AsyncIterator[str | None]:
    """None after each change of a request, a comment to send when nothing changes for long."""
    seen = -1
    async for _ in ticket.changes(QUIET_SECONDS):
        yield None if ticket.version != seen else ": still here\n\n"
        seen = ticket.version
