"""Every task of every family, as latentrt draws it and as the diffusers pipeline of that family does.

`cases` lists what is compared; `Models` holds the pipelines of both, and `difference` runs a case through them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.checks.bundle_verification import diffusers_pictures, diffusers_pipeline
from latentrt.runtime import Ensemble, Pipeline, generate_large
from latentrt.runtime.samplers import SAMPLERS

TOLERANCE = 2
"""Of 255: fp32 rounding differs by summation order, grows over the steps, and flips the rounding to bytes."""

PROMPT, NEGATIVE = "a photo of an astronaut riding a horse", "blurry, low quality"
SEED = 5
HANDOVER, SCALE, REFINE_STRENGTH = 0.6, 1.25, 0.5

OF_PROMPTS = ("text to image", "high-resolution fix")
OF_PICTURES = ("image to image", "inpainting, 4 channels")
OF_BOTH_MODELS = ("base + refiner, ensemble", "base + refiner, two passes")
TASKS = ("text to image", *OF_PICTURES, "inpainting, 9 channels", *OF_BOTH_MODELS, "high-resolution fix")

GRID = ("euler", "euler_a", "dpmpp_2m", "ddim", "heun", "dpmpp_2m_sde", "unipc", "deis", "pndm")
SCHEDULES: Mapping[str, Mapping[str, Any]] = {"pndm": {"skip_prk_steps": True}}
"""Schedule fields that a sampler needs: latentrt has no Runge-Kutta steps."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: the checkpoint, what it is asked for, and how it is asked."""

    family: str
    tasks: tuple[str, ...] = (*OF_PROMPTS, *OF_PICTURES)
    samplers: tuple[str, ...] = GRID
    steps: int = 8
    guidance: float = 4.0
    schedule: Mapping[str, Any] | None = None


