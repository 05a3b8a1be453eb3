"""OpenAI's images API: generations, edits and models, as its clients speak it.

Besides OpenAI's parameters, a body may hold our own settings, such as `seed` and `steps`; clients pass them as
`extra_body`. Every picture is a request of its own, so that `n` may be larger than a batch.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from starlette.datastructures import UploadFile

from latentrt.serve.desk import Desk
from latentrt.serve.http.errors import NotFoundError, ParameterError, answer
from latentrt.serve.http.native import NO_BUFFERING
from latentrt.serve.http.openai_body import EDITS, GENERATIONS, Order, edit_settings, read_order, typed
from latentrt.serve.http.waiting import attended, desk_of, event, finished, picture_of, with_comments
from latentrt.serve.messages import Finished, ModelNote
from latentrt.serve.pictures import encode_base64, encode_picture, read_picture
from latentrt.serve.ticket import Ticket

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post("/images/generations", response_model=None, openapi_extra=GENERATIONS)
async def generations(request: Request) -> Response:
    """Draw pictures of a prompt."""
    try:
        given = await request.json()
    except (ValueError, RecursionError) as error:
        raise ParameterError("", f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(given, dict):
        raise ParameterError("", "the body must be a JSON object")
    order = read_order(given)
    settings = dict(order.settings)
    if order.size is not None:
        settings |= {"width": order.size[0], "height": order.size[1]}
    return await _draw(request, order, settings, "image_generation")


@router.post("/images/edits", response_model=None, openapi_extra=EDITS)
async def edits(request: Request) -> Response:
    """Draw parts of a picture anew: where the mask, or else the picture itself, is transparent."""
    desk = desk_of(request)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ParameterError("", "the body must be multipart/form-data")
    async with request.form(max_files=32, max_fields=100, max_part_size=2**20) as form:
        files, texts = await _parts(form.multi_items())
    order = read_order(typed(texts))
    if len(files.get("image", [])) != 1:
        raise ParameterError("image", f"image: {len(files.get('image', []))} given; this server edits one picture")
    if len(files.get("mask", [])) > 1:
        raise ParameterError("mask", "mask: give one")
    image = await asyncio.to_thread(read_picture, "image", files["image"][0], desk.limits)
    mask = None
    if "mask" in files:
        mask = await asyncio.to_thread(read_picture, "mask", files["mask"][0], desk.limits)
    settings = {**order.settings, **edit_settings(image, mask)}
    width, height = order.size or _served_size(desk, order.model, image)
    return await _draw(request, order, settings | {"width": width, "height": height}, "image_edit")


async def _parts(items: list[tuple[str, Any]]) -> tuple[dict[str, list[bytes]], dict[str, str]]:
    """The files and the texts of a form; `image[]` is `image`."""
    files: dict[str, list[bytes]] = {}
    texts: dict[str, str] = {}
    for name, value in items:
        if isinstance(value, UploadFile):
            files.setdefault(name.removesuffix("[]"), []).append(await value.read())
        else:
            texts[name] = value
    if unknown := sorted(files.keys() - {"image", "mask"}):
        raise ParameterError(unknown[0], f"Unknown parameter: '{unknown[0]}'.", "unknown_parameter")
    return files, texts


def _served_size(desk: Desk, model: str | None, image: Image.Image) -> tuple[int, int]:
    """The size nearest to a picture's that its model draws."""
    note = note_of(desk, model)

    def nearest(name: str, length: int) -> int:
        low, _, high = note.ranges[name]
        return min(max(round(length / 8) * 8, low), high)

    return nearest("width", image.width), nearest("height", image.height)


def note_of(desk: Desk, model: str | None) -> ModelNote:
    """A model's note; the first one's if none is named."""
    if model is not None and model not in desk.models:
        raise NotFoundError(f"The model '{model}' does not exist; this server has {', '.join(desk.models)}")
    return next(iter(desk.models.values())) if model is None else desk.models[model]


