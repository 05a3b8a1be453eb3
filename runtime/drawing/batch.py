"""Several pictures as one batch: the sizes and the inputs of U-Net and sampler, whatever step each picture is at."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.bundle.components import MAX_HISTORY, MAX_NOISES, MAX_STEPS
from latentrt.runtime.drawing.picture import Picture
from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers import SamplerTable

Arrays = dict[str, NDArray[Any]]

STEP_CAPACITIES = (*(2**exponent for exponent in range(5, 10)), MAX_STEPS)
HISTORY_CAPACITIES = (2, 4, MAX_HISTORY)
"""Lengths to which tables are padded: few, so that requests with other steps or samplers run the same captured step."""


def lay_out(pictures: Sequence[Picture]) -> tuple[dict[str, int], Arrays]:
    """Every dim, and every input port of the U-Net and the sampler, for one batch; rows of negative prompts come first.

    Raises:
        RequestError: the pictures differ in size, or in how many tokens their prompts have.
    """
    check_alike(pictures)
    negative = [(image, row) for image, one in enumerate(pictures) for row in one.rows[:-1]]
    rows = [*negative, *((image, one.rows[-1]) for image, one in enumerate(pictures))]
    _, _, height, width = pictures[0].state.shape
    sizes = {
        "images": len(pictures),
        "rows": len(rows),
        "tokens": pictures[0].inputs["encoder_hidden_states"].shape[1],
        "latent_height": height,
        "latent_width": width,
        "steps": _capacity(STEP_CAPACITIES, (one.table.step_count for one in pictures)),
        "history": _capacity(HISTORY_CAPACITIES, (one.table.state_count for one in pictures)),
        "noises": 1,
    }
    if any(len(one.noise) > 1 for one in pictures):
        sizes["noises"] = _capacity(STEP_CAPACITIES, (len(one.noise) for one in pictures))
    return sizes, {**_network_inputs(pictures, rows), **_sampler_inputs(pictures, rows, sizes)}


def check_alike(pictures: Sequence[Picture]) -> None:
    """Raise `RequestError` where pictures cannot be drawn as one batch."""
    first, *others = pictures
    for one in others:
        if one.state.shape[1:] != first.state.shape[1:]:
            raise RequestError(
                f"one batch has one size; its latents would be {first.state.shape[2:]} and {one.state.shape[2:]} "
                "(height, width). Draw these pictures in batches of their own"
            )
        tokens = [picture.inputs["encoder_hidden_states"].shape[1] for picture in (first, one)]
        if tokens[0] != tokens[1]:
            raise RequestError(
                f"one batch has prompts of one length; these have {tokens[0]} and {tokens[1]} tokens. Begin the "
                f"shorter one with tokens={max(tokens)}, or draw these pictures in batches of their own"
            )


def check_table(table: SamplerTable) -> None:
    """Raise `RequestError` where a sampler's table is longer than the sampler graph takes."""
    if table.step_count > MAX_STEPS:
        raise RequestError(
            f"{table.sampler}: {table.step_count} evaluations of the U-Net; at most {MAX_STEPS} are served. Ask for "
            "fewer steps"
        )
    if (draws := int(table.draws.sum())) > MAX_NOISES:
        raise RequestError(
            f"{table.sampler}: draws noise on {draws} steps; at most {MAX_NOISES} such steps are served. Ask for fewer "
            "steps, or for a sampler that draws none"
        )


def _capacity(capacities: tuple[int, ...], needed: Any) -> int:
    most = max(needed)
    return next(capacity for capacity in capacities if capacity >= most)


def _network_inputs(pictures: Sequence[Picture], rows: list[tuple[int, int]]) -> Arrays:
    """What the U-Net reads: the prompts, and its first `sample` and `timestep`."""
    arrays: Arrays = {
        name: np.stack([pictures[image].inputs[name][row] for image, row in rows]) for name in pictures[0].inputs
    }
    samples = [_first_sample(one) for one in pictures]
    arrays["sample"] = np.stack([samples[image] for image, _ in rows])
    arrays["timestep"] = np.array([_timestep(pictures[image]) for image, _ in rows], np.float32)
    return arrays


def _first_sample(picture: Picture) -> Float32s:
    """The U-Net's input at the picture's step, as the sampler graph computes it for the following ones."""
    sample = np.einsum("k,kchw->chw", picture.table.readout[picture.step].astype(np.float32), picture.state)
    return sample if picture.extra is None else np.concatenate([sample, picture.extra])


def _timestep(picture: Picture) -> float:
    return float(picture.table.timesteps[picture.step])


def _sampler_inputs(pictures: Sequence[Picture], rows: list[tuple[int, int]], sizes: dict[str, int]) -> Arrays:
    """What the sampler graph reads, in the order of its ports."""
    steps, history = sizes["steps"], sizes["history"]
    guidance = np.zeros((len(pictures), len(rows)), np.float32)
    for column, (image, row) in enumerate(rows):
        guidance[image, column] = pictures[image].guidance[pictures[image].step, row]

    def each(value: Callable[[Picture], Any]) -> NDArray[Any]:
        return np.stack([np.asarray(value(one)) for one in pictures])

    arrays = {
        "state": each(lambda one: _padded(one.state, history)),
        "step": each(lambda one: one.step),
        "failed": each(lambda one: one.failed),
        "weights": each(lambda one: _padded_weights(one.table.weights, steps, history)),
        "readout": each(lambda one: _padded(one.table.readout, steps + 1, history)),
        "timesteps": each(lambda one: _padded(one.table.timesteps, steps + 1)),
        "guidance": guidance,
        "rescale": each(lambda one: one.rescale),
        "text_row": np.arange(len(rows) - len(pictures), len(rows)),
        "row_image": np.array([image for image, _ in rows]),
        "draws": each(lambda one: _padded(_noise_of_steps(one), steps + 1)),
        "noise": each(lambda one: _padded(one.noise, sizes["noises"])),
        "mask": each(_mask),
        "levels": each(lambda one: _padded(one.original.levels if one.original else np.zeros((1, 2)), steps + 1)),
        "original": each(lambda one: one.original.latents if one.original else np.zeros_like(one.state[0])),
        "original_noise": each(lambda one: one.original.noise if one.original else np.zeros_like(one.state[0])),
    }
    if pictures[0].extra is not None:
        arrays["extra"] = each(lambda one: one.extra)
    return arrays


def _padded(values: NDArray[Any], *lengths: int) -> NDArray[Any]:
    """Zeros behind the values, along the first axes."""
    missing = [length - found for length, found in zip(lengths, values.shape, strict=False)]
    return np.pad(values, [(0, more) for more in missing] + [(0, 0)] * (values.ndim - len(lengths)))


def _padded_weights(weights: NDArray[np.float64], steps: int, history: int) -> NDArray[np.float64]:
    """(S + 1, k, k + 2) -> (steps + 1, history, history + 2): the columns of model output and noise stay the last."""
    own = weights.shape[1]
    padded = np.zeros((steps + 1, history, history + 2))
    padded[: len(weights), :own, :own] = weights[:, :, :own]
    padded[: len(weights), :own, history:] = weights[:, :, own:]
    return padded


def _noise_of_steps(picture: Picture) -> NDArray[np.int64]:
    """(S,): which of the picture's noise tensors each step takes; a step that draws none has weight 0 for it."""
    steps: NDArray[np.int64] = np.maximum(np.cumsum(picture.table.draws) - 1, 0)
    return steps


def _mask(picture: Picture) -> Float32s:
    _, _, height, width = picture.state.shape
    return picture.original.mask if picture.original else np.ones((1, height, width), np.float32)
