"""Several pictures as one batch: sizes and inputs of U-Net and sampler, whatever step each picture is at."""

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
"""Values by input port."""

STEP_CAPACITIES = (*(2**exponent for exponent in range(5, 10)), MAX_STEPS)
"""Lengths to which tables are padded: few, so that requests of other step counts run the same captured step."""

HISTORY_CAPACITIES = (2, 4, MAX_HISTORY)
"""State counts to which tables are padded, so that other samplers run the same captured step."""


def lay_out(pictures: Sequence[Picture]) -> tuple[dict[str, int], Arrays]:
    """The sizes of one batch, and all inputs of the U-Net and the sampler; rows of negative prompts come first.

    Raises:
        RequestError: the pictures differ in size, or in the number of tokens of their prompts.
    """
    check_alike(pictures)
    negative = [(image, row) for image, picture in enumerate(pictures) for row in picture.rows[:-1]]
    rows = [*negative, *((image, picture.rows[-1]) for image, picture in enumerate(pictures))]
    _, _, height, width = pictures[0].state.shape
    sizes = {
        "images": len(pictures),
        "rows": len(rows),
        "tokens": pictures[0].inputs["encoder_hidden_states"].shape[1],
        "latent_height": height,
        "latent_width": width,
        "steps": _capacity(STEP_CAPACITIES, max(picture.table.step_count for picture in pictures)),
        "history": _capacity(HISTORY_CAPACITIES, max(picture.table.state_count for picture in pictures)),
        "noises": 1,
    }
    if (draws := max(len(picture.noise) for picture in pictures)) > 1:
        sizes["noises"] = _capacity(STEP_CAPACITIES, draws)
    return sizes, {**_unet_arrays(pictures, rows), **_sampler_arrays(pictures, rows, sizes)}


def check_alike(pictures: Sequence[Picture]) -> None:
    """Raise `RequestError` if pictures cannot be drawn as one batch."""
    first, *others = pictures
    for other in others:
        if other.state.shape[1:] != first.state.shape[1:]:
            raise RequestError(
                f"one batch has one size; its latents would be {first.state.shape[2:]} and {other.state.shape[2:]} "
                "(height, width). Draw these pictures in batches of their own"
            )
        tokens = [picture.inputs["encoder_hidden_states"].shape[1] for picture in (first, other)]
        if tokens[0] != tokens[1]:
            raise RequestError(
                f"one batch has prompts of one length; these have {tokens[0]} and {tokens[1]} tokens. Begin the "
                f"shorter one with tokens={max(tokens)}, or draw these pictures in batches of their own"
            )


def check_table(table: SamplerTable) -> None:
    """Raise `RequestError` if a sampler's table is longer than the sampler graph takes."""
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


def _capacity(capacities: Sequence[int], needed: int) -> int:
    return next(capacity for capacity in capacities if capacity >= needed)


def _unet_arrays(pictures: Sequence[Picture], rows: list[tuple[int, int]]) -> Arrays:
    """The U-Net's inputs: prompts, and the first `sample` and `timestep`."""
    arrays: Arrays = {
        name: np.stack([pictures[image].inputs[name][row] for image, row in rows]) for name in pictures[0].inputs
    }
    samples = [_first_sample(picture) for picture in pictures]
    timesteps = [float(picture.table.timesteps[picture.step]) for picture in pictures]
    arrays["sample"] = np.stack([samples[image] for image, _ in rows])
    arrays["timestep"] = np.array([timesteps[image] for image, _ in rows], np.float32)
    return arrays


def _first_sample(picture: Picture) -> Float32s:
    """The U-Net's `sample` at the picture's step; for later steps the sampler graph computes it."""
    sample = np.einsum("k,kchw->chw", picture.table.readout[picture.step].astype(np.float32), picture.state)
    return sample if picture.extra is None else np.concatenate([sample, picture.extra])


def _sampler_arrays(pictures: Sequence[Picture], rows: list[tuple[int, int]], sizes: dict[str, int]) -> Arrays:
    """The sampler graph's inputs, in the order of its ports."""
    steps, history = sizes["steps"], sizes["history"]
    guidance = np.zeros((len(pictures), len(rows)), np.float32)
    for column, (image, row) in enumerate(rows):
        guidance[image, column] = pictures[image].guidance[pictures[image].step, row]

    def each(value: Callable[[Picture], Any]) -> NDArray[Any]:
        return np.stack([np.asarray(value(picture)) for picture in pictures])

    arrays = {
        "state": each(lambda p: _padded(p.state, history)),
        "step": each(lambda p: p.step),
        "failed": each(lambda p: p.failed),
        "weights": each(lambda p: _padded_weights(p.table.weights, steps, history)),
        "readout": each(lambda p: _padded(p.table.readout, steps + 1, history)),
        "timesteps": each(lambda p: _padded(p.table.timesteps, steps + 1)),
        "guidance": guidance,
        "rescale": each(lambda p: p.rescale),
        "text_row": np.arange(len(rows) - len(pictures), len(rows)),
        "row_image": np.array([image for image, _ in rows]),
        "draws": each(lambda p: _padded(_noise_of_steps(p), steps + 1)),
        "noise": each(lambda p: _padded(p.noise, sizes["noises"])),
        "mask": each(_mask),
        "levels": each(lambda p: _padded(p.original.levels if p.original else np.zeros((1, 2)), steps + 1)),
        "original": each(lambda p: p.original.latents if p.original else np.zeros_like(p.state[0])),
        "original_noise": each(lambda p: p.original.noise if p.original else np.zeros_like(p.state[0])),
    }
    if pictures[0].extra is not None:
        arrays["extra"] = each(lambda p: p.extra)
    return arrays


def _padded(values: NDArray[Any], *lengths: int) -> NDArray[Any]:
    """Pad the first axes with zeros to these lengths."""
    missing = [length - own for length, own in zip(lengths, values.shape, strict=False)]
    return np.pad(values, [(0, more) for more in missing] + [(0, 0)] * (values.ndim - len(lengths)))


def _padded_weights(weights: NDArray[np.float64], steps: int, history: int) -> NDArray[np.float64]:
    """Pad (S + 1, k, k + 2) to (steps + 1, history, history + 2); the columns of model output and noise stay last."""
    own = weights.shape[1]
    padded = np.zeros((steps + 1, history, history + 2))
    padded[: len(weights), :own, :own] = weights[:, :, :own]
    padded[: len(weights), :own, history:] = weights[:, :, own:]
    return padded


def _noise_of_steps(picture: Picture) -> NDArray[np.int64]:
    """The noise tensor (S,) that each step takes, by number; a step that draws none gives it the weight 0."""
    steps: NDArray[np.int64] = np.maximum(np.cumsum(picture.table.draws) - 1, 0)
    return steps


def _mask(picture: Picture) -> Float32s:
    _, _, height, width = picture.state.shape
    return picture.original.mask if picture.original else np.ones((1, height, width), np.float32)
