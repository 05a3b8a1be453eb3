"""PNG files that say how their picture was drawn.

Their text chunks are `parameters`, as the AUTOMATIC1111 web interface writes it, and `latentrt`, `Metadata` as JSON.
"""

import json
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
    """Write `path`, or several pictures as `path` with -1, -2, ... before the suffix; make missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_stem(f"{path.stem}-{number}") for number in range(1, len(images) + 1)]
    files = files if len(files) > 1 else [path]
    for number, (file, image) in enumerate(zip(files, images, strict=True), 1):
        text = PngInfo()
        if metadata is not None:
            numbered = metadata.model_copy(update={"picture": number})
            text.add_text(WEBUI_KEY, webui.write(numbered))
            text.add_text(KEY, json.dumps(numbered.model_dump()))
        image.save(file, format="PNG", pnginfo=text)
    return files


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
