"""Picture files that say how their picture was drawn.

They hold two texts: `parameters`, as the AUTOMATIC1111 web interface writes it, and `latentrt`, `Metadata` as JSON.
"""

import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from latentrt.runtime.cache import write_atomically
from latentrt.runtime.errors import RequestError, shown, told_as
from latentrt.runtime.record import webui
from latentrt.runtime.record.formats import KEY, WEBUI_KEY, Texts, check_quality, encode, find_format, read_texts
from latentrt.runtime.record.metadata import FORMAT, PICTURES, Metadata
from latentrt.runtime.record.webui import Parameters

LEAST_BYTES = 65_536
"""Bytes that must be free where a picture is to be written."""


def save_images(
    images: Sequence[Image.Image],
    target: Any,
    metadata: Metadata | None = None,
    *,
    format: str | None = None,
    quality: int | None = None,
) -> list[Path]:
    """Write a path, or several pictures as the path with -1, -2, ... before the suffix; or one picture to a stream.

    Missing folders are made. Each file is the old one or the new one at any moment.

    Raises:
        RequestError: there is nothing to write, or it cannot be written there.
    """
    check_quality(quality)
    if callable(getattr(type(target), "write", None)):
        _write_stream(images, target, metadata, format, quality)
        return []
    if not isinstance(target, str | os.PathLike) or not str(target):
        raise RequestError(f"{shown(target)}: must be a path, or a stream that is open for bytes")
    path = Path(target)
    check_images(images, path)
    check_output(path, format)
    files = numbered(path, len(images))
    for number, file in enumerate(files, 1):
        write_picture(images[number - 1], file, metadata, number, format=format, quality=quality)
    return files


def numbered(path: Path, count: int) -> list[Path]:
    """The path for one picture; for several, one path each, with -1, -2, ... before the suffix."""
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)] if count > 1 else [path]


def write_picture(
    image: Image.Image,
    file: Path,
    metadata: Metadata | None,
    number: int = 1,
    *,
    format: str | None = None,
    quality: int | None = None,
) -> None:
    """Write one picture. `number`: which of its batch it is, from 1.

    Raises:
        RequestError: it cannot be written there.
    """
    data = encode(image, find_format(file, format), picture_texts(metadata, number), quality, file)
    with told_as(RequestError, file, "written"):
        write_atomically(file, data)


def _write_stream(
    images: Sequence[Image.Image], stream: Any, metadata: Metadata | None, format: str | None, quality: int | None
) -> None:
    check_images(images, "stream")
    if len(images) > 1:
        raise RequestError(f"stream: takes one picture, and there are {len(images)}. Save them to a path")
    form = find_format(Path("stream"), "png" if format is None else format)
    data = encode(images[0], form, picture_texts(metadata, 1), quality, "stream")
    try:
        stream.write(data)
    except Exception as error:  # a foreign stream may raise anything
        raise RequestError(f"stream: cannot be written ({error}). It must be open, and take bytes") from error


def check_images(images: Sequence[Image.Image], target: object) -> None:
    """Raise `RequestError` if there is no picture."""
    if not images:
        raise RequestError(f"{target}: there is no picture to save; the request had decode=False")


def picture_texts(metadata: Metadata | None, number: int = 1) -> Texts:
    """The texts in the file of picture `number`, from 1; none without metadata."""
    if metadata is None:
        return {}
    own = metadata.model_copy(update={"picture": number})
    return {WEBUI_KEY: webui.write(own), KEY: json.dumps(own.model_dump())}


def check_output(path: Path, format: str | None = None) -> None:
    """Make the folder of a file that is to be written, and raise `RequestError` if it cannot be written there.

    Of a link, the place that it leads to is checked.
    """
    with told_as(RequestError, path, "written"):
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # a name that is too long, a link to itself, a folder that is closed
        is_folder, place = path.is_dir(), Path(os.path.realpath(path))
    if is_folder:
        raise RequestError(f"{path}: a folder; name a file in it, such as {path / 'out.png'}")
    find_format(path, format)
    with told_as(RequestError, place.parent, "made"):
        place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and not place.is_file():
        return  # a device or a pipe
    probe = place.with_name(f".{secrets.token_hex(8)}.new")
    with told_as(RequestError, path, "written"):
        try:
            probe.write_bytes(bytes(LEAST_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    if place.exists() and not os.access(place, os.W_OK):
        raise RequestError(f"{path}: cannot be written, permission is missing. Name another place")


def read_request(file: Path, sampler: bool = True) -> Metadata | Parameters:
    """Read from a picture file how it was drawn, as latentrt or else the web interface wrote it.

    `sampler`: False ignores the web interface's sampler, which may be one that latentrt does not have.

    Raises:
        RequestError: not a picture, or one without a text that can be read.
    """
    texts = read_texts(file)
    if KEY in texts:
        return _parse(file, texts[KEY])
    if WEBUI_KEY in texts:
        try:
            return webui.read(texts[WEBUI_KEY], sampler)
        except RequestError as error:
            raise RequestError(f"{file}: {error}") from error
    raise RequestError(
        f"{file}: it does not say how it was drawn; it has neither the text `{KEY}` nor `{WEBUI_KEY}`. "
        "Tools that edit or send pictures often drop such texts: use the file as it was written"
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
