"""The result of a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.record.metadata import Metadata
from latentrt.runtime.record.png import save_images
from latentrt.runtime.request.request import Request


@dataclass(frozen=True, slots=True)
class Result:
    """Pictures, the final latents (images, 4, h, w), seconds per stage, and the request as it was run.

    `metadata`: the request as PNGs hold it; None if it was not given as a prompt and settings.
    """

    images: list[Image.Image]
    latents: Float32s = field(repr=False)
    timings: Mapping[str, float]
    request: Request = field(repr=False)
    metadata: Metadata | None = None

    def save(self, path: str | Path) -> list[Path]:
        """Write PNGs with their metadata (docs/generate.md): `path`, or several as `path` with -1, -2, ...

        Returns the files' paths.
        """
        return save_images(self.images, Path(path), self.metadata)
