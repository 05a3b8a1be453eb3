"""From embeddings to the inputs of the U-Net that stay the same over all steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""Defaults of SDXL's refiner, as in diffusers."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The U-Net's inputs that stay the same over all steps; with guidance, the negative rows come first.

    inputs: every port of `unet` but `sample` and `timestep` -> values (rows, ...).
    """

    inputs: Mapping[str, NDArray[Any]]


def guidance_embedding(guidance: float, width: int) -> NDArray[np.float32]:
    """(width,): the guidance scale as the sines and cosines that a distilled U-Net reads (Meng et al. 2023, section 3).

    Of 1000 * (guidance - 1), as diffusers trains and calls such U-Nets; an odd width ends with a zero.
    """
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1)))
    angles = np.float32(guidance - 1) * np.float32(1000) * frequencies
    embedding = np.zeros(width, np.float32)
    embedding[: 2 * half] = np.concatenate([np.sin(angles), np.cos(angles)])
    return embedding
