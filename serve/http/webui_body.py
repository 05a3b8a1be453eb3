"""Bodies of AUTOMATIC1111's API, and our settings from them."""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from PIL import ImageChops
from pydantic import BaseModel, ConfigDict, Field

from latentrt.runtime import RequestError
from latentrt.runtime.record import webui
from latentrt.runtime.samplers import SAMPLERS, sampler_named, schedule_named
from latentrt.runtime.samplers.names import WEBUI_SAMPLERS, WEBUI_SCHEDULES
from latentrt.serve.limits import ServerLimits
from latentrt.serve.messages import ModelNote
from latentrt.serve.pictures import decode_base64, read_picture

NOT_SERVED: Mapping[str, Any] = {
    "enable_hr": False,
    "restore_faces": False,
    "tiling": False,
    "styles": [],
    "script_name": None,
    "refiner_checkpoint": None,
}
"""Fields that would change the picture, and the value that changes nothing."""

SAMPLER_NAMES: Mapping[str, str] = {name: WEBUI_SAMPLERS.get(name, name) for name in sorted(SAMPLERS)}
"""Our samplers, and what the web interface calls them, where it has them."""

SCHEDULE_NAMES = ("Automatic", *WEBUI_SCHEDULES.values())
"""The web interface's schedule types."""

DEFAULT_STEPS, DEFAULT_SCALE = 50, 7.0
"""The web interface's own defaults."""


class Txt2Img(BaseModel):
    """The fields that are read. Sizes default to the model's own."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = ""
    negative_prompt: str | None = ""
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int = Field(1, ge=1)
    n_iter: int = Field(1, ge=1)
    steps: int = DEFAULT_STEPS
    cfg_scale: float = DEFAULT_SCALE
    width: int | None = None
    height: int | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool = True
    enable_hr: bool | None = False
    restore_faces: bool | None = False
    tiling: bool | None = False
    styles: list[str] | None = None
    script_name: str | None = None
    refiner_checkpoint: str | None = None


class Img2Img(Txt2Img):
    """Beside these, what a picture to start from needs. White parts of the mask are redrawn."""

    init_images: list[str] | None = None
    mask: str | None = None
    inpainting_mask_invert: int | bool = 0
    denoising_strength: float = 0.75


class PngInfo(BaseModel):
    """A picture whose texts are read."""

    image: str


def source_settings(body: Img2Img, limits: ServerLimits) -> dict[str, Any]:
    """The settings for the picture to start from, and its mask.

    Raises:
        RequestError: one cannot be read, or there are several.
    """
    assert body.init_images is not None
    if len(body.init_images) > 1:
        raise RequestError("init_images: one picture at a time; send a request for each")
    image = read_picture("init_images", decode_base64("init_images", body.init_images[0]), limits)
    settings: dict[str, Any] = {"image": image.convert("RGBA").convert("RGB"), "strength": body.denoising_strength}
    if body.mask:
        mask = read_picture("mask", decode_base64("mask", body.mask), limits).convert("L").resize(image.size)
        settings |= {"mask": ImageChops.invert(mask) if body.inpainting_mask_invert else mask, "paste_back": True}
    return settings


def settings_of(body: Txt2Img, model: ModelNote) -> dict[str, Any]:
    """Our settings from theirs, for a model. The prompt's tags become `loras`.

    Raises:
        RequestError: a field that would change the picture and is not served, or a name that is not known.
    """
    for name, idle in NOT_SERVED.items():
        if getattr(body, name) not in (idle, None, "", "None"):
            raise RequestError(f"{name}: not served here; leave it out")
    settings: dict[str, Any] = {"steps": body.steps, "guidance": body.cfg_scale, "prompt_syntax": "a1111"}
    settings |= {"width": body.width, "height": body.height}
    if body.negative_prompt and body.cfg_scale > 1:
        settings["negative"] = body.negative_prompt
    settings |= _sampler_settings(body.sampler_name or body.sampler_index, body.scheduler, model.sampler)
    if loras := loras_of(body.prompt, model.loras):
        settings["loras"] = loras
    if body.subseed_strength:
        settings |= {"variation_strength": body.subseed_strength, "variation_seed": body.subseed}
    override = body.override_settings or {}
    if isinstance(skip := override.get("CLIP_stop_at_last_layers"), int) and skip > 1:
        settings["clip_skip"] = skip - 1
    return settings


TAG = re.compile(r"<(lora|lyco|hypernet):([^>]+)>")
"""Extra networks in a prompt."""


def without_tags(prompt: str) -> str:
    """A prompt without the tags of extra networks, as the text encoders read it."""
    return TAG.sub("", prompt)


def loras_of(prompt: str, loaded: Sequence[str]) -> dict[str, Any]:
    """The strengths of `<lora:name:strength>`, or `:text encoders:U-Net` and `te=`, `unet=`; those of one name add up.

    Raises:
        RequestError: another kind of tag, a LoRA that is not loaded, or a strength that is not a number.
    """
    sums: dict[str, tuple[float, float]] = {}
    for tag in TAG.finditer(prompt):
        name, text, unet = _read_tag(tag)
        if name not in loaded:
            here = ", ".join(loaded) or "none"
            raise RequestError(f"prompt: {tag[0]}: the LoRA {name!r} is not loaded on this server; it has {here}")
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + text, before[1] + unet)
    return {
        name: unet if text == unet else {"unet": unet, "text_encoder": text, "text_encoder_2": text}
        for name, (text, unet) in sums.items()
    }


def _read_tag(tag: re.Match[str]) -> tuple[str, float, float]:
    """A tag's name and its strengths in the text encoders and in the U-Net."""
    parts = [part.strip() for part in tag[2].split(":")]
    name, *places = [part for part in parts if "=" not in part]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    if tag[1] == "hypernet" or named.keys() - {"te", "unet"} or len(places) > 2:
        raise RequestError(f"prompt: {tag[0]}: not served here; give <lora:name:strength>")
    text = named.get("te", places[0] if places else "1")
    unet = named.get("unet", places[1] if len(places) > 1 else text)
    try:
        return name, float(text), float(unet)
    except ValueError as error:
        raise RequestError(f"prompt: {tag[0]}: strengths must be numbers, such as <lora:{name}:0.8>") from error


