"""Previews from latents: a map from a latent's channels to red, green and blue, fitted to the checkpoint's own VAE.

Least squares on pairs of latents and decoded pictures give previews at one pixel per latent, without the decoder. The
VAEs of Stable Diffusion are nearly linear in this; small ones are not, and get polynomials of degree 3 if these predict
pictures better that were not fitted.
"""

import itertools
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentrt.runtime import LatentRTError, Pipeline
from latentrt.runtime.arrays import Float32s
from latentrt.runtime.cache import cache_folder, write_atomically

log = logging.getLogger(__name__)

COLOURS = ("red", "white", "blue", "black", "yellow", "green", "grey", "purple", "orange")

PROMPTS = tuple(f"a {one} circle on a {other} background" for one, other in itertools.permutations(COLOURS, 2))[::2]
"""What is drawn to fit a map, until the time is over."""

STEPS = 8
"""Steps of these pictures; their quality does not matter, only that latents and pictures belong together."""

FIT_SECONDS, FEWEST = 20.0, 6
"""How long pictures are drawn for a fit, and how many at least."""

RIDGE = 1e-3
"""Share of the features' mean square that is added to the diagonal, so that few pictures give no wild map."""

DEGREES = (1, 3)

GAIN = 0.9
"""A higher degree must bring the error on other pictures below this share."""


@dataclass(frozen=True, slots=True, eq=False)
class PreviewMap:
    """Weights (features, 3) from polynomials of a latent's channels to colours from 0 to 255.

    `low`, `high` (channels,): the range of the latents that it was fitted on; others are cut off.
    """

    degree: int
    weights: Float32s
    low: Float32s
    high: Float32s

    def pictures(self, latents: Float32s) -> list[Image.Image]:
        """Pictures of latents (n, channels, h, w), one pixel each."""
        return [Image.fromarray(np.clip(self._colours(one).round(), 0, 255).astype(np.uint8)) for one in latents]

    def _colours(self, latents: Float32s) -> NDArray[np.floating[Any]]:
        """Colours (h, w, 3) of latents (channels, h, w)."""
        channels, height, width = latents.shape
        values = np.clip(latents.reshape(channels, -1).T, self.low, self.high)
        return (_features(values, self.degree) @ self.weights).reshape(height, width, 3)

    def error(self, latents: Sequence[Float32s], pictures: Sequence[Image.Image]) -> float:
        """Mean absolute difference from pictures, in levels of 255."""
        pairs = zip(latents, pictures, strict=True)
        return float(
            np.mean([np.abs(np.clip(self._colours(one), 0, 255) - _small(two, one)).mean() for one, two in pairs])
        )

    @classmethod
    def fit(cls, latents: Sequence[Float32s], pictures: Sequence[Image.Image], degree: int = 1) -> "PreviewMap":
        """Least squares over pairs of latents (channels, h, w) and the pictures that they were decoded to."""
        values = np.concatenate([one.reshape(len(one), -1).T for one in latents])
        a = _features(values.astype(np.float64), degree)
        b = np.concatenate([_small(two, one).reshape(-1, 3) for one, two in zip(latents, pictures, strict=True)])
        normal = a.T @ a
        size = len(normal) - 1
        normal[np.arange(size), np.arange(size)] += RIDGE * np.trace(normal[:size, :size]) / size
        weights = np.linalg.solve(normal, a.T @ b).astype(np.float32)
        return cls(degree, weights, values.min(axis=0), values.max(axis=0))

    @classmethod
    def best(cls, latents: Sequence[Float32s], pictures: Sequence[Image.Image]) -> "PreviewMap":
        """The lowest degree whose map is about as good, on every third picture, as a higher one's."""
        others = [number for number in range(len(latents)) if number % 3]
        kept = [number for number in range(len(latents)) if not number % 3]
        errors = {}
        for degree in DEGREES:
            fitted = cls.fit([latents[number] for number in others], [pictures[number] for number in others], degree)
            errors[degree] = fitted.error([latents[number] for number in kept], [pictures[number] for number in kept])
        degree = DEGREES[1] if errors[DEGREES[1]] < GAIN * errors[DEGREES[0]] else DEGREES[0]
        return cls.fit(latents, pictures, degree)


