"""Tiny random checkpoints in diffusers format: every kind of block that the real ones have, a few thousand weights.

    folder = write_sdxl(tmp_path / "tiny", seed=3, unet={"sample_size": 32})

Weights are drawn so that the outputs mean something: noise_pred has a standard deviation near 1 and depends on the
prompt, the pooled text, time_ids and the timestep; decoded images use most of 0..255. Same seed, same bytes.
"""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

__all__ = ["MERGES", "VOCAB_SIZE", "tokenizer_vocabulary", "write_sdxl", "write_tokenizer"]

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = 254
VOCAB_SIZE = 512 + MERGES + 2
"""256 byte symbols, the same with `</w>`, the merges, begin and end."""

CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

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

Json = dict[str, Any]
TokenizerFormat = Literal["files", "json"]


def write_sdxl(
    folder: Path,
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
    """Write a complete checkpoint with SDXL's structure and return `folder`.

    Args:
        folder: created where it lacks.
        seed: of every weight.
        dtype: of the saved weights.
        variant: `"fp16"` names the weight files `*.fp16.safetensors`; it does not change the dtype.
        max_shard_size: weight files above it are split and get an index, e.g. `"20KB"`.
        weights: False writes configs and tokenizers only.
        tokenizer_format: `"files"` (vocab.json, merges.txt) or `"json"` (tokenizer.json, as transformers 5 saves it).
        legacy_eos: text encoders say eos_token_id 2, as published ones do; transformers then pools at the largest id.
        overrides: component name to the config values that replace the defaults, e.g. `vae={"scaling_factor": 0.2}`.
    """
    configs = sdxl_configs(legacy_eos)
    if unknown := overrides.keys() - configs.keys():
        raise ValueError(f"unknown components {sorted(unknown)}; overrides are for {sorted(configs)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in overrides.items():
        configs[name] |= values
    write_json(folder / "model_index.json", model_index())
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", configs["scheduler"])
    write_tokenizer(folder / "tokenizer", pad_token=EOS, tokenizer_format=tokenizer_format)
    write_tokenizer(folder / "tokenizer_2", pad_token="!", tokenizer_format=tokenizer_format)
    for index, (name, model) in enumerate(build_models(configs).items()):
        randomise(model, seed * 10 + index, dtype)
        if weights:
            model.save_pretrained(folder / name, variant=variant, max_shard_size=max_shard_size)
        else:
            write_config(model, folder / name)
    return folder


def build_models(configs: Mapping[str, Json]) -> dict[str, torch.nn.Module]:
    """The four networks, with the classes' own initial weights."""
    return {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"])),
        "unet": UNet2DConditionModel(**configs["unet"]),
        "vae": AutoencoderKL(**configs["vae"]),
    }


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


def sdxl_configs(legacy_eos: bool) -> dict[str, Json]:
    """Config values per component: SDXL base's own, with its sizes made tiny and all different."""
    return {
        "scheduler": {
            "_class_name": "EulerDiscreteScheduler",
            "_diffusers_version": diffusers.__version__,
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
            "interpolation_type": "linear",
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "use_karras_sigmas": False,
            # Unused by this class, yet in SDXL's published scheduler_config.json.
            "clip_sample": False,
            "sample_max_value": 1.0,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
        },
        "text_encoder": text_config(32, heads=4, activation="quick_gelu", legacy_eos=legacy_eos, pad=VOCAB_SIZE - 1),
        "text_encoder_2": text_config(48, heads=3, activation="gelu", legacy_eos=legacy_eos, pad=0, projection_dim=40),
        "unet": unet_config(),
        "vae": {
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": [16, 16, 32, 32],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "latent_channels": 4,
            "sample_size": 128,
            "scaling_factor": 0.13025,
            "force_upcast": True,
        },
    }


def text_config(hidden: int, *, heads: int, activation: str, legacy_eos: bool, pad: int, **more: int) -> Json:
    """A CLIP text encoder of three layers: the penultimate layer is neither the first nor the last."""
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": 3,
        "max_position_embeddings": 77,
        "hidden_act": activation,
        "projection_dim": hidden,
        "bos_token_id": 0 if legacy_eos else VOCAB_SIZE - 2,
        "eos_token_id": 2 if legacy_eos else VOCAB_SIZE - 1,
        "pad_token_id": 1 if legacy_eos else pad,
    } | more


def unet_config() -> Json:
    """SDXL's U-Net: a plain block, two with attention of different depth, micro-conditioning."""
    return {
        "sample_size": 16,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [16, 32, 32],
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 1, 2],
        # diffusers' name for the number of heads
        "attention_head_dim": [1, 2, 4],
        "use_linear_projection": True,
        "norm_num_groups": 8,
        "cross_attention_dim": 32 + 48,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 40 + 6 * 8,
    }


def model_index() -> Json:
    """model_index.json of StableDiffusionXLPipeline."""
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": diffusers.__version__,
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def write_tokenizer(folder: Path, *, pad_token: str = EOS, tokenizer_format: TokenizerFormat = "files") -> Path:
    """Write a CLIP tokenizer of `VOCAB_SIZE` tokens and return `folder`.

    The files are those of SDXL's published tokenizers (pad token `<|endoftext|>` in the first, `!` in the second).
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = tokenizer_vocabulary()
    special = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    specials = {
        "bos_token": {"content": BOS} | special,
        "eos_token": {"content": EOS} | special,
        "pad_token": pad_token,
        "unk_token": {"content": EOS} | special,
    }
    config = specials | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "errors": "replace"}
    write_json(folder / "vocab.json", dict(vocabulary))
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges)) + "\n", encoding="utf-8")
    write_json(folder / "special_tokens_map.json", specials)
    write_json(folder / "tokenizer_config.json", config | {"add_prefix_space": False, "do_lower_case": True})
    if tokenizer_format == "json":
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        for path in folder.iterdir():
            path.unlink()
        tokenizer.save_pretrained(folder)
    return folder


@cache
def tokenizer_vocabulary() -> tuple[dict[str, int], tuple[str, ...]]:
    """CLIP's vocabulary layout with merges learned from `SENTENCES`: token to id, and the merges ("left right").

    Ids: 256 byte symbols from "!" on, the same with `</w>`, one token per merge, begin, end.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    learned = json.loads(tokenizer.to_str())["model"]["merges"][:MERGES]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in learned), BOS, EOS]
    if len(set(tokens)) != VOCAB_SIZE:
        raise ValueError(f"the sentences give {len(set(tokens))} tokens, not {VOCAB_SIZE}")
    return {token: number for number, token in enumerate(tokens)}, tuple(" ".join(pair) for pair in learned)


def write_config(model: torch.nn.Module, folder: Path) -> None:
    """config.json alone, as `save_pretrained` writes it."""
    if isinstance(model, diffusers.ModelMixin):
        model.save_config(folder)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = model.dtype
        model.config.save_pretrained(folder)


def write_json(path: Path, value: Json) -> None:
    """One JSON file, indented as the libraries write it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
