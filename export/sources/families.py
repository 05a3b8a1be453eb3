"""The families of Stable Diffusion: the configs that ship for each, and what tells one from another."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"

FAMILIES = {"sd15": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "sdxl-refiner": "the SDXL refiner"}
"""Name of the shipped configs of each family -> its name in messages."""


def shipped_configs(name: str) -> dict[str, Any]:
    """Component ("unet", "vae", "scheduler", ..., or "model_index") -> its config, as diffusers writes it."""
    configs: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return configs


@cache
def families_by_text_width() -> Mapping[int, str]:
    """Width of the text that the U-Net's cross-attention takes -> family; no two families share a width."""
    return {shipped_configs(name)["unet"]["cross_attention_dim"]: name for name in FAMILIES}


def is_openai_clip(config: Mapping[str, Any]) -> bool:
    """Whether a text encoder is OpenAI's CLIP, which uses quick_gelu, rather than OpenCLIP, which uses gelu."""
    return bool(config.get("hidden_act", "quick_gelu") == "quick_gelu")