async def _draw(request: Request, order: Order, settings: Mapping[str, Any], kind: str) -> Response:
    desk = desk_of(request)
    if desk.models:
        note_of(desk, order.model)
    tickets = desk.submit(
        order.model,
        (order.prompt,),
        [_numbered(settings, number) for number in range(order.n)],
        previews=order.partial_images if order.stream else 0,
        kept=order.as_url,
    )
    if order.stream:
        with_first = tickets[0]
        await with_first.read()
        if with_first.failed is not None:
            await finished(request, desk, tickets)
        return StreamingResponse(
            _stream(desk, order, tickets, kind), media_type="text/event-stream", headers=NO_BUFFERING
        )
    done = await finished(request, desk, tickets)
    data = [await _data(request, order, ticket, one) for ticket, one in zip(tickets, done, strict=True)]
    return JSONResponse({"created": int(time.time()), "data": data, **_common(order, tickets[0])})


def _numbered(settings: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The settings of one of `n` pictures: a seed counts up."""
    seed = settings.get("seed")
    return {**settings, "seed": seed + number} if isinstance(seed, int) else dict(settings)


async def _data(request: Request, order: Order, ticket: Ticket, done: Finished) -> dict[str, str]:
    if order.as_url:
        address = request.url_for("picture", id=ticket.id, number="1")
        return {"url": str(address.include_query_params(format=order.format, quality=order.quality))}
    return {"b64_json": await _encoded(order, done.pictures[0], done)}


async def _encoded(order: Order, image: Image.Image, done: Finished | None = None) -> str:
    metadata = None if done is None else done.metadata
    return encode_base64(await asyncio.to_thread(encode_picture, image, order.format, order.quality, metadata))


def _common(order: Order, ticket: Ticket) -> dict[str, Any]:
    """Fields that answers and events share."""
    size = "auto" if ticket.accepted is None else f"{ticket.accepted.width}x{ticket.accepted.height}"
    return {"size": size, "quality": "auto", "background": "opaque", "output_format": order.format}


USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}
"""Nothing is metered here; clients expect the field."""


async def _stream(desk: Desk, order: Order, tickets: list[Ticket], kind: str) -> AsyncIterator[str]:
    with attended(desk, tickets):
        for ticket in tickets:
            shown = 0
            async for comment in with_comments(ticket):
                if comment is not None:
                    yield comment
                for number in range(shown, len(ticket.previews)):
                    image = ticket.previews[number].pictures[0]
                    assert ticket.accepted is not None
                    large = image.resize((ticket.accepted.width, ticket.accepted.height), Image.Resampling.BICUBIC)
                    body = {"b64_json": await _encoded(order, large), "partial_image_index": number}
                    yield _event(f"{kind}.partial_image", order, ticket, body)
                shown = max(shown, len(ticket.previews))
            try:
                done = await picture_of(ticket)
            except Exception as error:
                yield event("error", json.loads(bytes(answer("/v1/images", error).body)))
                return
            body = {"b64_json": await _encoded(order, done.pictures[0], done), "usage": USAGE}
            yield _event(f"{kind}.completed", order, ticket, body)


def _event(name: str, order: Order, ticket: Ticket, body: Mapping[str, Any]) -> str:
    return event(name, {"type": name, "created_at": int(time.time()), **_common(order, ticket), **body})


@router.get("/models", response_model=None)
async def models(request: Request) -> Response:
    """The models that are served."""
    return JSONResponse({"object": "list", "data": [_model(note) for note in desk_of(request).models.values()]})


@router.get("/models/{model}", response_model=None)
async def model(request: Request, model: str) -> Response:
    """One model."""
    return JSONResponse(_model(note_of(desk_of(request), model)))


def _model(note: ModelNote) -> dict[str, Any]:
    return {
        "id": note.name,
        "object": "model",
        "created": 0,
        "owned_by": "latentrt",
        "family": note.family,
        "ranges": {name: list(bounds) for name, bounds in note.ranges.items()},
        "defaults": {"sampler": note.sampler, "steps": note.steps, "guidance": note.guidance},
        "inpainting": note.inpainting,
        "loras": list(note.loras),
    }
