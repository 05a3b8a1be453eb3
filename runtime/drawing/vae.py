"""The VAE: pictures from latents, and the distribution of latents from pictures."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.backends import Backend, Engine
from latentrt.runtime.backends.call import EngineCall
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.specs import Precision
from latentrt.runtime.drawing.loop import KEPT_STEPS, overflow
from latentrt.runtime.errors import NumericsError
from latentrt.runtime.recent import Recent


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
        self._bound: Recent[tuple[str, int, int, int], EngineCall] = Recent(KEPT_STEPS)

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
            call = self._bind("vae_decoder", len(part), *part.shape[2:])
            call.run({"latent": part})
            pictures += waiting()
            waiting = _fetch_pictures(call, self._precision("vae_decoder"))
        return pictures + waiting()

    def encode(self, pixels: Float32s) -> tuple[Float32s, Float32s]:
        """Mean and standard deviation of the latents (n, 4, h, w) for pixels (n, 3, height, width) in -1 … 1.

        Raises:
            NumericsError: the encoder's outputs are not finite.
        """
        scale = self._model.latent_scale
        means, deviations = [], []
        for part in self._parts("vae_encoder", pixels):
            call = self._bind("vae_encoder", len(part), part.shape[2] // scale, part.shape[3] // scale)
            call.run({"image": part})
            outputs = call.fetch()()
            means.append(outputs["mean"].astype(np.float32))
            deviations.append(np.exp(outputs["logvar"].astype(np.float32) / 2))
        if not all(np.isfinite(values).all() for values in (*means, *deviations)):
            raise NumericsError(
                f"vae_encoder: the latents hold NaN or infinity. {overflow(self._precision('vae_encoder'))}"
            )
        return np.concatenate(means), np.concatenate(deviations)

    def _parts(self, component: str, values: Float32s) -> list[Float32s]:
        """Slices of a batch, as large as the component takes at once."""
        at_once = self._engine(component).spec.dims["vae_images"].max
        return [values[first : first + at_once] for first in range(0, len(values), at_once)]

    def _bind(self, component: str, images: int, height: int, width: int) -> EngineCall:
        sizes = {"vae_images": images, "latent_height": height, "latent_width": width}
        return self._bound.get(
            (component, images, height, width), lambda: EngineCall(self._backend, self._engine(component), sizes)
        )

    def close(self) -> None:
        """Release the buffers."""
        self._bound.clear()


def _fetch_pictures(decoder: EngineCall, precision: Precision) -> Callable[[], list[Image.Image]]:
    """Start copying the decoder's outputs to the host; the function returned waits for them and makes pictures."""
    take = decoder.fetch()

    def pictures() -> list[Image.Image]:
        outputs = take()
        if not np.isfinite(outputs["magnitude"]).all():
            raise NumericsError(f"vae_decoder: the image holds NaN or infinity. {overflow(precision)}")
        return [Image.fromarray(pixels) for pixels in outputs["image"]]

    return pictures
