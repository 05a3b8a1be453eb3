"""The AUTOMATIC1111 web interface's API, as its clients speak it; unknown fields are ignored, as there.

Every picture is a request of its own with its own seed, counting up, as there. Fields that would change the picture and
are not served are errors.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from latentrt.runtime import RequestError
from latentrt.runtime.record import webui
from latentrt.runtime.record.formats import WEBUI_KEY
from latentrt.runtime.samplers.names import WEBUI_SAMPLERS
from latentrt.serve.desk import Desk
from latentrt.serve.http.waiting import attended, desk_of, picture_of, while_connected
from latentrt.serve.http.webui_body import (
    SAMPLER_NAMES,
    SCHEDULE_NAMES,
    Img2Img,
    PngInfo,
    Txt2Img,
    seeds_of,
    settings_of,
    source_settings,
    without_tags,
)
from latentrt.serve.messages import Finished, ModelNote
from latentrt.serve.pictures import decode_base64, encode_base64, encode_picture, read_picture
from latentrt.serve.ticket import Ticket

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])


@router.post("/txt2img", response_model=None)
async def txt2img(request: Request, body: Txt2Img) -> Response:
    """Draw pictures of a prompt."""
    return await _draw(request, body, settings_of(body, _note(request, body)))


@router.post("/img2img", response_model=None)
async def img2img(request: Request, body: Img2Img) -> Response:
    """Draw pictures that start from one."""
    if not body.init_images:
        return answer_missing("Init image not found")
    settings = settings_of(body, _note(request, body))
    settings |= await asyncio.to_thread(source_settings, body, desk_of(request).limits)
    return await _draw(request, body, settings)


def answer_missing(detail: str) -> JSONResponse:
    """404, as the web interface answers what is missing."""
    return JSONResponse({"error": "HTTPException", "detail": detail, "body": "", "errors": ""}, 404)


def _model(request: Request, body: Txt2Img) -> str | None:
    title = (body.override_settings or {}).get("sd_model_checkpoint") or request.app.state.webui_model
    return None if title is None else _named(desk_of(request), str(title))


def _note(request: Request, body: Txt2Img) -> ModelNote:
    return desk_of(request).model(_model(request, body))


def _named(desk: Desk, title: str) -> str:
    """A model's name from its title, which ends in a hash."""
    name = title.partition(" [")[0]
    if desk.models and name not in desk.models:
        raise RequestError(f"model {name!r} not found; this server has {', '.join(desk.models)}")
    return name


async def _draw(request: Request, body: Txt2Img, settings: Mapping[str, Any]) -> Response:
    desk = desk_of(request)
    count = body.batch_size * body.n_iter
    if count > desk.limits.pictures:
        raise RequestError(f"batch_size * n_iter: {count}; this server draws up to {desk.limits.pictures} at once")
    first = body.seed if body.seed >= 0 else int(time.time_ns() % 2**32)
    each = [{**settings, **seeds_of(settings, first, number)} for number in range(count)]
    tickets = desk.submit(_model(request, body), (without_tags(body.prompt),), each, previews=4)
    jobs: set[Ticket] = request.app.state.webui_jobs
    jobs.update(tickets)
    try:
        with attended(desk, tickets):
            done = await while_connected(request, _until_interrupted(tickets))
    finally:
        jobs.difference_update(tickets)
    encode = [asyncio.to_thread(encode_picture, one.pictures[0], metadata=one.metadata) for one in done]
    images = [encode_base64(file) for file in await asyncio.gather(*encode)]
    parameters = body.model_dump() | {"init_images": None, "mask": None}
    info = json.dumps(_info(body, done))
    return JSONResponse({"images": images if body.send_images else [], "parameters": parameters, "info": info})


async def _until_interrupted(tickets: list[Ticket]) -> list[Finished]:
    """The pictures; after an interruption, those that were done."""
    done = []
    for ticket in tickets:
        await ticket.done()
        if ticket.state != "cancelled":
            done.append(await picture_of(ticket))
    return done


def _info(body: Txt2Img, done: list[Finished]) -> dict[str, Any]:
    texts = [webui.write(one.metadata) for one in done]
    seeds = [one.metadata.settings["seed"] for one in done]
    first: Mapping[str, Any] = done[0].metadata.settings if done else {}
    return {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * len(done),
        "negative_prompt": body.negative_prompt or "",
        "seed": seeds[0] if seeds else body.seed,
        "all_seeds": seeds,
        "width": first.get("width"),
        "height": first.get("height"),
        "sampler_name": WEBUI_SAMPLERS.get(first.get("sampler", ""), first.get("sampler")),
        "cfg_scale": body.cfg_scale,
        "steps": body.steps,
        "batch_size": body.batch_size,
        "sd_model_name": done[0].metadata.bundle.name if done else None,
        "sd_model_hash": done[0].metadata.bundle.weights_sha256[:10] if done else None,
        "infotexts": texts,
    }


