"""The settings of a request, as `Pipeline.generate` and `Pipeline.request` take them by name."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypedDict, TypeVar

import numpy as np

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.bundle.manifest import Manifest
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.images import CheckSize, ImageLike, MaskLike, read_masks, read_pictures
from latentrt.runtime.request.micro_conditioning import MicroConditioning, Size
from latentrt.runtime.request.request import Request
from latentrt.runtime.request.source import Source
from latentrt.runtime.request.values import one_or_more, per_prompt
from latentrt.runtime.samplers import ScheduleConfig

Value = TypeVar("Value")

Prompt = str | Sequence[str] | Embeddings
"""One text, one for each of several pictures, or what text encoders made of them."""

STRENGTH = 0.8
"""Of image to image, where none is given: most of the picture is new, its layout stays."""

NEEDS_A_SOURCE = {
    "mask": "an image to draw it in; add image=",
    "paste_back": "an image and a mask; add image= and mask=",
    "strength": "an image to start from; add image=, or latents=",
    "denoising_start": "the latents to go on with; add latents=",
}


class Settings(TypedDict, total=False):
    """Everything a request can say beside its prompt. What is not given is the bundle's default."""

    negative: str | Sequence[str | None] | None
    """What to keep away from; one for all prompts, or one per prompt. None: what the checkpoint was trained with."""
    prompt_2: str | Sequence[str | None] | None
    negative_2: str | Sequence[str | None] | None
    """For the second text encoder; default: what the first one gets."""
    clip_skip: int
    """Layers of the text encoders that the prompts skip beyond those that the model skips (not the negatives)."""
    steps: int | None
    sampler: str | None
    schedule: Mapping[str, Any] | None
    """Fields of the scheduler config to override, such as {"use_karras_sigmas": True} (docs/samplers.md)."""
    guidance: float | Sequence[float] | None
    """Classifier-free guidance scale, one per prompt or one for all; 1 and below draw without, at half the cost."""
    guidance_rescale: float
    """How far guided outputs get the spread of unguided ones, 0 to 1 (Lin et al. 2024, arXiv:2305.08891, 3.4)."""
    guidance_interval: tuple[float, float]
    """The share of the steps, from and to, that are guided (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""
    seed: int | Sequence[int] | None
    """One for the batch, or one per picture; the same seed gives diffusers' picture. None: a fresh one."""
    images: int
    """Pictures per prompt."""
    width: int | None
    height: int | None
    """Multiples of 8; of image to image, the picture's own where not given."""
    image: ImageLike | Sequence[ImageLike] | None
    """Picture to start from: one for all, or one per picture to draw."""
    latents: Float32s | None
    """Latents to start from (n, 4, h, w), such as a result's, in place of an image."""
    mask: MaskLike | Sequence[MaskLike] | None
    """Where the image is drawn anew: light. Elsewhere it stays."""
    strength: float | None
    """How much of the image is forgotten: 0 keeps it, 1 draws from noise. Default 0.8, with a mask 1."""
    paste_back: bool
    """With a mask: the result gets the pixels of the image back outside of it, untouched by the VAE."""
    denoising_start: float | None
    """Go on with `latents` that another model left at this share of the denoising (its `denoising_end`)."""
    denoising_end: float | None
    """Stop at this share of the denoising: the result's latents are for another model to go on with."""
    decode: bool
    """False: only the latents are wanted, no pictures."""
    original_size: Size | None
    crop: Size
    target_size: Size | None
    """SDXL's time ids: (height, width), (top, left), (height, width); sizes default to the request's own."""
    aesthetic_score: float | None
    negative_aesthetic_score: float | None
    """Of SDXL's refiner; default 6.0 and 2.5."""
    negative_conditioning: MicroConditioning | None
    """Time ids of the negative rows; default: those of the prompts."""


