"""Reading and writing the text that the AUTOMATIC1111 web interface puts into its PNGs as `parameters`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentrt.runtime.errors import RequestError
from latentrt.runtime.record.metadata import Metadata
from latentrt.runtime.request.settings import Settings
from latentrt.runtime.samplers import SAMPLERS, fields_read, over, sampler_named, schedule_named
from latentrt.runtime.samplers.names import WEBUI_SAMPLERS, WEBUI_SCHEDULES

DIFFUSERS_SPACINGS: Mapping[str, tuple[str, Any]] = {
    "Karras": ("use_karras_sigmas", True),
    "Exponential": ("use_exponential_sigmas", True),
    "Beta": ("use_beta_sigmas", True),
    "SGM Uniform": ("timestep_spacing", "trailing"),
}
"""Schedule types that are written for diffusers' fields, which are nearly the same."""

AUTOMATIC = {
    "dpmpp_2m": "Karras",
    "dpmpp_2m_sde": "Exponential",
    "dpmpp_2s_a": "Karras",
    "dpmpp_3m_sde": "Exponential",
    "dpmpp_sde": "Karras",
    "kdpm2": "Karras",
    "kdpm2_a": "Karras",
    "restart": "Karras",
}
"""Sampler -> the schedule type that `Automatic` stands for. With others it changes nothing."""

SCHEDULE_NUMBERS: Mapping[str, str] = {
    "Eta": "eta",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
    "Schedule max sigma": "sigma_max",
    "Schedule min sigma": "sigma_min",
    "Schedule rho": "rho",
}
"""The web interface's fields -> fields of the schedule."""

