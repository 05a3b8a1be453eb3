"""Pictures as they come and go over HTTP: base64 texts and files, checked before they are decoded."""

import base64
import binascii
import io
import re
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from latentrt.runtime import RequestError
from latentrt.runtime.arrays import Float32s
from latentrt.runtime.record.formats import encode, find_format
from latentrt.runtime.record.metadata import Metadata
from latentrt.runtime.record.picture_files import picture_texts
from latentrt.serve.limits import ServerLimits

Format = Literal["png", "jpeg", "webp"]
"""The formats in which pictures are answered."""

FORMATS: tuple[Format, ...] = get_args(Format)

READ = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""The formats that are read; Pillow has others, which few need and fewer have tested."""

DATA_URL = re.compile(r"data:[\w/+.-]*(?:;[\w=.-]+)*;base64,", re.ASCII)


def decode_base64(name: str, text: object) -> bytes:
    """The bytes of a base64 text, or of a `data:` URL.

    Raises:
        RequestError: it is neither.
    """
    if not isinstance(text, str):
        raise RequestError(f"{name}: must be a base64 text")
    match = DATA_URL.match(text)
    try:
        return base64.b64decode("".join(text[match.end() if match else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{name}: not base64 ({error})") from error


def encode_base64(data: bytes) -> str:
    """Bytes as a base64 text."""
    return base64.b64encode(data).decode("ascii")


def read_picture(name: str, data: bytes, limits: ServerLimits) -> Image.Image:
    """Decode a picture, after its size was checked.

    Raises:
        RequestError: not a picture, or one of too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=READ)
        if image.width * image.height > limits.pixels:
            raise RequestError(
                f"{name}: {image.width} x {image.height} pixels; this server takes up to {limits.pixels}. Make it "
                "smaller"
            )
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestError(f"{name}: too many pixels; this server takes up to {limits.pixels}") from error
    except UnidentifiedImageError as error:  # its text names an object of Python's
        raise RequestError(f"{name}: not readable as a picture; give a PNG, JPEG or WebP") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise RequestError(f"{name}: not readable as a picture ({error}); give a PNG, JPEG or WebP") from error
    return image


def has_alpha(image: Image.Image) -> bool:
    """Whether a picture has transparency."""
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


def encode_picture(
    image: Image.Image, format: Format = "png", quality: int = 90, metadata: Metadata | None = None, number: int = 1
) -> bytes:
    """A picture as a file that says how it was drawn. `quality`, 0 to 100, is that of JPEG and WebP."""
    name = Path(f"picture.{format}")
    return encode(image, find_format(name), picture_texts(metadata, number), max(1, quality), name)


def read_latents(data: bytes, limits: ServerLimits) -> Float32s:
    """The array in an .npy file, which may hold numbers alone.

    Raises:
        RequestError: not such a file, or a larger one than a request may need.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(file)
        if dtype.kind not in "fiu" or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(data) - file.tell():
            raise ValueError("it does not hold the numbers that it announces")
        file.seek(0)
        array: Float32s = np.load(file, allow_pickle=False).astype(np.float32)
    except (ValueError, EOFError, OSError, TypeError) as error:
        raise RequestError(f"latents: not an .npy file of numbers ({error})") from error
    if array.size > limits.pixels * limits.pictures:
        raise RequestError(f"latents: shape {list(array.shape)} is too large for this server")
    return array


def write_latents(latents: Float32s) -> bytes:
    """Latents as an .npy file."""
    file = io.BytesIO()
    np.save(file, latents)
    return file.getvalue()
