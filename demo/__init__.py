"""A small SDXL that really draws: coloured shapes on coloured backgrounds.

    shapes      six shapes as signed distances
    scenes      the content of a picture, the held-out split, rendering, time ids
    captions    many wordings for a scene
    score       reads the content of a picture back, without any network
    evaluate    measures how many held-out captions are drawn correctly
    train       trains all networks and writes the checkpoint, stage by stage

The first four need only numpy and pillow; training and evaluation need torch, diffusers and transformers.
"""

from pathlib import Path

__all__ = ["CHECKPOINT", "PROMPTS"]

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The trained checkpoint, in diffusers format."""

PROMPTS = (
    "a small red circle on the left, on a blue background",
    "a large green star in the centre, on a white background",
    "a yellow triangle at the top, on a black background",
    "a large purple ring on the right, on a pink background",
    "an orange cross at the bottom, on a cyan background",
    "a white square on the left and a red star on the right, on a black background",
    "black star, centre, yellow background",
    "a picture of a small pink square at the top, on a green background",
)
"""The prompts that `latentrt demo` draws if none are given."""