def _features(values: NDArray[Any], degree: int) -> NDArray[Any]:
    """All products of up to `degree` channels (n, channels), and last the 1."""
    channels = values.shape[1]
    products = [
        np.prod(values[:, list(chosen)], axis=1)
        for size in range(1, degree + 1)
        for chosen in itertools.combinations_with_replacement(range(channels), size)
    ]
    return np.stack([*products, np.ones(len(values), values.dtype)], axis=1)


def _small(picture: Image.Image, latents: Float32s) -> NDArray[np.float64]:
    """A picture's mean colours (h, w, 3), one for each latent."""
    return np.asarray(picture.resize((latents.shape[2], latents.shape[1]), Image.Resampling.BOX), np.float64)


def preview_map(pipeline: Pipeline) -> PreviewMap | None:
    """The map of a pipeline's VAE: kept from an earlier start, or fitted now by drawing a few pictures.

    None if the model draws nothing here; its requests then have no previews.
    """
    provenance = pipeline.bundle.manifest.provenance
    key = provenance.vae_sha256 or provenance.weights_sha256
    file = cache_folder() / "previews" / f"{key}.json"
    kept = _read(file)
    if kept is not None:
        return kept
    try:
        fitted = _fitted(pipeline)
        write_atomically(file, json.dumps(_to_json(fitted)).encode())
    except (LatentRTError, OSError, np.linalg.LinAlgError) as error:
        log.warning("%s: no previews: %s", pipeline.bundle.path, error)
        return None
    return fitted


def _to_json(fitted: PreviewMap) -> dict[str, Any]:
    arrays = {name: getattr(fitted, name).tolist() for name in ("weights", "low", "high")}
    return {"degree": fitted.degree, **arrays}


def _read(file: Path) -> PreviewMap | None:
    """A kept map; None if there is none, or it is damaged."""
    try:
        values = json.loads(file.read_bytes())
        arrays = [np.array(values[name], np.float32) for name in ("weights", "low", "high")]
        degree = int(values["degree"])
        fits = _features(arrays[1][None], degree).shape[1] == len(arrays[0]) and arrays[0].shape[1:] == (3,)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return PreviewMap(degree, *arrays) if fits and all(np.isfinite(one).all() for one in arrays) else None


def _fitted(pipeline: Pipeline) -> PreviewMap:
    latents: list[Float32s] = []
    pictures: list[Image.Image] = []
    width, height = _small_size(pipeline)
    started = time.monotonic()
    for seed, prompt in enumerate(PROMPTS):
        if pipeline.bundle.manifest.model.is_inpainting:
            grey, white = Image.new("RGB", (width, height), "grey"), Image.new("L", (width, height), 255)
            result = pipeline.generate(prompt, steps=STEPS, seed=seed, image=grey, mask=white)
        else:
            result = pipeline.generate(prompt, steps=STEPS, seed=seed, width=width, height=height)
        latents += list(result.latents)
        pictures += result.images
        if time.monotonic() - started > FIT_SECONDS and len(pictures) >= FEWEST:
            break
    pipeline.forget_prompts()
    return PreviewMap.best(latents, pictures)


def _small_size(pipeline: Pipeline) -> tuple[int, int]:
    """Width and height of half the native size, or what the build serves nearest to it; of profiles the smallest."""
    limits, native = pipeline.limits, pipeline.bundle.manifest.model.native_size
    if limits.profiles:
        return min(((one.width.min, one.height.min) for one in limits.profiles), key=prod)
    width, height = (limits.bounds(name) for name in ("width", "height"))
    half = native // 16 * 8
    return min(max(half, width[0]), width[2]), min(max(half, height[0]), height[2])
