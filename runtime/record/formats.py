"""The formats of picture files, and the place in each for the texts that say how its picture was drawn.

PNG has text chunks. JPEG, WebP and AVIF have EXIF (CIPA DC-008): the AUTOMATIC1111 web interface writes its
`parameters` as the user's comment, and ours stand beside it as the maker's note.
"""

import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, features
from PIL.PngImagePlugin import PngInfo

from latentrt.runtime.errors import RequestError, shown
from latentrt.runtime.request.kinds import is_whole

log = logging.getLogger(__name__)

Texts = Mapping[str, str]
"""Texts by name: `KEY` is ours, `WEBUI_KEY` the web interface's."""

KEY = "latentrt"
WEBUI_KEY = "parameters"

UNICODE = b"UNICODE\0"
"""How a user's comment in UTF-16 begins (CIPA DC-008, 4.6.5, table 9); the web interface writes it big-endian."""

NOTE = b"latentrt\0"
"""How a maker's note begins that is ours."""

LONGEST_EXIF = 65_533
"""Bytes that a JPEG's EXIF may have."""

JPEG_QUALITY, WEBP_QUALITY, AVIF_QUALITY = 95, 95, 90


@dataclass(frozen=True, slots=True)
class Format:
    """A format: Pillow's name for it, its suffixes, and Pillow's options for a quality from 1 to 100, or None."""

    name: str
    suffixes: tuple[str, ...]
    options: Callable[[int | None], dict[str, Any]]
    largest: int
    """Pixels that a side may have."""


def _webp(quality: int | None) -> dict[str, Any]:
    return {"lossless": True} if quality == 100 else {"quality": quality or WEBP_QUALITY}


FORMATS: Mapping[str, Format] = {
    "png": Format("PNG", (".png",), lambda quality: {}, 2**31 - 1),
    "jpeg": Format(
        "JPEG", (".jpg", ".jpeg"), lambda quality: {"quality": quality or JPEG_QUALITY, "subsampling": 0}, 65_500
    ),
    "webp": Format("WEBP", (".webp",), _webp, 16_383),
    "avif": Format("AVIF", (".avif",), lambda quality: {"quality": quality or AVIF_QUALITY}, 65_535),
}
"""By name, as `Result.save` takes it."""


def find_format(path: Path, name: str | None = None) -> Format:
    """The format of a name, or else of a path's suffix.

    Raises:
        RequestError: neither is known, or this Pillow lacks it.
    """
    known = ", ".join(suffix for one in FORMATS.values() for suffix in one.suffixes)
    if name is not None:
        if not isinstance(name, str) or name.lower() not in FORMATS:
            raise RequestError(f"format {shown(name)}: must be one of {', '.join(FORMATS)}")
        found = FORMATS[name.lower()]
    else:
        by_suffix = {suffix: one for one in FORMATS.values() for suffix in one.suffixes}
        if path.suffix.lower() not in by_suffix:
            raise RequestError(
                f"{path}: the suffix says how a picture is written, and must be one of {known}; "
                f"name it {path.with_suffix('.png').name}"
            )
        found = by_suffix[path.suffix.lower()]
    if found.name == "AVIF" and not features.check("avif"):
        raise RequestError(f"{path}: this Pillow writes no AVIF. Update it with: pip install -U pillow")
    return found


def check_quality(quality: int | None) -> None:
    """Raise `RequestError` unless it is None or a whole number from 1 to 100."""
    if quality is not None and not is_whole(quality, 1, 100):
        raise RequestError(f"quality {shown(quality)}: must be a whole number from 1 to 100; PNG loses nothing anyway")


def encode(image: Image.Image, form: Format, texts: Texts, quality: int | None, file: object) -> bytes:
    """A picture file's bytes. `file`: its name, for messages.

    Raises:
        RequestError: the format does not take the picture.
    """
    if max(image.size) > form.largest:
        raise RequestError(f"{file}: {form.name} takes up to {form.largest} pixels a side; write a PNG")
    options = form.options(quality)
    if form.name == "PNG":
        options["pnginfo"] = _png_texts(texts)
    elif texts:
        options["exif"] = _exif(texts, LONGEST_EXIF if form.name == "JPEG" else None, file)
    stream = io.BytesIO()
    try:
        image.save(stream, format=form.name, **options)
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: not writable as {form.name} ({error}). Write a PNG") from error
    return stream.getvalue()


def _png_texts(texts: Texts) -> PngInfo:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return info


def _exif(texts: Texts, longest: int | None, file: object) -> bytes:
    """The texts as EXIF; ours, or both, are left out where they are too long for the format."""
    comment = UNICODE + texts[WEBUI_KEY].encode("utf-16-be")
    note = NOTE + texts[KEY].encode()
    for parts in ({"UserComment": comment, "MakerNote": note}, {"UserComment": comment}):
        exif = Image.Exif()
        exif.endian = ">"
        tags = exif.get_ifd(ExifTags.IFD.Exif)
        for name, value in parts.items():
            tags[ExifTags.Base[name]] = value
        data = exif.tobytes()
        if longest is None or len(data) <= longest:
            if len(parts) == 1:
                log.warning("%s: the request is too long for a JPEG, which holds its `parameters` alone", file)
            return data
    log.warning("%s: the request is too long for a JPEG, which does not say how it was drawn; write a PNG", file)
    return b""


def read_texts(file: Path) -> dict[str, str]:
    """The texts of a picture file in any of these formats.

    Raises:
        RequestError: not a picture that can be read.
    """
    try:
        with Image.open(file) as image:
            image.load()
            texts = {name: text for name, text in image.info.items() if isinstance(name, str) and isinstance(text, str)}
            tags = image.getexif().get_ifd(ExifTags.IFD.Exif)
    except Exception as error:  # Pillow's readers of damaged files raise many kinds
        raise RequestError(f"{file}: not readable as a picture ({error})") from error
    note = tags.get(ExifTags.Base.MakerNote)
    if isinstance(note, bytes) and note.startswith(NOTE):
        texts.setdefault(KEY, note.removeprefix(NOTE).decode(errors="replace"))
    comment = tags.get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and comment[8:].strip(b"\0 "):
        texts.setdefault(WEBUI_KEY, _comment(comment))
    return texts


def _comment(comment: bytes) -> str:
    """A user's comment as text: its first eight bytes name the characters."""
    kind, text = comment[:8], comment[8:]
    if kind != UNICODE:
        return (text if kind in (b"ASCII\0\0\0", b"\0" * 8) else comment).decode(errors="replace").rstrip("\0")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return text.decode("utf-16", errors="replace")
    zeros_first, zeros_second = text[0::2].count(0), text[1::2].count(0)
    return text.decode("utf-16-le" if zeros_second > zeros_first else "utf-16-be", errors="replace")
