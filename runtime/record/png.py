"""PNG files that say how their picture was drawn.

Their text chunks are `parameters`, as the AUTOMATIC1111 web interface writes it, and `latentrt`, `Metadata` as JSON.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from latentrt.runtime.errors import RequestError
from latentrt.runtime.record import webui
from latentrt.runtime.record.metadata import FORMAT, PICTURES, Metadata
from latentrt.runtime.record.webui import Parameters

KEY = "latentrt"
WEBUI_KEY = "parameters"


def save_images(images: Sequence[Image.Image], path: Path, metadata: Metadata | None = None) -> list[Path]:
    """Write `path`, or several pictures as `path` with -1, -2, ... before the suffix; make missing folders.

    Raises:
        RequestError: there is nothing to write, or it cannot be written there.
    """
    if not images:
        raise RequestError(f"{path}: there is no picture to save; the request had decode=False")
    check_output(path)
    files = [path.with_stem(f"{path.stem}-{number}") for number in range(1, len(images) + 1)]
    files = files if len(files) > 1 else [path]
    for number, (file, image) in enumerate(zip(files, images, strict=True), 1):
        text = PngInfo()
        if metadata is not None:
            numbered = metadata.model_copy(update={"picture": number})
            text.add_text(WEBUI_KEY, webui.write(numbered))
            text.add_text(KEY, json.dumps(numbered.model_dump()))
        try:
            image.save(file, format="PNG", pnginfo=text)
        except OSError as error:
            raise RequestError(f"{file}: cannot be written ({error.strerror or error})") from error
    return files


def check_output(path: Path) -> None:
    """Make the folder of a file that is to be written, and raise `RequestError` if it cannot be written there."""
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path}: pictures are written as PNG; name it {path.with_suffix('.png').name}")
    if path.is_dir():
        raise RequestError(f"{path}: a folder; name a file in it, such as {path / 'out.png'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{path.parent}: cannot be made ({error.strerror or error})") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise RequestError(f"{path}: cannot be written, permission is missing. Name another place")


def read_request(file: Path, sampler: bool = True) -> Metadata | Parameters:
    """Read from a PNG how it was drawn, as latentrt or else the web interface wrote it.

    `sampler`: False ignores the web interface's sampler, which may be one that latentrt does not have.

    Raises:
        RequestError: not a picture, or one without a text that can be read.
    """
    try:
        with Image.open(file) as image:
            image.load()
            texts = dict(image.info)
    except (OSError, SyntaxError, ValueError) as error:
        raise RequestError(f"{file}: not readable as a picture ({error})") from error
    if isinstance(text := texts.get(KEY), str):
        return _parse(file, text)
    if isinstance(text := texts.get(WEBUI_KEY), str):
        try:
            return webui.read(text, sampler)
        except RequestError as error:
            raise RequestError(f"{file}: {error}") from error
    raise RequestError(
        f"{file}: it does not say how it was drawn; it has neither the text `{KEY}` nor `{WEBUI_KEY}`. "
        "Tools that edit or send pictures often drop such texts: use the PNG as it was written"
    )


def _parse(file: Path, text: str) -> Metadata:
    where = f"{file}: its text `{KEY}`"
    try:
        values = json.loads(text)
        written = values.get("format") if isinstance(values, dict) else None
        if written != FORMAT:
            raise RequestError(f"{where} has format {written!r}, this latentrt reads format {FORMAT}; update latentrt")
        metadata = Metadata.model_validate(values)
        for name in PICTURES:
            metadata.picture_notes(name)
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"{where} is damaged: field {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (TypeError, ValueError) as error:
        raise RequestError(f"{where} is damaged: {error}") from error
    return metadata
