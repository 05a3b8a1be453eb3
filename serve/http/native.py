"""Our own API: every setting of a request, progress as events, cancelling."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.params import Path, Query
from fastapi.responses import JSONResponse, StreamingResponse

from latentrt.serve.http.errors import FailedError, NotFoundError, error_body, setting_in
from latentrt.serve.http.schema import Body, prompts_of, settings_of
from latentrt.serve.http.waiting import attended, desk_of, event, while_connected, with_comments
from latentrt.serve.messages import Failed
from latentrt.serve.pictures import Format, encode_base64, encode_picture, write_latents
from latentrt.serve.ticket import Ticket

router = APIRouter(prefix="/v1/requests", tags=["latentrt"])

Id = Annotated[str, Path(description="The id that POST /v1/requests gave.")]


@router.post("", status_code=202, response_model=None, responses={200: {"description": "`wait`: drawn"}})
async def submit(request: Request, body: Body) -> Response:  # type: ignore[valid-type]
    """Take in a request. The answer has its id; with `wait`, it has the pictures."""
    desk = desk_of(request)
    settings = await asyncio.to_thread(settings_of, body, desk.limits)
    (ticket,) = desk.submit(
        body.model,  # type: ignore[attr-defined]
        prompts_of(body),
        [settings],
        seconds=body.timeout,  # type: ignore[attr-defined]
        previews=body.previews,  # type: ignore[attr-defined]
        kept=True,
    )
    if body.wait:  # type: ignore[attr-defined]
        with attended(desk, [ticket]):
            await while_connected(request, ticket.done())
        _raise_failure(ticket)
        return JSONResponse(await asyncio.to_thread(describe, ticket))
    await ticket.read()
    _raise_failure(ticket)
    location = {"Location": f"/v1/requests/{ticket.id}"}
    return JSONResponse(await asyncio.to_thread(describe, ticket), 202, location)


@router.get("/{id}", response_model=None)
async def show(request: Request, id: Id) -> Response:
    """A request's state and, once it is drawn, its pictures."""
    return JSONResponse(await asyncio.to_thread(describe, _find(request, id)))


@router.delete("/{id}", response_model=None)
async def cancel(request: Request, id: Id) -> Response:
    """Cancel a request: it leaves at the next step boundary. One that is done stays as it is."""
    ticket = _find(request, id)
    desk_of(request).cancel(ticket)
    await ticket.done()
    return JSONResponse(describe_state(ticket))


@router.get("/{id}/events", response_model=None)
async def events(request: Request, id: Id) -> Response:
    """Server-sent events: `progress`, `preview`, and at the end `finished`, `failed` or `cancelled`."""
    return StreamingResponse(_events(_find(request, id)), media_type="text/event-stream", headers=NO_BUFFERING)


NO_BUFFERING = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Keeps proxies from collecting events."""


@router.get("/{id}/pictures/{number}", response_model=None)
async def picture(
    request: Request,
    id: Id,
    number: Annotated[int, Path(ge=1)],
    format: Annotated[Format, Query()] = "png",
    quality: Annotated[int, Query(ge=0, le=100)] = 90,
) -> Response:
    """One picture of a request as a file. Its address is as secret as the id, and needs no key."""
    finished = _find(request, id).finished
    if finished is None or number > len(finished.pictures):
        raise NotFoundError(f"request {id} has no picture {number}")
    image = finished.pictures[number - 1]
    data = await asyncio.to_thread(encode_picture, image, format, quality, finished.metadata, number)
    return Response(data, media_type=f"image/{format}")


def _find(request: Request, id: str) -> Ticket:
    ticket = desk_of(request).find(id)
    if ticket is None:
        raise NotFoundError(f"request {id}: not here; answers are kept for {desk_of(request).config.keep_seconds:g} s")
    return ticket


def _raise_failure(ticket: Ticket) -> None:
    if ticket.failed is not None:
        raise FailedError(ticket.failed)
    if ticket.state == "cancelled":
        raise FailedError(Failed(ticket.id, "request", "the request was cancelled"))


def describe_state(ticket: Ticket) -> dict[str, Any]:
    """A request's state, without its pictures."""
    found: dict[str, Any] = {
        "id": ticket.id,
        "state": ticket.state,
        "model": ticket.submit.model,
        "created": int(ticket.created),
        "step": ticket.step,
        "steps": ticket.steps,
    }
    if ticket.accepted is not None:
        accepted = ticket.accepted
        found |= {"width": accepted.width, "height": accepted.height, "pictures": accepted.pictures}
        found["seeds"] = list(accepted.seeds)
    if ticket.failed is not None:
        failed = ticket.failed
        status = FailedError(failed).status
        parameter = setting_in(failed.message) if status == 400 else None
        found["error"] = error_body(status, failed.message, parameter)["error"]
    if ticket.finished is not None:
        found["seconds"] = {stage: round(seconds, 4) for stage, seconds in ticket.finished.seconds.items()}
    return found


def describe(ticket: Ticket) -> dict[str, Any]:
    """A request's state and, at the end, its pictures as PNG in base64, or its latents."""
    found = describe_state(ticket)
    if (done := ticket.finished) is not None:
        files = [
            encode_picture(image, metadata=done.metadata, number=number)
            for number, image in enumerate(done.pictures, 1)
        ]
        found["data"] = [{"b64_json": encode_base64(file)} for file in files]
        if done.latents is not None:
            found["latents"] = encode_base64(write_latents(done.latents))
    return found


async def _events(ticket: Ticket) -> AsyncIterator[str]:
    previews = 0
    async for comment in with_comments(ticket):
        if comment is not None:
            yield comment
            continue
        previews = min(previews, len(ticket.previews))  # a request that starts over has none
        for preview in ticket.previews[previews:]:
            files = [encode_base64(encode_picture(image)) for image in preview.pictures]
            yield event("preview", {"step": preview.step, "data": [{"b64_json": file} for file in files]})
        previews = len(ticket.previews)
        if not ticket.is_done:
            yield event("progress", describe_state(ticket))
    data = await asyncio.to_thread(describe, ticket)
    yield event(ticket.state, data)
