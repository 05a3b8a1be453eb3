"""The facts of a checkpoint, read from its config files and tensors."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle.base import Record

TimeId = Literal[
    "original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width", "aesthetic_score"
]
"""One number of SDXL's micro-conditioning (Podell et al. 2023, section 2.2; the refiner's score: section 2.5)."""


class TextEncoder(Record):
    """One text encoder: the `width` of its hidden states and of its `pooled` projection (0: it has none).

    The U-Net reads the hidden state after all `layers` but the last `skipped`; `final_norm` says whether the encoder's
    final norm is applied to it.
    """

    component: str
    tokenizer: str
    width: int
    pooled: int = 0
    layers: int
    skipped: int
    final_norm: bool

    @property
    def max_clip_skip(self) -> int:
        """The largest number of further layers that a request may skip: down to the embeddings, as in diffusers."""
        return self.layers - self.skipped


def inpainting_channels(latents: int) -> int:
    """Inputs of an inpainting U-Net: latents, mask, latents of the masked image (Rombach et al. 2022, section 4.5)."""
    return 2 * latents + 1


class Model(Record):
    """Facts of one checkpoint. Sizes in pixels; widths in channels."""

    family: str
    text_encoders: tuple[TextEncoder, ...]
    unet_channels: int
    """`latent_channels`, or for inpainting `inpainting_channels(latent_channels)`."""
    unet_layers: tuple[int, ...] = ()
    """Residual blocks of each resolution on the U-Net's way down; by them LoRAs number its layers."""
    latent_channels: int
    latent_scale: int
    """Pixels per latent, along each axis."""
    scaling_factor: float
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()
    """Latents in the loop = `scaling_factor` * (latents of the VAE - mean) / std, per channel; empty for 0 and 1."""
    native_size: int
    time_ids: tuple[TimeId, ...] = ()
    """The micro-conditioning of a row, in order; empty if the U-Net takes neither these nor pooled text."""
    guidance_embedding: int = 0
    """Width of `timestep_cond`, which tells the U-Net the guidance scale; 0 if guidance takes rows of its own."""
    zero_negative: bool
    """A missing negative prompt means embeddings of zeros instead of the encoding of an empty text."""
    scheduler: dict[str, Any]

    @property
    def context_width(self) -> int:
        """Width of the U-Net's `encoder_hidden_states`: the encoders' hidden states side by side."""
        return sum(encoder.width for encoder in self.text_encoders)

    @property
    def pooled_width(self) -> int:
        """Width of the U-Net's `text_embeds`."""
        return sum(encoder.pooled for encoder in self.text_encoders)

    @property
    def is_inpainting(self) -> bool:
        """The U-Net also takes a mask and the masked image's latents."""
        return self.unet_channels == inpainting_channels(self.latent_channels)

    @property
    def max_clip_skip(self) -> int:
        """The largest number of layers that a request may skip in every text encoder."""
        return min(encoder.max_clip_skip for encoder in self.text_encoders)

    def to_vae(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """The loop's latents (images, channels, h, w) as the VAE's decoder takes them."""
        mean, std = self._moments()
        return latents * std / np.float32(self.scaling_factor) + mean

    def from_vae(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """The VAE encoder's latents (images, channels, h, w) as the loop takes them."""
        mean, std = self._moments()
        return (latents - mean) * np.float32(self.scaling_factor) / std

    def _moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation per channel, (channels, 1, 1)."""
        mean = np.array(self.latents_mean or [0] * self.latent_channels, np.float32)
        std = np.array(self.latents_std or [1] * self.latent_channels, np.float32)
        return mean[:, None, None], std[:, None, None]
