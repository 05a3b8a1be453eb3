"""How a picture was drawn, as data from which the request can be repeated."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.base import Record
from latentrt.runtime.errors import RequestError, shown
from latentrt.runtime.lora.bank import LoadedLora
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.images import as_grey, as_rgb
from latentrt.runtime.request.kinds import MASK, PICTURE, one_or_more
from latentrt.runtime.request.micro_conditioning import MicroConditioning
from latentrt.runtime.request.reading import Prompt
from latentrt.runtime.request.request import Request
from latentrt.runtime.request.settings import SETTINGS, Settings

log = logging.getLogger(__name__)

FORMAT: Final = 1
"""Version of the JSON text. Readers refuse other versions."""

PICTURES: Mapping[str, str] = {
    name: "RGB" if setting.kind is PICTURE else "L"
    for name, setting in SETTINGS.items()
    if setting.kind in (PICTURE, MASK)
}
"""The settings that are pictures, and the mode in which their pixels are read."""

Filter = Literal["lanczos", "bicubic", "bilinear", "nearest"]
"""Resampling filter of the high-resolution fix."""

Enlarge = Literal["pixels", "latents"]
"""What the high-resolution fix enlarges."""


class PictureNote(Record):
    """A picture that a request began with. `file`: the name of its file, if it has one."""

    file: str | None
    width: int
    height: int
    sha256: str
    """Hash of the pixels, row by row: red, green and blue bytes; grey bytes for a mask."""


class BundleNote(Record):
    """A bundle, and what ran it. `build` is None if the bundle's ONNX files were run directly."""

    name: str
    weights_sha256: str
    precision: str
    backend: str
    device: str
    build: str | None


class RefinerNote(Record):
    """The refiner: from the share `start` of the denoising on, or over finished latents with `strength`."""

    bundle: BundleNote
    start: float | None = None
    strength: float | None = None


class UpscaleNote(Record):
    """The second pass of the high-resolution fix, at `scale` times the size."""

    scale: float
    resample: Filter
    enlarge: Enlarge = "pixels"
    strength: float


class LoraNote(Record):
    """A LoRA that was loaded for the request. `short_hash`: see `LoadedLora`."""

    name: str
    file: str
    digest: str
    short_hash: str


class Metadata(Record):
    """A request that was drawn, and which of its pictures this one is.

    `settings`: values by name (see `request.settings`), as JSON; steps, sampler, guidance, seed, size and strength are
    there even if the request left them to the bundle. A picture is a `PictureNote`, any other array its shape and hash.
    `prompt` is empty if the request came with embeddings.
    """

    format: Literal[1] = FORMAT
    latentrt: str
    bundle: BundleNote
    prompt: tuple[str, ...]
    settings: dict[str, Any]
    refiner: RefinerNote | None = None
    upscale: UpscaleNote | None = None
    loras: tuple[LoraNote, ...] = ()
    picture: int = 1
    """Number of the picture in the batch, from 1."""
    pictures: int

    def for_picture(self, name: str) -> Any:
        """The picture's own value of a setting that may be given per prompt or per picture."""
        value = self.settings.get(name)
        if not isinstance(value, list):
            return value
        return (
            value[self.picture - 1 if SETTINGS[name].per == "picture" else self._prompt_number]
            if len(value) > 1
            else value[0]
        )

    @property
    def prompt_text(self) -> str:
        """The picture's own prompt."""
        return self.prompt[self._prompt_number] if self.prompt else ""

    @property
    def _prompt_number(self) -> int:
        return (self.picture - 1) // int(self.settings.get("images", 1))

    def picture_notes(self, name: str) -> list[PictureNote]:
        """The pictures given as `image` or `mask`."""
        return [PictureNote(**note) for note in self.settings.get(name, ())]

    def given_settings(self) -> Settings:
        """The settings, except pictures, as `Pipeline.generate` takes them.

        Raises:
            RequestError: the request began with embeddings or latents, which are not written down.
        """
        if not self.prompt or "latents" in self.settings:
            what = "latents" if self.prompt else "embeddings"
            raise RequestError(f"it was drawn from {what}, which a PNG does not hold; it cannot be repeated from it")
        given = {name: _tuples(value) for name, value in self.settings.items() if name not in PICTURES}
        if "negative_conditioning" in given:
            given["negative_conditioning"] = MicroConditioning(**given["negative_conditioning"])
        return cast(Settings, given)


