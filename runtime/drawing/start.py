"""The start of a drawing: first latents, all noise, and what a mask keeps."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.drawing.guidance import guidance_rows
from latentrt.runtime.drawing.inpainting import Original
from latentrt.runtime.drawing.noise import Randomness
from latentrt.runtime.drawing.picture import Picture
from latentrt.runtime.request.images import latent_mask
from latentrt.runtime.request.request import Request
from latentrt.runtime.request.source import Source
from latentrt.runtime.samplers import SamplerTable
from latentrt.runtime.text.conditioning import Conditioning
from latentrt.runtime.text.prompt_plan import plan_request

Encode = Callable[[Float32s], tuple[Float32s, Float32s]]
"""The VAE's encoder: from pixels (n, 3, height, width) to mean and standard deviation of latents (n, 4, h, w)."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the pictures of a request start from.

    latents (images, 4, h, w). originals: what a mask keeps, one per picture. extra (images, 5, h, w): the mask and the
    masked image's latents, for an inpainting U-Net.
    """

    latents: Float32s
    originals: list[Original] | None = None
    extra: Float32s | None = None


def start_pictures(
    request: Request, conditioning: Callable[[], Conditioning], table: SamplerTable, model: Model, encode: Encode
) -> list[Picture]:
    """A request's pictures before their first step, with all the noise that their steps will take.

    `conditioning` is asked last: while the host draws noise, the device encodes the prompts.
    """
    plan = plan_request(request)
    randomness = Randomness(request)
    latent = (model.latent_channels, request.height // model.latent_scale, request.width // model.latent_scale)
    start = _start(request, table, model, encode, randomness, latent)
    draws = [randomness.step(latent) for _ in range(int(table.draws.sum()))] or [np.zeros_like(start.latents)]
    noise = np.stack(draws, axis=1)
    state = np.zeros((request.count, table.state_count, *latent), np.float32)
    state[:, 0] = start.latents
    inputs = conditioning()
    return [
        Picture(
            inputs={name: values[image :: request.count] for name, values in inputs.items()},
            guidance=guidance_rows(request, table, plan, image // request.images),
            table=table,
            noise=noise[image],
            state=state[image],
            rescale=request.settings["guidance_rescale"],
            original=None if start.originals is None else start.originals[image],
            extra=None if start.extra is None else start.extra[image],
        )
        for image in range(request.count)
    ]


def _start(
    request: Request,
    table: SamplerTable,
    model: Model,
    encode: Encode,
    randomness: Randomness,
    latent: tuple[int, int, int],
) -> Start:
    """The start from noise alone, or from a source and noise as the strength says. Draws in diffusers' order."""
    source = request.source
    if source is None:
        return Start(np.float32(table.initial_scale) * randomness.first(latent))
    starts_from_noise = source.mask is not None and source.strength == 1
    original = None
    if not (starts_from_noise and model.is_inpainting):
        original = _source_latents(source, source.pixels, model, encode, randomness, request.count)
    if request.settings["denoising_start"] is not None:
        assert original is not None
        return Start(original)
    noise = randomness.first(latent)
    if starts_from_noise or original is None:
        latents = np.float32(table.initial_scale) * noise
    else:
        signal, rate = table.original_levels[0].astype(np.float32)
        latents = signal * original + rate * noise
    if source.mask is None or source.pixels is None:
        return Start(latents)
    mask = latent_mask(source.mask, model.latent_scale)
    # Encoded even where it is not used, as in diffusers, so that later draws are the same.
    masked = _source_latents(source, source.pixels * (source.mask < 0.5), model, encode, randomness, request.count)
    masks = np.broadcast_to(mask, (request.count, *mask.shape[1:]))
    if model.is_inpainting:
        return Start(latents, extra=np.concatenate([masks, masked], axis=1))
    assert original is not None
    levels = table.original_levels[1:].astype(np.float32)
    kept = zip(original, noise, masks, strict=True)
    return Start(latents, [Original(*arrays, levels) for arrays in kept])


def _source_latents(
    source: Source, pixels: Float32s | None, model: Model, encode: Encode, randomness: Randomness, count: int
) -> Float32s:
    """The source's latents (images, 4, h, w): given, or drawn from the distribution that its pixels are encoded to."""
    if pixels is None:
        assert source.latents is not None
        return np.broadcast_to(source.latents, (count, *source.latents.shape[1:]))
    mean, deviation = encode(pixels)
    latents = model.from_vae(mean + deviation * randomness.posterior(mean.shape[1:], len(mean)))
    return np.broadcast_to(latents, (count, *latents.shape[1:]))
