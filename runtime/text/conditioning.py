"""From text embeddings to the inputs of the U-Net that stay the same over all steps."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle.model import Model
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.micro_conditioning import AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE
from latentrt.runtime.request.request import Request

Conditioning = Mapping[str, NDArray[Any]]
"""Every input port of the U-Net except `sample` and `timestep` -> its values (rows, ...); negative rows come first."""


def condition(request: Request, embeddings: Embeddings, model: Model) -> Conditioning:
    """Lay out embeddings, time ids and guidance embeddings as rows of the U-Net, one set of rows per picture.

    Each row of negative and then of positive texts, `images` times for every prompt; prompts may be several texts.
    """
    texts = len(embeddings.hidden) // len(request.prompts)
    negative_texts = (
        len(embeddings.negative_hidden) // len(request.prompts) if embeddings.negative_hidden is not None else 1
    )

    def rows(negative: NDArray[Any] | None, positive: NDArray[Any] | None) -> NDArray[Any]:
        parts = [part for part in (negative if request.guided else None, positive) if part is not None]
        return np.concatenate(parts).repeat(request.images, axis=0)

    inputs: dict[str, NDArray[Any]] = {"encoder_hidden_states": rows(embeddings.negative_hidden, embeddings.hidden)}
    if model.time_ids:
        inputs["text_embeds"] = rows(embeddings.negative_pooled, embeddings.pooled)
        inputs["time_ids"] = time_ids(request, model, negative_texts, texts)
    if width := model.guidance_embedding:
        scales = [guidance_embedding(scale, width) for scale in request.guidance]
        inputs["timestep_cond"] = np.tile(np.repeat(scales, request.images, axis=0), (texts, 1))
    return inputs


def time_ids(request: Request, model: Model, negative_texts: int = 1, texts: int = 1) -> NDArray[np.float32]:
    """SDXL's time ids (rows, ids), those of the negative rows first; so many rows of each kind per picture."""
    positive = request.conditioning
    # The score describes the picture that is wanted, so the negative rows do not share it.
    negative = request.negative_conditioning or replace(positive, aesthetic_score=None)
    branches = [(negative, NEGATIVE_AESTHETIC_SCORE)] if request.guided else []
    rows = [
        branch.time_ids(model.time_ids, request.height, request.width, score)
        for branch, score in (*branches, (positive, AESTHETIC_SCORE))
    ]
    counts = [negative_texts * request.count] * request.guided + [texts * request.count]
    return np.repeat(np.array(rows, np.float32), counts, axis=0)


def guidance_embedding(guidance: float, width: int) -> NDArray[np.float32]:
    """The guidance scale as sines and cosines (width,), which a distilled U-Net reads (Meng et al. 2023, section 3).

    The angles are multiples of 1000 * (guidance - 1), as diffusers trains and calls such U-Nets; an odd width ends in
    a zero.
    """
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1)))
    angles = np.float32(guidance - 1) * np.float32(1000) * frequencies
    embedding = np.zeros(width, np.float32)
    embedding[: 2 * half] = np.concatenate([np.sin(angles), np.cos(angles)])
    return embedding