NEGATIVE = "Negative prompt:"
FIELD = re.compile(r'\s*([^:,"]+):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
"""One `Name: value`; a value with a comma, a colon or a line break is written as JSON."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The request in a text. `ignored`: the fields that mean nothing here, as they were written."""

    prompt: str
    settings: Settings
    ignored: tuple[str, ...]


def write(metadata: Metadata) -> str:
    """The text for one picture: its prompt, its negative prompt, and a line of fields.

    If several pictures share a seed, it is the batch's, and `Batch size` and `Batch pos` (from 0) say so.
    """
    lines = [metadata.prompt_text]
    if negative := metadata.for_picture("negative"):
        lines.append(f"{NEGATIVE} {negative}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in _fields(metadata).items()))
    return "\n".join(lines)


def _fields(metadata: Metadata) -> dict[str, object]:
    settings, bundle = metadata.settings, metadata.bundle
    sampler = settings["sampler"]
    fields: dict[str, object] = {"Steps": settings["steps"], "Sampler": WEBUI_SAMPLERS.get(sampler, sampler)}
    if schedule := _schedule_type(settings.get("schedule", {})):
        fields["Schedule type"] = schedule
    numbers = settings.get("schedule", {})
    fields |= {name: numbers[own] for name, own in SCHEDULE_NUMBERS.items() if numbers.get(own) is not None}
    fields |= {"CFG scale": metadata.for_picture("guidance"), "Seed": metadata.for_picture("seed")}
    if "variation_seed" in settings:
        fields["Variation seed"] = metadata.for_picture("variation_seed")
        fields["Variation seed strength"] = settings["variation_strength"]
    fields["Size"] = f"{settings['width']}x{settings['height']}"
    fields |= {"Model hash": bundle.weights_sha256[:10], "Model": bundle.name}
    if metadata.pictures > 1 and not isinstance(settings["seed"], list):
        fields |= {"Batch size": metadata.pictures, "Batch pos": metadata.picture - 1}
    if settings.get("noise") == "a1111":
        fields["RNG"] = "CPU"
    if "strength" in settings:
        fields["Denoising strength"] = settings["strength"]
    if clip_skip := settings.get("clip_skip"):
        fields["Clip skip"] = clip_skip + 1
    if metadata.upscale is not None:
        fields |= {"Denoising strength": metadata.upscale.strength, "Hires upscale": metadata.upscale.scale}
    if metadata.refiner is not None:
        fields["Refiner"] = f"{metadata.refiner.bundle.name} [{metadata.refiner.bundle.weights_sha256[:10]}]"
        if metadata.refiner.start is not None:
            fields["Refiner switch at"] = metadata.refiner.start
    if metadata.loras:
        fields["Lora hashes"] = ", ".join(f"{lora.name}: {lora.short_hash}" for lora in metadata.loras)
    return fields | {"Version": f"latentrt {metadata.latentrt}"}


def _schedule_type(schedule: Mapping[str, Any]) -> str | None:
    """The web interface's name of a schedule, if it has one."""
    spacing = str(schedule.get("sigma_spacing", "")).removesuffix("_xl").removesuffix("_15")
    if spacing:
        return WEBUI_SCHEDULES.get(spacing)
    return next((name for name, setting in DIFFUSERS_SPACINGS.items() if setting in schedule.items()), None)


def _quoted(value: object) -> str:
    """A value as the line of fields writes it."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:"\n') else text


USUAL = ("Automatic", "Uniform", "Normal")
"""Schedule types that a sampler with one schedule of its own need not be told of."""


def read(text: str, sampler: bool = True) -> Parameters:
    """Read a text as a request. `sampler`: whether to read its sampler and schedule type, too.

    `Clip skip` is the number, from the end, of the layer that is read, so 1 skips none. Lines below the fields are
    remarks.

    Raises:
        RequestError: an unknown sampler or schedule type, or a value that is not a number.
    """
    prompt, negative, fields = _split(text)
    settings: dict[str, Any] = {"prompt_syntax": "a1111"}
    if negative:
        settings["negative"] = negative
    for name, (setting, kind) in NUMBERS.items():
        if name in fields:
            settings[setting] = _number(name, fields.pop(name), kind)
    if "clip_skip" in settings:
        settings["clip_skip"] -= 1
    if "Size" in fields:
        settings["width"], settings["height"] = _size(fields.pop("Size"))
    if sampler and "Sampler" in fields:
        schedule = fields.pop("Schedule type", None)
        try:
            settings |= sampler_settings(fields.pop("Sampler"), schedule)
        except RequestError as error:
            raise RequestError(f"parameters: {error}") from error
        if schedule is not None and schedule not in USUAL and "schedule" not in settings:
            fields["Schedule type"] = schedule
        given = {own: name for name, own in SCHEDULE_NUMBERS.items() if name in fields}
        if given:
            numbers = {own: _number(name, fields.pop(name), float) for own, name in given.items()}
            settings["schedule"] = settings.get("schedule", {}) | numbers
    if fields.get("RNG") == "CPU":
        settings["noise"] = "a1111"
        del fields["RNG"]
    ignored = tuple(f"{name}: {value}" for name, value in fields.items())
    return Parameters(prompt, Settings(**settings), ignored)  # type: ignore[typeddict-item]


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """A text's prompt, its negative prompt and its fields."""
    lines = text.strip().split("\n")
    end = max((number for number, line in enumerate(lines) if line.startswith("Steps:")), default=len(lines))
    start = next((number for number, line in enumerate(lines[:end]) if line.startswith(NEGATIVE)), end)
    fields = {name.strip(): _unquoted(value) for name, value in FIELD.findall("".join(lines[end : end + 1]))}
    return "\n".join(lines[:start]), "\n".join(lines[start:end]).removeprefix(NEGATIVE).strip(), fields


def fields_of(text: str) -> dict[str, str]:
    """Everything in a text by the web interface's names, with `Prompt` and `Negative prompt`, as it is written."""
    if not text:
        return {}
    prompt, negative, fields = _split(text)
    return {"Prompt": prompt, "Negative prompt": negative, **fields}


NUMBERS: Mapping[str, tuple[str, type]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", int),
    "Variation seed": ("variation_seed", int),
    "Variation seed strength": ("variation_strength", float),
}
"""Fields that hold one number -> the setting and its type."""


def _number(name: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise RequestError(f"parameters: {name} {value!r} is not a number") from error


def _size(value: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", value)
    if match is None:
        raise RequestError(f"parameters: Size {value!r} is not WIDTHxHEIGHT")
    return int(match[1]), int(match[2])


def sampler_settings(name: str, schedule: str | None) -> dict[str, Any]:
    """The settings for a sampler's name and a schedule type; older texts have both in the name.

    Raises:
        RequestError: one of them is not known.
    """
    named = sampler_named(name)
    if schedule == "Automatic":
        schedule = AUTOMATIC.get(named.sampler)
    fields = over(named.fields, {} if schedule is None else schedule_named(schedule))
    if "sigma_spacing" not in fields_read(SAMPLERS[named.sampler]):
        fields.pop("sigma_spacing", None)  # the interface, too, has one schedule for these
    return {"sampler": named.sampler} | ({"schedule": fields} if fields else {})


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value
