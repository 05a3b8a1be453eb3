"""Every family from checkpoint to picture, against diffusers' pipeline of that family; and their U-Nets as engines."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from bundles import edit_json
from checkpoints import write_checkpoint
from families import FAMILIES

from latentrt.engine.base import Job
from latentrt.engine.tensorrt import TensorRTBuilder
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.component import ComponentExporter
from latentrt.export.modules import MODULES
from latentrt.export.verification import diffusers_pictures, diffusers_pipeline
from latentrt.runtime import MicroConditioning, Pipeline
from latentrt.runtime.bundle import MANIFEST, Bundle
from latentrt.runtime.components import component_specs
from latentrt.runtime.model import Limits

TOLERANCE = 2
"""Of 255, as in test_pipeline_parity.py."""

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "unipc": "UniPCMultistepScheduler",
}

DEFAULT_RUN = ("sd2-v", "sdxl-refiner")
DRAWN = [
    name if name in DEFAULT_RUN else pytest.param(name, marks=pytest.mark.slow)
    for name in FAMILIES
    if not name.endswith("inpaint") and name != "sdxl"  # test_pipeline_parity.py draws sdxl
]

PROMPT = "a photo of an astronaut riding a horse"
REQUESTS: tuple[dict[str, Any], ...] = (
    {},
    {"sampler": "euler", "steps": 7, "guidance": 3.0, "negative": "blurry, low quality"},
    {"sampler": "ddim", "steps": 10, "guidance": 1.0, "width": 72, "height": 56},
    {"sampler": "dpmpp_2m", "steps": 6, "guidance": 7.5, "images": 3},
    {"sampler": "lcm", "steps": 4, "negative": ""},
)
"""What is not named is the bundle's default."""

Both = tuple[Pipeline, Any]


@pytest.fixture(scope="module", params=DRAWN)
def both(request: pytest.FixtureRequest, family: Callable[[str], tuple[Path, Path]]) -> Iterator[Both]:
    """Our pipeline and diffusers' for one family."""
    checkpoint, bundle = family(request.param)
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipeline:
        yield pipeline, diffusers_pipeline(Checkpoint.open(checkpoint))


def pixels(images: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def draw(both: Both, ours: dict[str, Any], theirs: dict[str, Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The same request drawn by latentrt and by diffusers; `theirs` holds what diffusers calls otherwise."""
    pipeline, peer = both
    result = pipeline.generate(PROMPT, seed=11, **ours)
    request = result.request
    peer.scheduler = getattr(diffusers, SCHEDULERS[request.sampler]).from_config(peer.scheduler.config)
    wanted = diffusers_pictures(
        peer,
        width=request.width,
        height=request.height,
        steps=request.steps,
        seed=11,
        prompt=PROMPT,
        negative_prompt=request.negatives[0],
        guidance_scale=request.guidance,
        num_images_per_prompt=request.images,
        **(theirs or {}),
    )
    return pixels(result.images), pixels(wanted)


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_pictures_equal_diffusers(both: Both, request_: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found, wanted = draw(both, request_)
    assert found.std() > 5, "a flat picture would agree with anything"
    with capsys.disabled():
        print(f" {both[0].bundle.path.parent.name} {request_}: {np.abs(found - wanted).max()}/255")
    assert np.abs(found - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip(both: Both, clip_skip: int) -> None:
    pipeline, peer = both
    if clip_skip > pipeline.bundle.manifest.model.max_clip_skip:
        pytest.skip("a three-layer encoder whose last layer is never read has one layer to skip")
    # transformers 5 has no inner text_model any more, which diffusers' code for SD asks for.
    for encoder in filter(None, (getattr(peer, name, None) for name in ("text_encoder", "text_encoder_2"))):
        object.__setattr__(encoder, "text_model", getattr(encoder, "text_model", encoder))
    found, wanted = draw(both, {"steps": 4, "clip_skip": clip_skip}, {"clip_skip": clip_skip})
    assert np.abs(found - wanted).max() <= TOLERANCE
    assert np.abs(found - draw(both, {"steps": 4})[0]).max() > 10 * TOLERANCE