def describe(
    bundle: BundleNote, prompt: Prompt, settings: Settings, request: Request, loras: Iterable[LoadedLora] = ()
) -> Metadata:
    """Metadata of a request: what the user asked for, and what was decided where nothing was asked.

    `loras`: what is loaded; those that the request uses are noted.

    `settings` are checked (`reading.read_given`). What the request does not act on is left out, and a warning says so.
    """
    values: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    values |= {name: getattr(request, name) for name in ("steps", "sampler", "width", "height")}
    if request.schedule:
        values["schedule"] = dict(request.schedule)
    values |= {"guidance": _one_or_list(request.guidance), "seed": _one_or_list(request.seeds)}
    if request.variation_seeds:
        values["variation_seed"] = _one_or_list(request.variation_seeds)
    if request.source is not None:
        values["strength"] = request.source.strength
    values = _acting(values, request)
    # Always in the same order, so that a picture drawn again is the same file.
    values = {name: _json_setting(name, values[name]) for name in SETTINGS if name in values}
    return Metadata(
        latentrt=version("latentrt"),
        bundle=bundle,
        prompt=() if isinstance(prompt, Embeddings) else request.prompts,
        settings=values,
        loras=_notes(loras, request),
        pictures=request.count,
    )


def _json_setting(name: str, value: Any) -> Any:
    """A checked setting's value as JSON.

    Raises:
        RequestError: it cannot be written as JSON.
    """
    if SETTINGS[name].per != "request" and name not in PICTURES and isinstance(value, tuple):
        value = _one_or_list(value)
    written = _json(name, value)
    try:
        json.dumps(written)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name} {shown(value)}: cannot be written into the picture's metadata ({error})") from error
    return written


def _notes(loras: Iterable[LoadedLora], request: Request) -> tuple[LoraNote, ...]:
    used = {use.name for mix in request.loras for use in mix}
    return tuple(
        LoraNote(name=lora.name, file=lora.file, digest=lora.digest, short_hash=lora.short_hash)
        for lora in loras
        if lora.name in used
    )


def _acting(values: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """The settings, and the fields of the schedule, that the request acts on; others that were given are warned of."""
    idle = {name: one.use for name, one in SETTINGS.items() if one.use is not None and not one.use.applies(request)}
    for name, use in idle.items():
        if name in values and _says_something(request.settings.get(name), SETTINGS[name].default):
            log.warning("%s: given, but it has no effect: %s", name, use.otherwise)
    acting = {name: value for name, value in values.items() if name not in idle}
    if unread := request.unread_fields:
        log.warning("schedule: sampler %r does not read %s, so it has no effect", request.sampler, ", ".join(unread))
        acting["schedule"] = {name: value for name, value in request.schedule if name not in unread}
        if not acting["schedule"]:
            del acting["schedule"]
    return acting


def _says_something(value: Any, default: Any) -> bool:
    """Whether a checked value differs from its default and from empty texts."""
    return value != default and (any(value) if isinstance(value, tuple) else True)


def describe_bundle(bundle: Bundle, *, backend: str, device: str, build: str | None) -> BundleNote:
    """Metadata of a bundle, and of what runs it."""
    return BundleNote(
        name=bundle.name,
        weights_sha256=bundle.manifest.provenance.weights_sha256,
        precision=bundle.manifest.precision,
        backend=backend,
        device=device,
        build=build,
    )


def describe_picture(picture: Image.Image | NDArray[Any], mode: str) -> PictureNote:
    """A picture's file name, size and hash. `mode`: how its pixels are read, `RGB` or `L`."""
    read = as_rgb(picture) if mode == "RGB" else as_grey(picture)
    name = Path(getattr(picture, "filename", "")).name
    sha256 = hashlib.sha256(read.tobytes()).hexdigest()
    return PictureNote(file=name or None, width=read.width, height=read.height, sha256=sha256)


def _one_or_list(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else list(values)


def _json(name: str, value: Any) -> Any:
    """A setting's value as JSON."""
    if name in PICTURES:
        return [describe_picture(picture, PICTURES[name]).model_dump() for picture in one_or_more(value)]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).tobytes()
        return {"shape": list(value.shape), "sha256": hashlib.sha256(data).hexdigest()}
    if isinstance(value, MicroConditioning):
        return _json("", asdict(value))
    if isinstance(value, Mapping):
        return {key: _json("", entry) for key, entry in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_json("", entry) for entry in value]
    return value


def _tuples(value: Any) -> Any:
    """Turn lists back into tuples, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
