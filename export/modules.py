"""Torch modules whose forward takes and gives exactly the ports of a component's spec."""

from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from latentrt.export.checkpoint import Checkpoint
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.model import TextEncoder as Facts

LOGVAR_RANGE = (-30.0, 20.0)
"""Clamp of the VAE's log variance, as in the original autoencoder."""


class TextEncoder(nn.Module):
    """A CLIP text encoder that gives, for each text, the hidden states of the layer that the text asks for.

    Encoders with a projection also give `pooled`, the projected final state at the end token.
    """

    def __init__(self, network: Any, facts: Facts):
        super().__init__()
        self.network = network
        self.facts = facts
        self.has_projection = hasattr(network, "text_projection")

    def forward(self, input_ids: Tensor, clip_skip: Tensor) -> tuple[Tensor, ...]:
        """(texts, 77) and (texts,), both int64 -> hidden (texts, 77, width), pooled (texts, projection)."""
        output = self.network(input_ids, output_hidden_states=True)
        most = self.facts.max_clip_skip
        hidden = output.hidden_states[0]
        # Selecting layer by layer keeps the states of one layer; a gather would keep those of all to the end.
        for layer, states in enumerate(output.hidden_states[1 : most + 1], 1):
            hidden = torch.where((clip_skip <= most - layer)[:, None, None], states, hidden)
        if self.facts.final_norm:
            hidden = getattr(self.network, "text_model", self.network).final_layer_norm(hidden)
        return (hidden, output.text_embeds) if self.has_projection else (hidden,)


class UNet(nn.Module):
    """A U-Net. In every precision, micro-conditioning stays float32 up to its first linear layer."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        """Predict noise (rows, 4, h, w) from the ports of `unet`; the last three only where the network has them."""
        conditions = {}
        if text_embeds is not None:
            # diffusers concatenates the two; strongly typed networks refuse a concatenation of mixed dtypes.
            conditions = {"text_embeds": text_embeds.float(), "time_ids": time_ids}
        output: Tensor = self.network(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=None if timestep_cond is None else timestep_cond.to(sample.dtype),
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]
        return output


def decode(network: Any, latent: Tensor) -> Tensor:
    """(images, 4, h, w) -> (images, 3, 8h, 8w), roughly in -1 … 1."""
    image: Tensor = network.decode(latent, return_dict=False)[0]
    return image


def encode(network: Any, image: Tensor) -> Tensor:
    """(images, 3, 8h, 8w) -> mean and log variance, concatenated along the channels; for TAESD, its latents."""
    values: Tensor = network.encoder(image)
    return network.quant_conv(values) if getattr(network, "quant_conv", None) is not None else values


def moments(network: Any, image: Tensor) -> Tensor:
    """(images, 3, 8h, 8w) -> mean and log variance, concatenated along the channels: (images, 2 * 4, h, w)."""
    values = encode(network, image)
    if isinstance(network, diffusers.AutoencoderTiny):
        # TAESD has no distribution: its latents are the mean, with the smallest variance that the ports can express.
        return torch.cat([values, torch.full_like(values, LOGVAR_RANGE[0])], dim=1)
    return values


class VaeDecoder(nn.Module):
    """Decodes latents to bytes: the image leaves the graph as uint8, with red, green and blue in the last axis."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(images, 4, h, w) -> image (images, 8h, 8w, 3), mean absolute value before clamping (images,)."""
        image = decode(self.network, latent).float()
        pixels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
        # The cast comes last because TensorRT knows uint8 only as a network's input or output.
        return pixels.to(torch.uint8), image.abs().mean(dim=(1, 2, 3))


class VaeEncoder(nn.Module):
    """Encodes an image as the mean and log variance of its latents, so the graph itself is not random."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(images, 3, 8h, 8w) in -1 … 1 -> mean, logvar (images, 4, h, w)."""
        mean, logvar = moments(self.network, image).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)


MODULES = {
    "text_encoder": ("text_encoder", TextEncoder),
    "text_encoder_2": ("text_encoder_2", TextEncoder),
    "unet": ("unet", UNet),
    "vae_decoder": ("vae", VaeDecoder),
    "vae_encoder": ("vae", VaeEncoder),
}
"""Component -> the checkpoint's folder that holds its network, and the class that gives it the component's ports."""


def wrap(component: str, network: Any, model: Model) -> nn.Module:
    """Give a checkpoint's network the ports of a component."""
    kind: Any = MODULES[component][1]
    facts = [encoder for encoder in model.text_encoders if encoder.component == component]
    module: nn.Module = kind(network, *facts)
    return module.eval()


def reference_module(checkpoint: Checkpoint, component: str) -> nn.Module:
    """Load a component's module with the checkpoint's weights in float32."""
    folder, _ = MODULES[component]
    return wrap(component, checkpoint.network(folder, torch.float32), checkpoint.model)


def component_vocabulary(checkpoint: Checkpoint, component: str) -> int:
    """Number of token ids that a component's network knows; 0 for one that takes no tokens, and for the sampler."""
    return checkpoint.vocabulary(MODULES[component][0]) if component in MODULES else 0
