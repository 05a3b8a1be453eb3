"""The configs of every family in diffusers' terms, with the sizes made tiny and all different."""

from typing import Any

import diffusers

from latentrt.demo.networks import SCHEDULER
from latentrt.demo.tokens import VOCAB_SIZE

__all__ = ["FAMILIES", "family_configs"]

Json = dict[str, Any]

CLIP_L, CLIP_H, CLIP_BIG_G = 32, 40, 48
"""Widths of the three text encoders; the last one projects to 40."""

TEXT_CLASSES = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}

KL_F8, SMALL_VAE = (16, 16, 32, 32), (16, 16, 32)
"""Channels of SDXL's VAE and of the others, with 8 and 4 pixels per latent."""

LCM = SCHEDULER | {"_class_name": "LCMScheduler", "original_inference_steps": 50}
V_PREDICTION = SCHEDULER | {
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}

FAMILIES = ("sd15", "sd15-inpaint", "sd15-lcm", "sd2", "sd2-v", "sdxl", "sdxl-inpaint", "sdxl-refiner")


def family_configs(family: str, legacy_eos: bool = False) -> dict[str, Json]:
    """Component name to config, and `model_index` to that of the family's pipeline."""
    bare, _, variant = family.partition("-")
    first = {"text_encoder": text_config(CLIP_L, heads=4, activation="quick_gelu", pad=VOCAB_SIZE - 1)}
    second = {"text_encoder_2": text_config(CLIP_BIG_G, heads=3, activation="gelu", pad=0, projection_dim=40)}
    if bare == "sd15":
        configs = first | {"unet": SD15_UNET, "vae": vae_config(0.18215, SMALL_VAE)}
    elif bare == "sd2":
        encoder = text_config(CLIP_H, heads=2, activation="gelu", pad=0)
        configs = {"text_encoder": encoder, "unet": SD2_UNET, "vae": vae_config(0.18215, SMALL_VAE)}
    elif variant == "refiner":
        configs = second | {"unet": REFINER_UNET, "vae": vae_config(0.13025, KL_F8, force_upcast=True)}
    else:
        configs = first | second | {"unet": SDXL_UNET, "vae": vae_config(0.13025, KL_F8, force_upcast=True)}
    configs = {name: dict(config) for name, config in configs.items()}
    if variant == "inpaint":
        configs["unet"]["in_channels"] = 9
    if variant == "lcm":
        configs["unet"]["time_cond_proj_dim"] = 24
    if legacy_eos:
        for name in configs.keys() & TEXT_CLASSES.keys():
            configs[name] |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    scheduler = {"lcm": LCM, "v": V_PREDICTION}.get(variant, SCHEDULER)
    return {"model_index": model_index(bare, variant, configs, scheduler), "scheduler": dict(scheduler)} | configs


def model_index(bare: str, variant: str, configs: dict[str, Json], scheduler: Json) -> Json:
    """model_index.json of the pipeline that such a checkpoint is published for."""
    stem = "StableDiffusionXL" if bare == "sdxl" else "StableDiffusion"
    task = {"inpaint": "Inpaint", "refiner": "Img2Img"}.get(variant, "")
    index: Json = {"_class_name": f"{stem}{task}Pipeline", "_diffusers_version": diffusers.__version__}
    if bare == "sdxl":
        index |= {"force_zeros_for_empty_prompt": variant != "refiner"}
        index |= {name: [None, None] for name in (*TEXT_CLASSES, "tokenizer", "tokenizer_2") if variant == "refiner"}
        index |= {"requires_aesthetics_score": True} if variant == "refiner" else {}
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    for name in configs.keys() & TEXT_CLASSES.keys():
        index[name] = ["transformers", TEXT_CLASSES[name]]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    libraries = {"scheduler": scheduler["_class_name"], "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    index |= {name: ["diffusers", kind] for name, kind in libraries.items()}
    return dict(sorted(index.items()))


def text_config(hidden: int, *, heads: int, activation: str, pad: int, **more: int) -> Json:
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
        "bos_token_id": VOCAB_SIZE - 2,
        "eos_token_id": VOCAB_SIZE - 1,
        "pad_token_id": pad,
    } | more


def vae_config(scaling_factor: float, channels: tuple[int, ...], force_upcast: bool = False) -> Json:
    """A KL autoencoder with one resolution per entry of `channels`: four make KL-f8."""
    return {
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "block_out_channels": list(channels),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "latent_channels": 4,
        "sample_size": 128,
        "scaling_factor": scaling_factor,
        "force_upcast": force_upcast,
    }


COMMON_UNET: Json = {"sample_size": 16, "layers_per_block": 1, "norm_num_groups": 8}

SD15_UNET: Json = COMMON_UNET | {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [16, 32],
    # diffusers' name for the number of heads
    "attention_head_dim": 2,
    "cross_attention_dim": CLIP_L,
}
"""Attention at the full resolution, none at the lowest, one number of heads for all, projections by convolution."""

SD2_UNET: Json = SD15_UNET | {
    "attention_head_dim": [1, 2],
    "cross_attention_dim": CLIP_H,
    "use_linear_projection": True,
    "upcast_attention": True,
}

SDXL_UNET: Json = COMMON_UNET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [16, 32, 32],
    "transformer_layers_per_block": [1, 1, 2],
    "attention_head_dim": [1, 2, 4],
    "use_linear_projection": True,
    "cross_attention_dim": CLIP_L + CLIP_BIG_G,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 40 + 6 * 8,
}
"""A plain block, two with attention of different depth, micro-conditioning of six numbers."""

REFINER_UNET: Json = SDXL_UNET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": 1,
    "cross_attention_dim": CLIP_BIG_G,
    "projection_class_embeddings_input_dim": 40 + 5 * 8,
}
"""Attention between two plain blocks, and in the middle; five numbers."""
