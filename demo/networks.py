"""The configs of the demo checkpoint: SDXL's structure with small widths."""

from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from latentrt.demo.tokens import VOCAB_SIZE

__all__ = ["SCHEDULER", "UNET", "VAE", "build", "model_index", "parameter_count"]

Json = dict[str, Any]

VAE: Json = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 48, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 96,
    "force_upcast": False,
}
"""KL-f8. Its scaling factor is measured after training."""

UNET: Json = {
    "sample_size": 12,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [48, 64, 96],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1, 2],
    # the number of heads, whatever diffusers calls it
    "attention_head_dim": [1, 2, 3],
    "use_linear_projection": True,
    "norm_num_groups": 16,
    "cross_attention_dim": 64 + 96,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 96 + 6 * 16,
}

SCHEDULER: Json = {
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
    # This class does not use these; SDXL's published scheduler_config.json has them.
    "clip_sample": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}


def text_config(hidden: int, heads: int, layers: int, activation: str, pad: int) -> CLIPTextConfig:
    """The config of a small CLIP text encoder, whose projection, if it has one, is as wide as its hidden states."""
    return CLIPTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        max_position_embeddings=77,
        hidden_act=activation,
        projection_dim=hidden,
        bos_token_id=VOCAB_SIZE - 2,
        eos_token_id=VOCAB_SIZE - 1,
        pad_token_id=pad,
    )


def build(name: str) -> Any:
    """Make one of the four networks, named by its folder, with fresh weights."""
    if name == "text_encoder":
        return louder(CLIPTextModel(text_config(64, 2, 2, "quick_gelu", VOCAB_SIZE - 1)))
    if name == "text_encoder_2":
        return louder(CLIPTextModelWithProjection(text_config(96, 3, 2, "gelu", 0)))
    if name == "unet":
        return UNet2DConditionModel(**UNET)
    return AutoencoderKL(**VAE)


def louder(model: Any, gain: float = 25) -> Any:
    """Scale the embeddings of a text encoder in place.

    CLIP draws them with a standard deviation of 0.02. With so few layers, that is too small for a U-Net that reads the
    penultimate hidden state without a norm.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding.weight" in name:
                parameter.mul_(gain)
    return model


def model_index() -> Json:
    """The contents of StableDiffusionXLPipeline's model_index.json."""
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


def parameter_count(model: torch.nn.Module) -> int:
    """How many weights a network has."""
    return sum(parameter.numel() for parameter in model.parameters())
