"""What a request gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.record.metadata import Metadata
from latentrt.runtime.record.png import save_images
from latentrt.runtime.request.request import Request


@dataclass(frozen=True, slots=True)
class Result:
    """What a request gave: pictures, the final latents (images, 4, h, w), seconds per stage, and the request itself.

    `metadata`: the request as it can be written down, where it was given as prompt and settings.
    """

    images: list[Image.Image]
    latents: Float32s
    timings: Mapping[str, float]
    request: Request
    metadata: Metadata | None = None

    def save(self, path: str | Path) -> list[Path]:
        """Write `path`, or several pictures as `path` with -1, -2, ..., each PNG with its metadata (docs/generate.md).

        Gives the files' paths.
        """
        return save_images(self.images, Path(path), self.metadata)
