"""The VAE: pictures from latents, and the distribution of latents from pictures."""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.backends import Backend, Buffer, Engine
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.specs import Precision
from latentrt.runtime.drawing.loop import KEPT_STEPS, overflow
from latentrt.runtime.errors import NumericsError
from latentrt.runtime.recent import Recent

Bound = tuple[Mapping[str, Buffer], Callable[[], None]]
"""Buffers by port, and the function that runs the engine on them."""


class Vae:
    """Encoder and decoder of one bundle; each takes as many images at once as it serves.

    `engine` gives a component's engine, and loads it if needed; `precision` a component's precision.
    """

    def __init__(
        self,
        backend: Backend,
        model: Model,
        engine: Callable[[str], Engine],
        precision: Callable[[str], Precision],
    ):
        self._backend = backend
        self._precision = precision
        self._model = model
        self._engine = engine
        self._bound: Recent[tuple[str, int, int, int], Bound] = Recent(KEPT_STEPS)

    def decode(self, latents: Float32s) -> list[Image.Image]:
        """Pictures from the loop's latents (images, 4, h, w).

        While the device decodes one part of the batch, the host makes pictures of the part before.

        Raises:
            NumericsError: a picture is not finite.
        """
        scaled = self._model.to_vae(latents)
        pictures: list[Image.Image] = []
        waiting: Callable[[], list[Image.Image]] = list
        for part in self._parts("vae_decoder", scaled):
            buffers, run = self._bind("vae_decoder", len(part), *part.shape[2:])
            buffers["latent"].write(part)
            run()
            pictures += waiting()
            waiting = _fetch_pictures(buffers, self._precision("vae_decoder"))
        return pictures + waiting()

    def encode(self, pixels: Float32s) -> tuple[Float32s, Float32s]:
        """Mean and standard deviation of the latents (n, 4, h, w) for pixels (n, 3, height, width) in -1 … 1.

        Raises:
            NumericsError: the encoder's outputs are not finite.
        """
        scale = self._model.latent_scale
        means, deviations = [], []
        for part in self._parts("vae_encoder", pixels):
            buffers, run = self._bind("vae_encoder", len(part), part.shape[2] // scale, part.shape[3] // scale)
            buffers["image"].write(part)
            run()
            means.append(buffers["mean"].numpy().astype(np.float32))
            deviations.append(np.exp(buffers["logvar"].numpy().astype(np.float32) / 2))
        if not all(np.isfinite(values).all() for values in (*means, *deviations)):
            raise NumericsError(
                f"vae_encoder: the latents hold NaN or infinity. {overflow(self._precision('vae_encoder'))}"
            )
        return np.concatenate(means), np.concatenate(deviations)

    def _parts(self, component: str, values: Float32s) -> list[Float32s]:
        """Slices of a batch, as large as the component takes at once."""
        at_once = self._engine(component).spec.dims["vae_images"].max
        return [values[first : first + at_once] for first in range(0, len(values), at_once)]

    def _bind(self, component: str, images: int, height: int, width: int) -> Bound:
        def bind() -> Bound:
            sizes = {"vae_images": images, "latent_height": height, "latent_width": width}
            binding = self._engine(component).bind(sizes)
            return binding.buffers, self._backend.record(binding.run)

        return self._bound.get((component, images, height, width), bind)

    def close(self) -> None:
        """Release the buffers."""
        self._bound.clear()


def _fetch_pictures(buffers: Mapping[str, Buffer], precision: Precision) -> Callable[[], list[Image.Image]]:
    """Start copying the decoder's outputs to the host; the function returned waits for them and makes pictures."""
    magnitude, image = buffers["magnitude"].fetch(), buffers["image"].fetch()

    def pictures() -> list[Image.Image]:
        if not np.isfinite(magnitude()).all():
            raise NumericsError(f"vae_decoder: the image holds NaN or infinity. {overflow(precision)}")
        return [Image.fromarray(pixels) for pixels in image()]

    return pictures
