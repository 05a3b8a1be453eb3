"""How a picture was drawn, as data: all of a request that can be written down, and repeated."""

import hashlib
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
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.kinds import MASK, PICTURE, one_or_more
from latentrt.runtime.request.micro_conditioning import MicroConditioning
from latentrt.runtime.request.reading import Prompt
from latentrt.runtime.request.request import Request
from latentrt.runtime.request.settings import SETTINGS, Settings

FORMAT: Final = 1
"""Version of the JSON text. A reader refuses others."""

PICTURES: Mapping[str, str] = {
    name: "RGB" if setting.kind is PICTURE else "L"
    for name, setting in SETTINGS.items()
    if setting.kind in (PICTURE, MASK)
}
"""The settings that are pictures, and what their pixels are read as."""


class PictureNote(Record):
    """A picture that a request began with. `file`: its name, where it was read from one."""

    file: str | None
    width: int
    height: int
    sha256: str
    """Of the pixels, row by row, as red, green and blue bytes; of a mask, as bytes of grey."""


class BundleNote(Record):
    """The bundle that drew, and what ran it. `build` is None where the bundle's ONNX files were run as they are."""

    name: str
    weights_sha256: str
    precision: str
    backend: str
    device: str
    build: str | None


class RefinerNote(Record):
    """The second model: from the share `start` of the denoising on, or over the finished latents so strongly."""

    bundle: BundleNote
    start: float | None = None
    strength: float | None = None


class UpscaleNote(Record):
    """The second pass at `scale` times the size, of this strength."""

    scale: float
    resample: Literal["lanczos", "bicubic", "bilinear", "nearest"]
    enlarge: Literal["pixels", "latents"] = "pixels"
    strength: float


class Metadata(Record):
    """A request that was drawn, and which of its pictures this is.

    `settings`: by name (see `request.settings`), as JSON has them; steps, sampler, guidance, seed, size and
    strength are there even where the request left them to the bundle. Pictures are `PictureNote`s, other arrays their
    shape and hash. `prompt` is empty where the request came with embeddings.
    """

    format: Literal[1] = FORMAT
    latentrt: str
    bundle: BundleNote
    prompt: tuple[str, ...]
    settings: dict[str, Any]
    refiner: RefinerNote | None = None
    upscale: UpscaleNote | None = None
    picture: int = 1
    """Its number in the batch, from 1."""
    pictures: int

    def of_picture(self, name: str, default: Any = None) -> Any:
        """What a setting that may be given per prompt, or per picture, is for this picture."""
        value = self.settings.get(name, default)
        if not isinstance(value, list):
            return value
        return (
            value[self.picture - 1 if SETTINGS[name].per == "picture" else self._prompt_number]
            if len(value) > 1
            else value[0]
        )

    @property
    def prompt_text(self) -> str:
        """The prompt of this picture."""
        return self.prompt[self._prompt_number] if self.prompt else ""

    @property
    def _prompt_number(self) -> int:
        return (self.picture - 1) // int(self.settings.get("images", 1))

    def picture_notes(self, name: str) -> list[PictureNote]:
        """The pictures that `image` or `mask` were."""
        return [PictureNote(**note) for note in self.settings.get(name, ())]

    def given_settings(self) -> Settings:
        """The settings as `Pipeline.generate` takes them, without pictures.

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


def describe(bundle: BundleNote, prompt: Prompt, settings: Settings, request: Request) -> Metadata:
    """Write down what the user asked for, and what the request made of it where nothing was asked."""
    said: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    said |= {name: getattr(request, name) for name in ("steps", "sampler", "width", "height")}
    said |= {"guidance": _one_or_list(request.guidance), "seed": _one_or_list(request.seeds)}
    if request.source is not None:
        said["strength"] = request.source.strength
    # In one order, however they were given: a picture that is repeated is the same file.
    said = {name: _json(name, said[name]) for name in SETTINGS if name in said}
    return Metadata(
        latentrt=version("latentrt"),
        bundle=bundle,
        prompt=() if isinstance(prompt, Embeddings) else request.prompts,
        settings=said,
        pictures=request.count,
    )


def describe_bundle(bundle: Bundle, *, backend: str, device: str, build: str | None) -> BundleNote:
    """A bundle as a pipeline runs it."""
    return BundleNote(
        name=bundle.path.resolve().name,
        weights_sha256=bundle.manifest.provenance.weights_sha256,
        precision=bundle.manifest.precision,
        backend=backend,
        device=device,
        build=build,
    )


def describe_picture(picture: Image.Image | NDArray[Any], mode: str) -> PictureNote:
    """A picture's file name, size and hash; `mode`: what its pixels are read as, `RGB` or `L`."""
    if isinstance(picture, np.ndarray):
        height, width, data, name = *picture.shape[:2], np.ascontiguousarray(picture).tobytes(), ""
    else:
        (width, height), data = picture.size, picture.convert(mode).tobytes()
        name = Path(getattr(picture, "filename", "")).name
    return PictureNote(file=name or None, width=width, height=height, sha256=hashlib.sha256(data).hexdigest())


def _one_or_list(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else list(values)


def _json(name: str, value: Any) -> Any:
    """A setting as JSON has it."""
    if name in PICTURES:
        return [describe_picture(one, PICTURES[name]).model_dump() for one in one_or_more(value)]
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
    """Lists as the tuples that settings have; JSON knows lists only."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