@router.get("/progress", response_model=None)
async def progress(request: Request, skip_current_image: bool = False) -> Response:
    """How far the requests of this API are, and a preview of the first."""
    jobs = sorted(request.app.state.webui_jobs, key=lambda ticket: ticket.came)
    steps = sum(ticket.steps or 1 for ticket in jobs)
    share = sum(ticket.step for ticket in jobs) / steps if jobs else 0.0
    image = None
    if jobs and jobs[0].previews and not skip_current_image:
        image = encode_base64(encode_picture(jobs[0].previews[-1].pictures[0]))
    seconds = time.monotonic() - jobs[0].came if jobs else 0.0
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "txt2img" if jobs else "",
        "job_count": len(jobs),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "job_no": 0,
        "sampling_step": jobs[0].step if jobs else 0,
        "sampling_steps": (jobs[0].steps or 0) if jobs else 0,
    }
    eta = seconds / share - seconds if share else 0.0
    found = {"progress": share, "eta_relative": eta, "state": state, "current_image": image, "textinfo": None}
    return JSONResponse(found)


@router.post("/interrupt", response_model=None)
async def interrupt(request: Request) -> Response:
    """Cancel the requests of this API."""
    for ticket in list(request.app.state.webui_jobs):
        desk_of(request).cancel(ticket)
    return JSONResponse({})


@router.get("/samplers", response_model=None)
async def samplers(request: Request) -> Response:
    """The samplers, by the web interface's names where it has one."""
    return JSONResponse([{"name": theirs, "aliases": [name], "options": {}} for name, theirs in SAMPLER_NAMES.items()])


@router.get("/schedulers", response_model=None)
async def schedulers(request: Request) -> Response:
    """The schedule types."""
    found = [{"name": name.lower().replace(" ", "_"), "label": name, "aliases": None} for name in SCHEDULE_NAMES]
    return JSONResponse(found)


@router.get("/loras", response_model=None)
async def loras(request: Request) -> Response:
    """The LoRAs of the model that this API draws with."""
    note = desk_of(request).model(request.app.state.webui_model)
    return JSONResponse([{"name": name, "alias": name, "path": name, "metadata": {}} for name in note.loras])


@router.get("/sd-models", response_model=None)
async def sd_models(request: Request) -> Response:
    """The models."""
    return JSONResponse([_describe(note) for note in desk_of(request).models.values()])


def _title(note: ModelNote) -> str:
    return f"{note.name} [{note.weights_sha256[:10]}]"


def _describe(note: ModelNote) -> dict[str, Any]:
    return {
        "title": _title(note),
        "model_name": note.name,
        "hash": note.weights_sha256[:10],
        "sha256": note.weights_sha256,
        "filename": note.name,
        "config": None,
    }


@router.get("/options", response_model=None)
async def options(request: Request) -> Response:
    """The options that mean something here."""
    desk, chosen = desk_of(request), request.app.state.webui_model
    note = desk.models.get(chosen) if chosen else next(iter(desk.models.values()), None)
    found = {"sd_model_checkpoint": None if note is None else _title(note), "sd_vae": "Automatic"}
    return JSONResponse(found | {"CLIP_stop_at_last_layers": 1, "samples_format": "png"})


@router.post("/options", response_model=None)
async def set_options(request: Request, body: dict[str, Any]) -> Response:
    """Choose the model of this API's requests; other options change nothing."""
    if title := body.get("sd_model_checkpoint"):
        request.app.state.webui_model = _named(desk_of(request), str(title))
    return JSONResponse(None)


@router.post("/png-info", response_model=None)
async def png_info(request: Request, body: PngInfo) -> Response:
    """How a PNG was drawn."""
    if not body.image.strip():
        return answer_missing("Image not found")
    image = await asyncio.to_thread(_read, body.image, desk_of(request))
    text = image.info.get(WEBUI_KEY)
    items = {name: value for name, value in image.info.items() if isinstance(value, str)}
    text = text if isinstance(text, str) else ""
    return JSONResponse({"info": text, "items": items, "parameters": webui.fields_of(text)})


def _read(text: str, desk: Desk) -> Image.Image:
    return read_picture("image", decode_base64("image", text), desk.limits)
