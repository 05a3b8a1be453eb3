"""The result of a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.record.metadata import Metadata
from latentrt.runtime.record.picture_files import save_images
from latentrt.runtime.request.request import Request


@dataclass(frozen=True, slots=True)
class Result:
    """Pictures, the final latents (images, 4, h, w), seconds per stage, and the request as it was run.

    `metadata`: the request as picture files hold it; None if it was not given as a prompt and settings.
    """

    images: list[Image.Image]
    latents: Float32s = field(repr=False)
    timings: Mapping[str, float]
    request: Request = field(repr=False)
    metadata: Metadata | None = None

    def save(
        self, target: str | PathLike[str] | BinaryIO, *, format: str | None = None, quality: int | None = None
    ) -> list[Path]:
        """Write picture files with their metadata (docs/generate.md), and return their paths.

        `target`: a path, which several pictures have with -1, -2, ...; or a stream for one picture. A file that is
        there is replaced, in one moment. `format`: png, jpeg, webp or avif; by default the path's suffix says which,
        and a stream gets PNG. `quality`: 1 to 100 for the formats that lose something; WebP loses nothing at 100.

        Raises:
            RequestError: there is no picture, or it cannot be written there.
        """
        return save_images(self.images, target, self.metadata, format=format, quality=quality)