def make_request(prompt: Prompt, settings: Settings, manifest: Manifest, check_size: CheckSize) -> Request:
    """A request with the bundle's defaults where the settings say nothing; `check_size`: before pictures are resized.

    Raises:
        RequestError: a value that no build serves, or a setting that there is not.
    """
    if unknown := settings.keys() - Settings.__annotations__.keys():
        known = ", ".join(sorted(Settings.__annotations__))
        raise RequestError(f"{', '.join(sorted(unknown))}: no such setting; the settings are {known}")
    embeddings = prompt if isinstance(prompt, Embeddings) else None
    prompts = ("",) * len(embeddings) if embeddings else one_or_more(prompt)
    source, width, height = _source(settings, manifest, check_size)
    positive, negative = _micro_conditioning(settings)
    guidance = one_or_more(_or(settings.get("guidance"), manifest.defaults.guidance))
    return Request(
        prompts=prompts,
        negatives=per_prompt("negative", settings.get("negative"), len(prompts)),
        prompts_2=per_prompt("prompt_2", settings.get("prompt_2"), len(prompts)),
        negatives_2=per_prompt("negative_2", settings.get("negative_2"), len(prompts)),
        clip_skip=settings.get("clip_skip", 0),
        images=settings.get("images", 1),
        steps=_or(settings.get("steps"), manifest.defaults.steps),
        sampler=_or(settings.get("sampler"), manifest.defaults.sampler),
        schedule=_schedule(settings.get("schedule")),
        guidance=guidance * len(prompts) if len(guidance) == 1 else guidance,
        guidance_rescale=settings.get("guidance_rescale", 0.0),
        guidance_interval=settings.get("guidance_interval", (0.0, 1.0)),
        seeds=one_or_more(_or(settings.get("seed"), secrets.randbits(32))),
        width=width,
        height=height,
        source=source,
        denoising_start=settings.get("denoising_start"),
        denoising_end=settings.get("denoising_end"),
        decode=settings.get("decode", True),
        embeddings=embeddings,
        conditioning=positive,
        negative_conditioning=negative,
    )


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value


def _schedule(overrides: Mapping[str, Any] | None) -> tuple[tuple[str, object], ...]:
    """Fields of the scheduler config that the request overrides."""
    if not isinstance(overrides, Mapping | None):
        raise RequestError(f"schedule {overrides!r}: must be a dict of fields, such as {{'use_karras_sigmas': True}}")
    known = [field.name for field in fields(ScheduleConfig)]
    if unknown := [str(name) for name in overrides or {} if name not in known]:
        raise RequestError(f"schedule: {', '.join(unknown)}: no such field; the fields are {', '.join(sorted(known))}")
    return tuple((overrides or {}).items())


def _source(settings: Settings, manifest: Manifest, check_size: CheckSize) -> tuple[Source | None, int, int]:
    """What the request begins with, and its width and height."""
    image, latents, mask = settings.get("image"), settings.get("latents"), settings.get("mask")
    native, scale = manifest.model.native_size, manifest.model.latent_scale
    width, height = settings.get("width"), settings.get("height")
    if image is None and latents is None:
        for name, remedy in NEEDS_A_SOURCE.items():
            if settings.get(name) not in (None, False):
                raise RequestError(f"{name}: given without {remedy}")
        return None, _or(width, native), _or(height, native)
    if image is not None and latents is not None:
        raise RequestError("image, latents: both given; a request starts from one of them")
    strength = settings.get("strength")
    if strength is None:
        strength = STRENGTH if mask is None else 1.0
    if latents is not None:
        if mask is not None:
            raise RequestError("mask: given with latents; a mask belongs to an image")
        values = np.asarray(latents, np.float32)
        if values.ndim != 4 or values.shape[1] != manifest.model.latent_channels:
            channels = manifest.model.latent_channels
            raise RequestError(f"latents: shape {list(values.shape)}; they must be (images, {channels}, height, width)")
        size = (values.shape[3] * scale, values.shape[2] * scale)
        if (_or(width, size[0]), _or(height, size[1])) != size:
            raise RequestError(f"width, height: the latents are those of {size[0]} x {size[1]} pixels; leave both out")
        return Source(latents=values, strength=strength), *size
    assert image is not None
    pixels = read_pictures(image, width, height, check_size)
    height, width = pixels.shape[2:]
    masks = None if mask is None else read_masks(mask, image, width, height)
    return Source(pixels, None, masks, strength, settings.get("paste_back", False)), width, height


def _micro_conditioning(settings: Settings) -> tuple[MicroConditioning, MicroConditioning | None]:
    """Of the prompts, and of the negative rows where they differ."""
    positive = MicroConditioning(
        settings.get("original_size"),
        settings.get("crop", (0, 0)),
        settings.get("target_size"),
        settings.get("aesthetic_score"),
    )
    negative, score = settings.get("negative_conditioning"), settings.get("negative_aesthetic_score")
    if score is not None:
        negative = replace(negative or positive, aesthetic_score=score)
    return positive, negative
