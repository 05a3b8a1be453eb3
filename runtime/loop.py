"""The denoising loop: U-Net and sampler graph take turns on shared buffers; the host only counts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.backends import Engine
from latentrt.runtime.errors import NumericsError
from latentrt.runtime.noise import TorchGenerator
from latentrt.runtime.parts import bind_parts
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
    prologue: Engine | None = None,
) -> Floats:
    """Run every step; returns the latents (images, 4, h, w) that the sampler ends with.

    With a `prologue`, which runs once, `unet` is the body that reads its outputs.

    Raises:
        NumericsError: a picture's latents became NaN or infinite; names the step.
    """
    sizes = loop_sizes(request, conditioning, table, noise)
    network = unet.bind(sizes) if prologue is None else bind_parts(prologue, unet, sizes)
    links = {name: network[name] for name in ("noise_pred", "sample", "timestep")}
    loop = sampler.bind(sizes, links)
    state = np.zeros((request.count, table.state_count, *noise.initial.shape[1:]), np.float32)
    state[:, 0] = table.initial_scale * noise.initial
    row_image = np.tile(np.arange(sizes["images"]), sizes["rows"] // sizes["images"])
    for name, values in {
        "encoder_hidden_states": conditioning.hidden,
        "text_embeds": conditioning.pooled,
        "time_ids": conditioning.time_ids,
        "sample": np.einsum("k,bkchw->bchw", table.readout[0], state)[row_image],
        "timestep": np.full(sizes["rows"], table.timesteps[0]),
    }.items():
        network[name].write(values)
    for name, values in {"state": state, "row_image": row_image, **sampler_inputs(request, table, noise)}.items():
        loop[name].write(values)

    if prologue is not None:
        prologue.run()
    for done in range(1, table.step_count + 1):
        unet.run()
        sampler.run()
        for name in ("state", "step", "failed"):
            loop[name].copy_from(loop[f"next_{name}"])
        if progress is not None:
            progress(done, table.step_count)
    _check_finite(loop["failed"].numpy(), table.step_count)
    latents: Floats = loop["state"].numpy()[:, 0]
    return latents


def loop_sizes(request: Request, conditioning: Conditioning, table: SamplerTable, noise: Noise) -> dict[str, int]:
    """Every dim of the U-Net and of the sampler for one request."""
    rows, tokens, _ = conditioning.hidden.shape
    images, noises, _, height, width = noise.steps.shape
    return {
        "images": images,
        "rows": rows,
        "tokens": tokens,
        "latent_height": height,
        "latent_width": width,
        "steps": table.step_count,
        "history": table.state_count,
        "noises": noises,
    }


def sampler_inputs(request: Request, table: SamplerTable, noise: Noise) -> dict[str, NDArray[Any]]:
    """What the sampler graph reads and the host decides once: every image starts at step 0 with the same tables."""
    images = request.count

    def per_image(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.broadcast_to(values, (images, *values.shape))

    return {
        "step": np.zeros(images, np.int64),
        "failed": np.full(images, -1, np.int64),
        "weights": per_image(table.weights),
        "readout": per_image(table.readout),
        "timesteps": per_image(table.timesteps),
        "guidance": guidance_matrix(images, request.guidance, request.guided),
        "noise": noise.steps,
    }


def _check_finite(failed: NDArray[np.int64], steps: int) -> None:
    """Raise `NumericsError` for the first image that the sampler graph marked as failed."""
    for image in np.flatnonzero(failed >= 0)[:1]:
        raise NumericsError(
            f"unet: picture {image + 1} holds NaN or infinity from step {failed[image] + 1} of {steps} on. "
            "The weights overflow in this precision; export with fp32"
        )
