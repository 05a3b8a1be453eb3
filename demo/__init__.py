"""The checkpoint that ships: SDXL's architecture in small, with its tokenizers."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"

RANDOM_SEED = 7
"""The checkpoint holds configs and tokenizers only; its weights are made up from this seed."""

PROMPTS = (
    "a small red circle on a blue background",
    "green star, left",
    "a large yellow square on a black background",
    "two purple triangles",
)
