"""A request's noise: random normals exactly as `torch.randn` draws them on a CPU generator, from numpy alone.

Raw bits: MT19937 (Matsumoto & Nishimura, ACM TOMACS 8(1), 1998), seeded by `init_genrand` with the low 32 bits of the
seed; numpy's legacy `RandomState` gives the same stream. Normals: Box & Muller (Ann. Math. Stat. 29, 1958), in the two
layouts of torch's CPU kernel, which the element count selects:

- 16 elements or more: float32 uniforms of 24 bits for every element, then Box-Muller inside blocks of 16, element j of
  the first eight paired with element j + 8. If 16 does not divide the count, the last 16 elements are drawn again.
- fewer than 16: float64 uniforms of 53 bits, two per pair. A pair's sine half is kept for the next such draw; draws of
  the first kind in between neither use nor drop it.

torch's vectorised kernel rounds log, sin and cos differently: the largest difference seen is 5e-7.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.request import Request

_BLOCK = 16
SMALLEST_SINE = 1e-3
"""Vectors at a smaller angle are parallel."""
_SMALLEST_SEED, _LARGEST_SEED = -(2**63), 2**64 - 1


class TorchGenerator:
    """The stream of `torch.Generator().manual_seed(seed)`: successive draws equal successive `torch.randn` calls.

    As in torch, negative seeds count from 2**64 downwards and only the low 32 bits of a seed matter.

    Raises:
        RequestError: the seed is not an integer from -2**63 to 2**64 - 1.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(_low_bits(seed))
        self._kept: float | None = None

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Standard normals of this shape, float32, filled in C order."""
        count = math.prod(shape)
        values = self._blocks(count) if count >= _BLOCK else self._pairs(count)
        return values.reshape(tuple(shape))

    def _blocks(self, count: int) -> NDArray[np.float32]:
        uniforms = self._uniforms(count)
        whole = count - count % _BLOCK
        normals = np.empty(count, np.float32)
        normals[:whole] = _box_muller(uniforms[:whole])
        if whole < count:
            normals[-_BLOCK:] = _box_muller(self._uniforms(_BLOCK))
        return normals

    def _uniforms(self, count: int) -> NDArray[np.float32]:
        raw = self._raw(count) & np.uint32(2**24 - 1)
        return raw.astype(np.float32) * np.float32(2**-24)

    def _pairs(self, count: int) -> NDArray[np.float32]:
        return np.array([self._next_normal() for _ in range(count)], np.float32)

    def _next_normal(self) -> float:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        angle = 2 * math.pi * self._uniform64()
        radius = math.sqrt(-2 * math.log1p(-self._uniform64()))
        self._kept = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform64(self) -> float:
        high, low = (int(word) for word in self._raw(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53

    def _raw(self, count: int) -> NDArray[np.uint32]:
        return self._bits.randint(0, 2**32, size=count, dtype=np.uint32)


class Randomness:
    """The random numbers of a request, from one generator for the batch or one per picture, in a program's order.

    diffusers    everything from the same generators in the order of use: a source's posterior, first noise, steps
    a1111        the same, with a generator per picture; a source is encoded to its mean
    comfyui      first noise from the seed's generators, the noise of steps from those of seed + 1, as where ComfyUI
                 samples on the CPU; a source is encoded to its mean

    A variation turns the first noise towards that of its own seed.
    """

    def __init__(self, request: Request):
        self._count = request.count
        self._program = request.settings["noise"]
        self._strength = request.settings["variation_strength"]
        self._first = [TorchGenerator(seed) for seed in request.seeds]
        self._variation = [TorchGenerator(seed) for seed in request.variation_seeds]
        self._steps = self._first
        if self._program == "comfyui":
            self._steps = [TorchGenerator((seed + 1) % 2**64) for seed in request.seeds]

    def first(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """The first noise (images, *shape), turned by the variation."""
        noise = _draw(self._first, self._count, shape)
        if not self._variation:
            return noise
        other = _draw(self._variation, self._count, shape)
        return np.stack([slerp(self._strength, *pair) for pair in zip(noise, other, strict=True)])

    def step(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """The noise (images, *shape) of the next step that draws."""
        return _draw(self._steps, self._count, shape)

    def posterior(self, shape: Sequence[int], count: int) -> NDArray[np.float32]:
        """The noise of a source's latents; one generator for the batch draws `count`, the number of its pictures."""
        if self._program == "diffusers":
            return _draw(self._first, count, shape)
        return np.zeros((count, *shape), np.float32)


def _draw(generators: Sequence[TorchGenerator], count: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Normals (count, *shape) from one generator; from several, (their number, *shape)."""
    if len(generators) == 1:
        return generators[0].randn((count, *shape))
    return np.concatenate([generator.randn((1, *shape)) for generator in generators])


def slerp(strength: float, noise: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Spherical interpolation of one picture's noise (channels, h, w), column by column along the height.

    Shoemake 1985 (SIGGRAPH, "Animating rotation with quaternion curves"); its vectors are those of AUTOMATIC1111, whose
    noise has no batch axis where its slerp normalises axis 1. Columns that point the same way are mixed linearly.
    """
    lengths = [np.linalg.norm(values, axis=-2, keepdims=True) for values in (noise, other)]
    cosine = (noise / lengths[0] * (other / lengths[1])).sum(axis=-2, keepdims=True)
    angle = np.arccos(np.clip(cosine, -1, 1))
    sine = np.sin(angle)
    parallel = sine < SMALLEST_SINE
    divisor = np.where(parallel, 1, sine)
    shares = [np.where(parallel, share, np.sin(share * angle) / divisor) for share in (1 - strength, strength)]
    return (shares[0] * noise + shares[1] * other).astype(np.float32)


def _low_bits(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise RequestError(f"seed {seed!r}: a seed is an integer from 0 to 2**64 - 1")
    value = int(seed)
    if not _SMALLEST_SEED <= value <= _LARGEST_SEED:
        raise RequestError(f"seed {value}: a seed is an integer from 0 to 2**64 - 1 (or down to -2**63, as in torch)")
    return value & 0xFFFFFFFF


def _box_muller(uniforms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normals from a multiple of 16 uniforms: in each block eight for the radius, then eight for the angle."""
    radial, angular = np.moveaxis(uniforms.reshape(-1, 2, _BLOCK // 2), 1, 0)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - radial))
    angle = np.float32(2 * np.pi) * angular
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
