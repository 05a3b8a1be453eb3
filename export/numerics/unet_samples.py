"""What text encoders and the U-Net are measured on: real prompts, and latents as they are along the way."""

import numpy as np
import torch
from torch import Tensor

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.modules import MODULES, wrap
from latentrt.export.sample_inputs import MAX_TIMESTEP, sample_inputs
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK, ComponentSpec

PROMPTS = (
    "",
    "a photo of an astronaut riding a horse on the moon, dramatic lighting, highly detailed, 8k",
    "blurry, low quality, distorted, watermark, text, bad anatomy",
    "an oil painting of a small house beside a lake at sunset, in the style of an old master, " * 4,
)
"""Nothing but padding, an ordinary prompt, a negative one, and one that fills all 77 tokens."""

TIMESTEPS = (MAX_TIMESTEP, 700.0, 250.0, 1.0)
"""From pure noise to a finished picture; one for each prompt."""

LATENTS = 32
"""Largest height and width of the latents. Ranges hardly grow with it, the time does."""


def text_sample(checkpoint: Checkpoint, component: str) -> dict[str, Tensor]:
    """Inputs of a text encoder: `PROMPTS` as its tokenizer gives them, the first chunk of each, no layer skipped."""
    encoder = next(one for one in checkpoint.model.text_encoders if one.component == component)
    tokenizer = checkpoint.tokenizer(encoder.tokenizer)
    ids = torch.from_numpy(np.concatenate([tokenizer.chunks(prompt)[:1] for prompt in PROMPTS]))
    return {"input_ids": ids, "clip_skip": torch.zeros(len(ids), dtype=torch.int64)}


def unet_sample(checkpoint: Checkpoint, spec: ComponentSpec) -> dict[str, Tensor]:
    """One batch of inputs for every port of the U-Net, float32: each prompt at a timestep of its own.

    Loads the text encoders, one after the other; meant to be called before the U-Net is loaded. With SDXL an evaluation
    of the U-Net over it costs 1.7 TFLOP: a sixteenth of a 1024² image's, four times.
    """
    size = min(LATENTS, spec.dims["latent_height"].opt)
    sizes = {"rows": len(PROMPTS), "tokens": TOKENS_PER_CHUNK, "latent_height": size, "latent_width": size}
    inputs = sample_inputs(spec, sizes, 0)
    inputs["timestep"] = torch.tensor(TIMESTEPS)
    inputs["sample"] = latents_on_the_way(inputs["sample"], inputs["timestep"])
    return inputs | _conditioning(checkpoint, inputs)


def latents_on_the_way(noise: Tensor, timesteps: Tensor) -> Tensor:
    """(rows, 4, h, w): noise at the highest timestep, at lower ones ever more of a coarse pattern; variance near 1.

    A schedule without its constants: sine and cosine of the timestep stand for the shares of noise and picture.
    """
    coarse = torch.nn.functional.interpolate(noise[:, :, ::8, ::8], noise.shape[2:], mode="nearest")
    angle = (timesteps / MAX_TIMESTEP * torch.pi / 2).view(-1, 1, 1, 1)
    return noise * angle.sin() + coarse * angle.cos()


def _conditioning(checkpoint: Checkpoint, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The prompts as the checkpoint's own text encoders give them, for those ports whose width is theirs."""
    found: dict[str, list[Tensor]] = {"encoder_hidden_states": [], "text_embeds": []}
    for encoder in checkpoint.model.text_encoders:
        source, _ = MODULES[encoder.component]
        module = wrap(encoder.component, checkpoint.network(source, torch.float32), checkpoint.model)
        with torch.no_grad():
            outputs = module(**text_sample(checkpoint, encoder.component))
        for name, output in zip(found, outputs, strict=False):
            found[name].append(output)
    joined = {name: torch.cat(parts, dim=-1) for name, parts in found.items() if parts}
    return {name: values for name, values in joined.items() if name in inputs and values.shape == inputs[name].shape}
