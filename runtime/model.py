"""What a checkpoint is, as facts read from its own config files, and the ranges of requests that are served."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from latentrt.runtime.errors import RequestError
from latentrt.runtime.specs import TOKENS_PER_CHUNK, Dim

TimeId = Literal[
    "original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width", "aesthetic_score"
]
"""A number of the micro-conditioning (Podell et al. 2023, section 2.2; the refiner's score: section 2.5)."""


class Record(BaseModel):
    """Base of everything that is written to a bundle: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextEncoder(Record):
    """One text encoder: `width` of its hidden states, `pooled` width of its projected output (0: it has none).

    The U-Net reads the hidden state after all `layers` but the last `skipped`, through the encoder's final norm or not.
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
        """How many more layers a request may skip: down to the embeddings, as in diffusers."""
        return self.layers - self.skipped


class Model(Record):
    """Facts of one checkpoint. Sizes in pixels; widths in channels."""

    family: str
    text_encoders: tuple[TextEncoder, ...]
    unet_channels: int
    """The latents' own; for inpainting, twice as many and one: latents, mask, latents of the masked image."""
    latent_channels: int
    latent_scale: int
    """Pixels per latent, along each axis."""
    scaling_factor: float
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()
    """Latents in the loop = `scaling_factor` * (latents of the VAE - mean) / std, per channel; none: 0 and 1."""
    native_size: int
    time_ids: tuple[TimeId, ...] = ()
    """Micro-conditioning numbers of a row, in order. None: the U-Net takes no pooled text either."""
    guidance_embedding: int = 0
    """Width of `timestep_cond`, which tells the U-Net the guidance scale; 0: guidance takes rows of its own."""
    zero_negative: bool
    """A negative prompt that is not given is all zeros instead of the encoding of an empty text."""
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
        """The U-Net also takes a mask and the masked image's latents (Rombach et al. 2022, section 4.5)."""
        return self.unet_channels == 2 * self.latent_channels + 1

    @property
    def max_clip_skip(self) -> int:
        """How many layers a request may skip in every text encoder."""
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


def parse_range(name: str, value: Any) -> Any:
    """A `Dim` from `min:opt:max`, `min:max` (opt = max) or one number (static).

    Raises:
        RequestError: the text is none of these.
    """
    if isinstance(value, Dim):
        return value
    try:
        parts = [int(part) for part in str(value).split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3:
        raise RequestError(f"{name} {value}: a range is written min:opt:max, min:max or one number")
    return Dim(name, parts[0], parts[1 if len(parts) > 1 else 0], parts[-1])


def _range(name: str) -> Any:
    return Annotated[
        Dim, BeforeValidator(lambda value: parse_range(name, value)), PlainSerializer(str, return_type=str)
    ]


class Limits(Record):
    """The requests a bundle or a build serves: images per request, pixels, tokens of prompt (77 per chunk).

    `vae_images`: images that the VAE takes at once; larger requests go through it in slices, which bounds its memory.
    """

    STEP: ClassVar[dict[str, int]] = {
        "images": 1,
        "width": 8,
        "height": 8,
        "tokens": TOKENS_PER_CHUNK,
        "vae_images": 1,
    }

    images: _range("images")  # type: ignore[valid-type]
    width: _range("width")  # type: ignore[valid-type]
    height: _range("height")  # type: ignore[valid-type]
    tokens: _range("tokens")  # type: ignore[valid-type]
    vae_images: _range("vae_images")  # type: ignore[valid-type]

    def model_post_init(self, _context: Any, /) -> None:
        """Raise `RequestError` where a bound is not a multiple of its step."""
        for name, step in self.STEP.items():
            if any(bound % step for bound in self.bounds(name)):
                raise RequestError(f"{name} {getattr(self, name)}: every bound must be a multiple of {step}")
        if self.bounds("vae_images")[0] != 1:
            raise RequestError(f"vae_images {self.vae_images}: must begin at 1, for the last slice of a request")

    def bounds(self, name: str) -> tuple[int, int, int]:
        """(min, opt, max) of `images`, `width`, `height` or `tokens`."""
        dim: Dim = getattr(self, name)
        return dim.min, dim.opt, dim.max

    def replace(self, **ranges: str | Dim | None) -> "Limits":
        """These limits with some ranges changed; None keeps a range."""
        if unknown := ranges.keys() - self.STEP.keys():
            raise RequestError(f"{', '.join(sorted(unknown))}: no such range; the ranges are {', '.join(self.STEP)}")
        given = {name: value for name, value in ranges.items() if value is not None}
        return Limits(**{name: given.get(name, getattr(self, name)) for name in self.STEP})

    @classmethod
    def around(cls, native_size: int) -> "Limits":
        """The default: half to one and a half times the native size, up to 4 images and 3 chunks of tokens."""
        half = native_size // 2 // 8 * 8
        pixels = f"{half}:{native_size}:{native_size + half}"
        return cls(images="1:1:4", width=pixels, height=pixels, tokens="77:77:231", vae_images="1:1:1")
