"""Tiny random checkpoints in diffusers format: every kind of block that the real ones have, a few thousand weights.

    folder = write_checkpoint(tmp_path / "tiny", "sd15", seed=3, unet={"sample_size": 32})

Weights are drawn so that the outputs mean something: noise_pred has a standard deviation near 1 and depends on the
prompt, the pooled text, time_ids and the timestep; decoded images use most of 0..255. Same seed, same bytes.
"""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from families import family_configs
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from latentrt.demo import tokens
from latentrt.demo.tokens import EOS, MERGES, VOCAB_SIZE, write_json
from latentrt.export.checkpoint import Checkpoint

__all__ = [
    "EOS",
    "MERGES",
    "VOCAB_SIZE",
    "randomise",
    "tensors",
    "tokenizer_vocabulary",
    "write_checkpoint",
    "write_sdxl",
    "write_tokenizer",
]

CLASSES: Mapping[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}

SENTENCES = (
    "a red circle on a blue background, flat design",
    "a photo of an astronaut riding a horse on the moon, dramatic lighting",
    "an oil painting of a small house beside a lake at sunset, highly detailed",
    "portrait of an old man with a white beard, studio light, sharp focus",
    "a cat sleeping on a wooden table next to a window, morning light",
    "the skyline of a futuristic city in the rain, neon signs, reflections on the street",
    "a bowl of fruit, still life, photorealistic, natural colours",
    "two children playing football in a green field under a cloudy sky",
    "black and white photograph of a mountain range covered with snow",
    "blurry, low quality, distorted, watermark, text, bad anatomy",
    "a watercolour drawing of flowers in a glass vase, soft pastel tones",
    "the interior of a library with tall shelves and a reading lamp",
)

TokenizerFormat = Literal["files", "json"]


def write_sdxl(folder: Path, **options: Any) -> Path:
    """Write a checkpoint with SDXL base's structure; see `write_checkpoint`."""
    return write_checkpoint(folder, "sdxl", **options)


def write_checkpoint(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    max_shard_size: str | int = "5GB",
    weights: bool = True,
    tokenizer_format: TokenizerFormat = "files",
    legacy_eos: bool = False,
    **overrides: Mapping[str, Any],
) -> Path:
    """Write a complete checkpoint with the structure of one of `families.FAMILIES` and return `folder`.

    Args:
        folder: created where it lacks.
        family: e.g. `"sd15"`.
        seed: of every weight.
        dtype: of the saved weights.
        variant: `"fp16"` names the weight files `*.fp16.safetensors`; it does not change the dtype.
        max_shard_size: weight files above it are split and get an index, e.g. `"20KB"`.
        weights: False writes configs and tokenizers only.
        tokenizer_format: `"files"` (vocab.json, merges.txt) or `"json"` (tokenizer.json, as transformers 5 saves it).
        legacy_eos: text encoders say eos_token_id 2, as published ones do; transformers then pools at the largest id.
        overrides: component name to the config values that replace the defaults, e.g. `vae={"scaling_factor": 0.2}`.
    """
    configs = family_configs(family, legacy_eos)
    index = configs.pop("model_index")
    if unknown := overrides.keys() - configs.keys():
        raise ValueError(f"unknown components {sorted(unknown)}; overrides are for {sorted(configs)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in overrides.items():
        configs[name] |= values
    index["scheduler"] = ["diffusers", configs["scheduler"]["_class_name"]]
    write_json(folder / "model_index.json", index)
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", configs["scheduler"])
    for name, pad_token in (("tokenizer", EOS), ("tokenizer_2", "!")):
        if index.get(name, [None, None])[1]:
            write_tokenizer(folder / name, pad_token=pad_token, tokenizer_format=tokenizer_format)
    for number, (name, kind) in enumerate(CLASSES.items()):
        if name not in configs:
            continue
        model = kind(CLIPTextConfig(**configs[name])) if name.startswith("text") else kind(**configs[name])
        randomise(model, seed * 10 + number, dtype)
        if weights:
            model.save_pretrained(folder / name, variant=variant, max_shard_size=max_shard_size)
        else:
            write_config(model, folder / name)
    return folder


def randomise(model: torch.nn.Module, seed: int, dtype: torch.dtype) -> None:
    """Replace every weight by seeded noise of `dtype` that keeps the signal's size from layer to layer.

    Matrices: normal, standard deviation gain / sqrt(fan in). Norm scales: 1 ± 0.1. Biases: ± 0.1.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "embedding.weight" in name:
            values = noise
        elif parameter.ndim >= 2:
            values = noise * gain(name) / math.sqrt(parameter[0].numel())
        else:
            values = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        parameter.data = values.to(dtype)


def gain(name: str) -> float:
    """How much larger than 1 / sqrt(fan in) the named matrix is.

    The last convolutions follow a SiLU, which lets 0.6 of a normal's standard deviation pass. Queries and keys are
    larger, so that attention chooses among the 77 tokens rather than averaging them.
    """
    if name in ("conv_out.weight", "encoder.conv_out.weight"):
        return 1.7
    if any(part in name for part in ("to_q", "to_k", "q_proj", "k_proj")):
        return 1.5
    return 0.8 if name == "decoder.conv_out.weight" else 1.0


def write_tokenizer(folder: Path, *, pad_token: str = EOS, tokenizer_format: TokenizerFormat = "files") -> Path:
    """Write a CLIP tokenizer of `VOCAB_SIZE` tokens and return `folder`.

    The files are those of SDXL's published tokenizers (pad token `<|endoftext|>` in the first, `!` in the second).
    """
    vocabulary, merges = tokenizer_vocabulary()
    tokens.write_tokenizer(folder, vocabulary, merges, pad_token)
    if tokenizer_format == "json":
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        for path in folder.iterdir():
            path.unlink()
        tokenizer.save_pretrained(folder)
    return folder


@cache
def tokenizer_vocabulary() -> tuple[dict[str, int], tuple[str, ...]]:
    """CLIP's vocabulary layout with merges learned from `SENTENCES`."""
    return tokens.vocabulary_of(SENTENCES)


def write_config(model: torch.nn.Module, folder: Path) -> None:
    """config.json alone, as `save_pretrained` writes it."""
    if isinstance(model, diffusers.ModelMixin):
        model.save_config(folder)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = model.dtype
        model.config.save_pretrained(folder)


def tensors(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of a checkpoint's networks, by folder and name."""
    return {folder: dict(checkpoint.network(folder, dtype).state_dict()) for folder in checkpoint.folders}