def _sampler_settings(sampler: str | None, schedule: str | None, default: str) -> dict[str, Any]:
    """The settings for a sampler and a schedule type; clients write `automatic` in either way.

    Raises:
        RequestError: one is not known; it names those that are, as the web interface does.
    """
    if schedule and schedule.lower() == "automatic":
        schedule = "Automatic"
    if schedule and schedule != "Automatic":
        _check_name("scheduler", schedule, schedule_named, SCHEDULE_NAMES)
    if sampler:
        _check_name("sampler_name", sampler, sampler_named, tuple(SAMPLER_NAMES.values()))
        return webui.sampler_settings(sampler, schedule or None)
    # without a sampler, `Automatic` is the schedule that the model's own sampler has
    return webui.sampler_settings(default, schedule) if schedule and schedule != "Automatic" else {}


def _check_name(field: str, given: str, read: Callable[[str], object], names: Sequence[str]) -> None:
    try:
        read(given)
    except RequestError as error:
        nearest = get_close_matches(given, names, n=1)
        near = f"no such name, the nearest is {nearest[0]}; " if nearest else ""
        raise RequestError(f"{field} {given!r}: {near}must be one of {', '.join(names)}") from error


def seeds_of(settings: Mapping[str, Any], first: int, number: int) -> dict[str, int]:
    """The seeds of one picture: they count up; with a variation, that of the variation does."""
    if "variation_seed" not in settings:
        return {"seed": first + number}
    varied = settings["variation_seed"]
    return {"seed": first, "variation_seed": varied + number if varied >= 0 else -1}
