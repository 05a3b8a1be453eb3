"""Measures how many held-out captions are drawn correctly: `python -m latentrt.demo.evaluate [--bundle BUNDLE] ...`.

`evaluate` judges any callable that draws. The command draws with diffusers and, if a bundle is given, with latentrt,
and then reports how often both get the same marks.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from rich.progress import track

from latentrt.demo import CHECKPOINT
from latentrt.demo.captions import plain_caption
from latentrt.demo.scenes import Scene, all_single_scenes
from latentrt.demo.score import Marks, mark
from latentrt.demo.sheet import contact_sheet
from latentrt.runtime.pipeline import Pipeline

__all__ = ["Draw", "diffusers_draw", "evaluate", "held_out_scenes", "latentrt_draw", "shares"]

Pictures = list[npt.NDArray[np.uint8]]
Draw = Callable[[Sequence[str], Sequence[int]], Pictures]
"""Draws RGB pictures from captions and a seed for each."""

BATCH = 20


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """The first `count` held-out scenes with one shape, in an order determined by the seed."""
    scenes = [scene for scene in all_single_scenes() if scene.held_out]
    Random(seed).shuffle(scenes)
    return scenes[:count]


def evaluate(draw: Draw, scenes: Sequence[Scene]) -> tuple[list[Marks], Pictures]:
    """Draw each scene from its plain caption, with its index as the seed, and mark the pictures."""
    pictures: Pictures = []
    for start in track(range(0, len(scenes), BATCH), description="drawing"):
        chosen = scenes[start : start + BATCH]
        seeds = range(start, start + len(chosen))
        pictures += draw([plain_caption(scene) for scene in chosen], seeds)
    return [mark(pixels, scene) for pixels, scene in zip(pictures, scenes, strict=True)], pictures


def shares(marks: Sequence[Marks]) -> dict[str, float]:
    """The share of correct pictures for each property."""
    return {
        field.name: round(float(np.mean([getattr(one, field.name) for one in marks])), 4) for field in fields(Marks)
    }


def diffusers_draw(
    checkpoint: Path, steps: int = 20, guidance: float = 5.0, size: tuple[int, int] = (96, 96), **more: Any
) -> Draw:
    """A callable that draws with diffusers in float32 on the CPU; `more`: further arguments of the pipeline."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        checkpoint, torch_dtype=torch.float32, local_files_only=True, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size[0], "width": size[1]} | more

    def draw(captions: Sequence[str], seeds: Sequence[int]) -> Pictures:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = pipeline(prompt=list(captions), generator=generators, output_type="np", **settings).images
        return list(np.rint(output * 255).astype(np.uint8))

    return draw


def latentrt_draw(
    pipeline: Pipeline, steps: int = 20, guidance: float = 5.0, size: tuple[int, int] = (96, 96), **more: Any
) -> Draw:
    """A callable that draws with latentrt in the largest batches it serves; `more`: further arguments of `generate`."""
    at_once = pipeline.limits.images.max
    settings = {"steps": steps, "guidance": guidance, "height": size[0], "width": size[1]} | more

    def draw(captions: Sequence[str], seeds: Sequence[int]) -> Pictures:
        pictures: Pictures = []
        for first in range(0, len(captions), at_once):
            part = slice(first, first + at_once)
            result = pipeline.generate(list(captions[part]), seed=list(seeds[part]), **settings)
            pictures += [np.asarray(image) for image in result.images]
        return pictures

    return draw


def main(arguments: list[str] | None = None) -> None:
    """Evaluate and print the shares as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--bundle", type=Path, help="draw with latentrt as well, from this bundle")
    parser.add_argument("--sampler", help="latentrt's sampler; diffusers is then left out")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="write the first 40 pictures as a PNG")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    scenes = held_out_scenes(options.count)
    settings = {"count": len(scenes), "steps": options.steps, "guidance": options.guidance}
    found: dict[str, list[Marks]] = {}
    pictures: Pictures = []
    if not options.sampler:
        draw = diffusers_draw(options.checkpoint, options.steps, options.guidance)
        found["diffusers"], pictures = evaluate(draw, scenes)
    if options.bundle:
        with Pipeline.load(options.bundle) as pipeline:
            draw = latentrt_draw(pipeline, options.steps, options.guidance, sampler=options.sampler)
            found["latentrt"], pictures = evaluate(draw, scenes)
    if options.sheet:
        labels = [
            f"{plain_caption(scene)} {'' if all(asdict(one).values()) else '(!)'}"
            for scene, one in zip(scenes, list(found.values())[-1], strict=True)
        ]
        contact_sheet([Image.fromarray(pixels) for pixels in pictures[:40]], labels[:40], columns=8).save(options.sheet)
    result: dict[str, Any] = {name: shares(marks) for name, marks in found.items()}
    if len(found) == 2:
        same = [ours == theirs for ours, theirs in zip(found["latentrt"], found["diffusers"], strict=True)]
        result["same_marks"] = round(float(np.mean(same)), 4)
    print(json.dumps(settings | result))


if __name__ == "__main__":
    main()
