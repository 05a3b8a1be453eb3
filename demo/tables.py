"""The model card's tables and sheets: `python -m latentrt.demo.tables BUNDLE OUTPUT [--count 100]`.

Scores with and without guidance, with few and many steps, and for every sampler; and a sheet that shows the effect of
crop, original size and an empty prompt.
"""

import argparse
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from latentrt.demo.evaluate import evaluate, held_out_scenes, latentrt_draw, shares
from latentrt.demo.sheet import contact_sheet
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.samplers import SAMPLERS

__all__ = ["score_table", "time_ids_sheet"]

Setting = tuple[str, int, float]
"""Sampler, steps, guidance."""

SETTINGS: tuple[Setting, ...] = (
    ("euler", 20, 5.0),
    ("euler", 20, 1.0),
    ("euler", 4, 5.0),
    *((name, 20, 5.0) for name in sorted(SAMPLERS) if name != "euler" and not name.startswith("edm_")),
)
"""All samplers except those for models with EDM's preconditioning, which the demo does not have."""

PROPERTIES = ("background", "colour", "shape", "place", "size")
PROMPT = "a large red star in the centre, on a yellow background"


def score_table(pipeline: Pipeline, count: int) -> str:
    """A Markdown table with one row per setting: the percentage of `count` held-out captions that are correct."""
    scenes = held_out_scenes(count)
    rows = ["| sampler | steps | guidance | " + " | ".join(PROPERTIES) + " |", "|---" * (3 + len(PROPERTIES)) + "|"]
    for sampler, steps, guidance in track(SETTINGS, description="scores"):
        marks, _ = evaluate(latentrt_draw(pipeline, steps, guidance, sampler=sampler), scenes)
        right = shares(marks)
        figures = " | ".join(f"{100 * right[name]:.1f}" for name in PROPERTIES)
        rows.append(f"| {sampler} | {steps} | {guidance:g} | {figures} |")
    return "\n".join(rows)


def time_ids_sheet(pipeline: Pipeline) -> Image.Image:
    """A sheet of one prompt and seed with different time ids, and of the empty prompt."""
    shown: dict[str, dict[str, Any]] = {
        "crop (0, 0)": {},
        "crop (24, 24)": {"crop": (24, 24)},
        "crop (64, 64)": {"crop": (64, 64)},
        "original size (24, 24)": {"original_size": (24, 24)},
        "width 160": {"width": 160},
        "height 160": {"height": 160},
        "empty prompt, seed 1": {"seed": 1, "prompt": ""},
        "empty prompt, seed 2": {"seed": 2, "prompt": ""},
    }
    pictures = []
    for changes in shown.values():
        request: dict[str, Any] = {"prompt": PROMPT, "seed": 1, "steps": 20} | changes
        pictures += pipeline.generate(**request).images
    return contact_sheet(pictures, list(shown))


def main() -> None:
    """Write `scores.md` and `time_ids.png` to a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with Pipeline.load(options.bundle) as pipeline:
        (options.output / "scores.md").write_text(score_table(pipeline, options.count) + "\n", encoding="utf-8")
        time_ids_sheet(pipeline).save(options.output / "time_ids.png")


if __name__ == "__main__":
    main()
