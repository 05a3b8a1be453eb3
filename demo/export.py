"""Writes the trained networks in half precision as a diffusers folder of StableDiffusionXLPipeline."""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentrt.demo.networks import SCHEDULER, model_index
from latentrt.demo.tokens import write_json

__all__ = ["export"]


def export(folder: Path, networks: Mapping[str, Any], tokenizers: Path) -> Path:
    """Write the folder anew; an older one is replaced only when the new one is complete.

    Args:
        folder: the checkpoint's folder.
        networks: `text_encoder`, `text_encoder_2`, `unet` and `vae`; they are not changed.
        tokenizers: holds the folders `tokenizer` and `tokenizer_2`.
    """
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    for name, network in networks.items():
        half = copy.deepcopy(network).to(torch.float16)
        half.save_pretrained(draft / name)
        for path in (draft / name).iterdir():
            # Some library versions write weights that only their owner can read.
            path.chmod(0o644)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tokenizers / name, draft / name)
    (draft / "scheduler").mkdir()
    write_json(draft / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(draft / "model_index.json", model_index())
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return folder