ROWS: Mapping[str, Row] = {
    "SD 1.5": Row("sd15"),
    "SD 1.5, inpainting": Row("sd15-inpaint", ("inpainting, 9 channels",)),
    "SD 1.5, LCM": Row("sd15-lcm", samplers=("lcm",)),
    "SD 2, epsilon": Row("sd2"),
    "SD 2, v": Row("sd2-v"),
    "SDXL base": Row("sdxl", (*OF_PROMPTS, *OF_PICTURES, *OF_BOTH_MODELS)),
    "SDXL, inpainting": Row("sdxl-inpaint", ("inpainting, 9 channels",)),
    "SDXL Turbo, Lightning": Row(
        "sdxl",
        samplers=("euler", "euler_a", "lcm"),
        steps=4,
        guidance=1.0,
        schedule={"timestep_spacing": "trailing"},
    ),
    "SDXL refiner": Row("sdxl-refiner", ("text to image", *OF_PICTURES)),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One request; `strength` is that of image to image and inpainting."""

    row: str
    task: str
    sampler: str
    strength: float | None = None

    @property
    def family(self) -> str:
        """Family of the checkpoint that is drawn with; a refiner may follow."""
        return ROWS[self.row].family

    def __str__(self) -> str:
        return f"{self.row}, {self.task}, {self.sampler}" + (f", {self.strength}" if self.strength else "")


def cases() -> Iterator[Case]:
    """All cases, in the order of the table."""
    for name, row in ROWS.items():
        for task in TASKS:
            strengths = (0.5, 1.0) if task in OF_PICTURES or task.startswith("inpainting") else (None,)
            for sampler in row.samplers if task in row.tasks else ():
                yield from (Case(name, task, sampler, strength) for strength in strengths)


DIFFERENT = frozenset({Case("SDXL, inpainting", "inpainting, 9 channels", "heun", 0.5)})
"""Rounding in the encoder, which this network amplifies: docs/parity.md has the figures."""


class Models:
    """Both pipelines of every family, opened when first asked for. `made`: family -> checkpoint and bundle."""

    def __init__(self, made: Callable[[str], tuple[Path, Path]]):
        self._made = made
        self._opened: dict[str, Pipeline] = {}
        self._parts: dict[str, Any] = {}

    def ours(self, family: str) -> Pipeline:
        """latentrt's pipeline."""
        if family not in self._opened:
            self._opened[family] = Pipeline.load(self._made(family)[1], "onnxruntime", "cpu")
        return self._opened[family]

    def theirs(self, family: str) -> Any:
        """diffusers' pipeline for text, whose parts the other ones share."""
        if family not in self._parts:
            self._parts[family] = diffusers_pipeline(Checkpoint.open(self._made(family)[0]))
        return self._parts[family]

    def peer(self, family: str, kind: str, scheduler: Any = None) -> DiffusionPipeline:
        """diffusers' pipeline of a kind, `Img2Img` or `Inpaint`, for a family."""
        stem = "StableDiffusionXL" if family.startswith("sdxl") else "StableDiffusion"
        parts = self.theirs(family).components | {"scheduler": scheduler or self.theirs(family).scheduler}
        model = self.ours(family).bundle.manifest.model
        facts = {
            "force_zeros_for_empty_prompt": model.zero_negative,
            "requires_aesthetics_score": "aesthetic_score" in model.time_ids,
            "requires_safety_checker": False,
            "add_watermarker": False,
        }
        kind_ = getattr(diffusers, f"{stem}{kind}Pipeline")
        names = signature(kind_.__init__).parameters
        pipe = kind_(**{name: value for name, value in (parts | facts).items() if name in names})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def scheduler(self, family: str, sampler: str, schedule: Mapping[str, Any]) -> Any:
        """diffusers' scheduler for a sampler, with the checkpoint's config."""
        known = SAMPLERS[sampler]
        algorithm = {"algorithm_type": "sde-dpmsolver++"} if known.sde else {}
        config = {**self.theirs(family).scheduler.config, **schedule, **algorithm}
        return getattr(diffusers, known.scheduler).from_config(config)

    def close(self) -> None:
        """Close latentrt's pipelines."""
        for pipe in self._opened.values():
            pipe.close()


@dataclass(frozen=True)
class Drawn:
    """One case, ready to be drawn by both."""

    models: Models
    case: Case

    @property
    def row(self) -> Row:
        return ROWS[self.case.row]

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height: not square, near the native size."""
        native = self.models.ours(self.row.family).bundle.manifest.model.native_size
        return native + 16, native

    @cached_property
    def schedule(self) -> dict[str, Any]:
        return {**(self.row.schedule or {}), **SCHEDULES.get(self.case.sampler, {})}

    def our_settings(self) -> dict[str, Any]:
        return {
            "negative": NEGATIVE,
            "steps": self.row.steps,
            "guidance": self.row.guidance,
            "seed": SEED,
            "sampler": self.case.sampler,
            "schedule": self.schedule,
        }

    def their_settings(self) -> dict[str, Any]:
        eta = SAMPLERS[self.case.sampler].defaults.get("eta", 0.0)
        return {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "num_inference_steps": self.row.steps,
            "guidance_scale": self.row.guidance,
            "generator": torch.Generator().manual_seed(SEED),
        } | ({"eta": eta} if eta else {})

    def peer(self, kind: str, family: str | None = None) -> Any:
        family = family or self.row.family
        return self.models.peer(family, kind, self.models.scheduler(family, self.case.sampler, self.schedule))

    def ours(self) -> list[Image.Image]:
        pipe, task, settings = self.models.ours(self.row.family), self.case.task, self.our_settings()
        width, height = self.size
        if task == "text to image":
            return pipe.generate(PROMPT, width=width, height=height, **settings).images
        if task == "high-resolution fix":
            return generate_large(pipe, PROMPT, width=width, height=height, scale=SCALE, **settings).images
        if task in OF_BOTH_MODELS:
            both, size = Ensemble(pipe, self.models.ours("sdxl-refiner")), {"width": width, "height": height}
            if task == "base + refiner, ensemble":
                return both.generate(PROMPT, handover=HANDOVER, **size, **settings).images
            return both.refine(PROMPT, strength=REFINE_STRENGTH, **size, **settings).images
        masks = {"mask": mask(*self.size)} if task.startswith("inpainting") else {}
        start = picture(*self.size)
        return pipe.generate(PROMPT, image=start, strength=self.case.strength, **masks, **settings).images

    def theirs(self) -> list[Image.Image]:
        task, settings = self.case.task, self.their_settings()
        width, height = self.size
        if task == "image to image":
            return self.peer("Img2Img")(image=picture(*self.size), strength=self.case.strength, **settings).images
        if task.startswith("inpainting"):
            start = {"image": picture(*self.size), "mask_image": mask(*self.size), "strength": self.case.strength}
            return self.peer("Inpaint")(width=width, height=height, **start, **settings).images
        base = self.peer("Img2Img" if self.row.family == "sdxl-refiner" else "")
        if task == "text to image":
            settings.pop("generator")
            steps = settings.pop("num_inference_steps")
            return diffusers_pictures(base, width=width, height=height, steps=steps, seed=SEED, **settings)
        if task == "high-resolution fix":
            # latentrt's own: rounding turns some bytes of the small picture, and the second pass makes more of them.
            ours = self.models.ours(self.row.family)
            small = ours.generate(PROMPT, width=width, height=height, **self.our_settings()).images
            size = tuple(round(length * SCALE / 8) * 8 for length in self.size)
            large = [image.resize(size, Image.Resampling.LANCZOS) for image in small]
            return self.peer("Img2Img")(image=large, strength=0.5, **self.their_settings()).images
        ends = {"denoising_end": HANDOVER} if task == "base + refiner, ensemble" else {}
        latents = base(width=width, height=height, output_type="latent", **ends, **settings).images
        starts = {"denoising_start": HANDOVER} if ends else {"strength": REFINE_STRENGTH}
        return self.peer("Img2Img", "sdxl-refiner")(image=latents, **starts, **self.their_settings()).images


def difference(models: Models, case: Case) -> int:
    """The largest difference of any pixel, of 255."""
    drawn = Drawn(models, case)
    ours, theirs = stack(drawn.ours()), stack(drawn.theirs())
    assert ours.std() > 5, "a flat picture would agree with anything"
    return int(np.abs(ours - theirs).max())


def stack(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def picture(width: int, height: int) -> Image.Image:
    """Two ramps and a disc."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    disc = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1
    return Image.fromarray((np.stack([x, y, disc], -1) * 255).astype(np.uint8))


def mask(width: int, height: int) -> Image.Image:
    """A rectangle whose edges are no multiples of 8."""
    light = np.zeros((height, width), np.uint8)
    light[height // 4 : height // 4 + height // 2 - 3, width // 3 : width // 3 + width // 2] = 255
    return Image.fromarray(light)
