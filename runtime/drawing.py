"""A request that is being drawn: its pictures, each at some step, and how they begin."""

from dataclasses import dataclass, field

import numpy as np

from latentrt.runtime.noise import TorchGenerator
from latentrt.runtime.picture import Floats, Picture
from latentrt.runtime.prompt import Conditioning
from latentrt.runtime.request import Request
from latentrt.runtime.samplers import SamplerTable

LatentShape = tuple[int, int, int]


@dataclass(eq=False, slots=True)
class Drawing:
    """One request's pictures on their way; all are at the same step. `timings`: seconds per stage so far."""

    request: Request
    pictures: list[Picture]
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def steps_left(self) -> int:
        """U-Net evaluations until the pictures can be finished."""
        return self.pictures[0].steps_left


@dataclass(frozen=True, slots=True)
class Noise:
    """All randomness of a request. initial (images, 4, h, w); steps (images, draws, 4, h, w)."""

    initial: Floats
    steps: Floats


def draw_noise(request: Request, table: SamplerTable, latent: LatentShape) -> Noise:
    """Draw as diffusers does: one generator for the batch, or one per picture; first the latents, then step by step."""
    count, generators = request.count, [TorchGenerator(seed) for seed in request.seeds]
    shape = (count // len(generators), *latent)

    def draw() -> Floats:
        return np.concatenate([generator.randn(shape) for generator in generators])

    initial = draw()
    draws = [draw() for _ in range(int(table.draws.sum()))] or [np.zeros_like(initial)]
    return Noise(initial, np.stack(draws, axis=1))


def guidance_rows(scale: float, guided: bool) -> Floats:
    """(r,): model output = numbers · U-Net rows; [1 - g, g] is classifier-free guidance (Ho & Salimans 2022, eq. 6)."""
    return np.array([1 - scale, scale] if guided else [1], np.float32)


def start_pictures(request: Request, conditioning: Conditioning, table: SamplerTable, noise: Noise) -> list[Picture]:
    """The pictures of a request before their first step."""
    rows = len(conditioning.inputs["encoder_hidden_states"]) // request.count
    guidance = np.tile(guidance_rows(request.guidance, guided=rows > 1), (table.step_count, 1))
    state = np.zeros((request.count, table.state_count, *noise.initial.shape[1:]), np.float32)
    state[:, 0] = table.initial_scale * noise.initial
    return [
        Picture(
            inputs={name: values[image :: request.count] for name, values in conditioning.inputs.items()},
            guidance=guidance,
            table=table,
            noise=noise.steps[image],
            state=state[image],
        )
        for image in range(request.count)
    ]
