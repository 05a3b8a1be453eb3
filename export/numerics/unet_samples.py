"""Samples on which text encoders and the U-Net are measured: real prompts, and latents from noise to picture."""

import numpy as np
import torch
from torch import Tensor

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.modules import reference_module
from latentrt.export.sample_inputs import MAX_TIMESTEP, sample_inputs
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK, ComponentSpec

PROMPTS = (
    "",
    "a photo of an astronaut riding a horse on the moon, dramatic lighting, highly detailed, 8k",
    "blurry, low quality, distorted, watermark, text, bad anatomy",
    "an oil painting of a small house beside a lake at sunset, in the style of an old master, " * 4,
)
"""An empty prompt, an ordinary one, a negative one, and one that fills all 77 tokens."""

TIMESTEPS = (MAX_TIMESTEP, 700.0, 250.0, 1.0)
"""From pure noise to an almost finished picture, one timestep for each prompt."""

LATENTS = 32
"""Largest height and width of the latents: ranges hardly grow with the size, but time does."""


def text_sample(checkpoint: Checkpoint, component: str) -> dict[str, Tensor]:
    """Make inputs for a text encoder: the first chunk of tokens of each of `PROMPTS`, with no layer skipped."""
    encoder = next(encoder for encoder in checkpoint.model.text_encoders if encoder.component == component)
    tokenizer = checkpoint.tokenizer(encoder.tokenizer)
    ids = torch.from_numpy(np.concatenate([tokenizer.chunks(prompt)[:1] for prompt in PROMPTS]))
    return {"input_ids": ids, "clip_skip": torch.zeros(len(ids), dtype=torch.int64)}


def unet_sample(checkpoint: Checkpoint, spec: ComponentSpec) -> dict[str, Tensor]:
    """Make one float32 batch for every port of the U-Net: each prompt at a timestep of its own.

    Loads the text encoders, one after the other, so call it before the U-Net is loaded. Evaluating SDXL's U-Net over
    the batch costs 1.7 TFLOP: four rows, each a sixteenth of a 1024² image.
    """
    size = min(LATENTS, spec.dims["latent_height"].opt)
    sizes = {"rows": len(PROMPTS), "tokens": TOKENS_PER_CHUNK, "latent_height": size, "latent_width": size}
    inputs = sample_inputs(spec, sizes, 0)
    inputs["timestep"] = torch.tensor(TIMESTEPS)
    inputs["sample"] = noisy_latents(inputs["sample"], inputs["timestep"])
    return inputs | _conditioning(checkpoint, inputs)


def noisy_latents(noise: Tensor, timesteps: Tensor) -> Tensor:
    """Mix noise with a coarse pattern: noise alone at the highest timestep, more of the pattern at lower ones.

    (rows, 4, h, w) and (rows,) -> (rows, 4, h, w), with a variance near 1. Sine and cosine of the timestep stand in for
    a schedule's shares of noise and picture.
    """
    coarse = torch.nn.functional.interpolate(noise[:, :, ::8, ::8], noise.shape[2:], mode="nearest")
    angle = (timesteps / MAX_TIMESTEP * torch.pi / 2).view(-1, 1, 1, 1)
    return noise * angle.sin() + coarse * angle.cos()


def _conditioning(checkpoint: Checkpoint, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encode the prompts with the checkpoint's own text encoders, for the ports that have the encoders' widths."""
    outputs_by_port: dict[str, list[Tensor]] = {"encoder_hidden_states": [], "text_embeds": []}
    for encoder in checkpoint.model.text_encoders:
        module = reference_module(checkpoint, encoder.component)
        with torch.no_grad():
            outputs = module(**text_sample(checkpoint, encoder.component))
        for port, output in zip(outputs_by_port, outputs, strict=False):
            outputs_by_port[port].append(output)
    joined = {port: torch.cat(outputs, dim=-1) for port, outputs in outputs_by_port.items() if outputs}
    return {port: values for port, values in joined.items() if port in inputs and values.shape == inputs[port].shape}
