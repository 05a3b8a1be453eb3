"""Random inputs for a component, of the magnitudes that it meets in use."""

from collections.abc import Mapping

import numpy as np
import torch

from latentrt.runtime.bundle.specs import ComponentSpec, Port

MAX_TIMESTEP = 999
MAX_TIME_ID = 1024
CLIP_SKIPS = 3
"""Successive texts skip 0, 1 and 2 layers, then 0 again."""


def sample_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], vocabulary: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Make one tensor per input port, float32 if the port is floating: port name -> tensor.

    `vocabulary`: number of token ids; each row of ids ends with the highest, as with an end token.
    """
    random = np.random.default_rng(seed)
    return {port.name: torch.from_numpy(_sample(port, port.shape(sizes), vocabulary, random)) for port in spec.inputs}


def _sample(
    port: Port, shape: tuple[int, ...], vocabulary: int, random: np.random.Generator
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    if port.name == "clip_skip":
        return np.arange(shape[0]) % CLIP_SKIPS
    if port.dtype == "int64":
        ids = random.integers(0, vocabulary - 1, shape)
        ids[..., -1] = vocabulary - 1
        return ids
    if port.name == "timestep":
        return random.uniform(0, MAX_TIMESTEP, shape).astype(np.float32)
    if port.name == "time_ids":
        return random.integers(0, MAX_TIME_ID, shape).astype(np.float32)
    if port.name == "image":
        return random.uniform(-1, 1, shape).astype(np.float32)
    return random.standard_normal(shape).astype(np.float32)
