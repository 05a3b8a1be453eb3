"""The denoising loop: U-Net and sampler graph take turns on shared buffers; the host only counts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.backends import Engine
from latentrt.runtime.noise import TorchGenerator
from latentrt.runtime.prompt import Conditioning
from latentrt.runtime.request import Request
from latentrt.runtime.samplers import SamplerTable

Floats = NDArray[np.float32]
StepProgress = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all)."""


@dataclass(frozen=True, slots=True)
class Noise:
    """All randomness of a request. initial (images, 4, h, w); steps (images, noises, 4, h, w)."""

    initial: Floats
    steps: Floats


def draw_noise(request: Request, table: SamplerTable, latent: tuple[int, int, int]) -> Noise:
    """Draw as diffusers does: one generator for the batch, or one per picture; first the latents, then step by step."""
    count, generators = request.count, [TorchGenerator(seed) for seed in request.seeds]
    shape = (count // len(generators), *latent)

    def draw() -> Floats:
        return np.concatenate([generator.randn(shape) for generator in generators])

    initial = draw()
    if not table.stochastic:
        return Noise(initial, np.zeros((count, 1, *latent), np.float32))
    steps = np.zeros((count, table.step_count, *latent), np.float32)
    for step in np.flatnonzero(table.draws):
        steps[:, step] = draw()
    return Noise(initial, steps)


def guidance_matrix(images: int, scale: float, guided: bool) -> Floats:
    """(images, rows): model output = matrix · U-Net rows; [(1 - g)·I, g·I] is classifier-free guidance."""
    eye = np.eye(images, dtype=np.float32)
    return np.concatenate([(1 - scale) * eye, scale * eye], axis=1) if guided else eye


def denoise(
    unet: Engine,
    sampler: Engine,
    request: Request,
    conditioning: Conditioning,
    table: SamplerTable,
    noise: Noise,
    progress: StepProgress | None = None,
) -> Floats:
    """Run every step; returns the latents (images, 4, h, w) that the sampler ends with."""
    images, branches = request.count, 2 if request.guided else 1
    _, _, height, width = noise.initial.shape
    sizes = {
        "images": images,
        "rows": images * branches,
        "tokens": conditioning.hidden.shape[1],
        "latent_height": height,
        "latent_width": width,
        "steps": table.step_count,
        "history": table.state_count,
        "noises": noise.steps.shape[1],
    }
    inputs = unet.bind(sizes)
    links = {name: inputs[name] for name in ("noise_pred", "sample", "timestep")}
    loop = sampler.bind(sizes, links)

    state = np.zeros((images, table.state_count, *noise.initial.shape[1:]), np.float32)
    state[:, 0] = table.initial_scale * noise.initial
    row_image = np.tile(np.arange(images), branches)
    first = np.einsum("k,bkchw->bchw", table.readout[0], state)
    for name, values in (
        ("encoder_hidden_states", conditioning.hidden),
        ("text_embeds", conditioning.pooled),
        ("time_ids", conditioning.time_ids),
        ("sample", first[row_image]),
        ("timestep", np.full(sizes["rows"], table.timesteps[0])),
    ):
        inputs[name].write(values)
    for name, values in (
        ("state", state),
        ("step", np.zeros(images, np.int64)),
        ("weights", _per_image(table.weights, images)),
        ("readout", _per_image(table.readout, images)),
        ("timesteps", _per_image(table.timesteps, images)),
        ("guidance", guidance_matrix(images, request.guidance, request.guided)),
        ("row_image", row_image),
        ("noise", noise.steps),
    ):
        loop[name].write(values)

    for done in range(1, table.step_count + 1):
        unet.run()
        sampler.run()
        loop["state"].copy_from(loop["next_state"])
        loop["step"].copy_from(loop["next_step"])
        if progress is not None:
            progress(done, table.step_count)
    latents: Floats = loop["state"].numpy()[:, 0]
    return latents


def _per_image(values: NDArray[np.float64], images: int) -> NDArray[np.float64]:
    return np.broadcast_to(values, (images, *values.shape))
