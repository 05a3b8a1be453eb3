"""Where `-o` puts pictures: a file, a folder, names with fields, or stdout. Nothing is overwritten without --force."""

import logging
import os
import re
import string
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from latentrt.cli.output import writing
from latentrt.runtime.errors import RequestError
from latentrt.runtime.record.formats import find_format
from latentrt.runtime.record.metadata import Metadata
from latentrt.runtime.record.picture_files import check_output, numbered, save_images, write_picture
from latentrt.runtime.request.request import Request

logger = logging.getLogger(__name__)

STDOUT = "-"

IN_FOLDER = "{n:05}-{seed}.png"
"""Names in a folder that `-o` names."""

FIELDS = ("n", "seed", "sampler", "steps", "width", "height")
"""What a name may hold in braces; `n` is a number that goes on after those in the folder."""

PROBE = dict.fromkeys(FIELDS, 10**9) | {"sampler": "s" * 20}
"""Values with which a name is checked before the real ones are known."""

Values = Mapping[str, Any]
"""The values of a picture's fields, all but `n`."""


@dataclass(frozen=True, slots=True)
class Destination:
    """What `-o` names; `text` is None where it was not given.

    Raises:
        BadParameter: a field in the name is not one that there is.
    """

    text: str | None
    default: str = "out.png"
    force: bool = False
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.text == "":
            raise _wrong("an empty name; leave -o out for out.png")
        pattern = self._pattern(1)
        for part, known in ((str(pattern.parent), FIELDS[1:]), (pattern.name, FIELDS)):
            if unknown := [field for field in _fields(part) if field not in known]:
                names = ", ".join(f"{{{name}}}" for name in known)
                raise _wrong(f"{{{unknown[0]}}} in {part}: it may hold {names}. A brace of its own is written twice")
        _expand(str(pattern), PROBE)

    @property
    def is_stdout(self) -> bool:
        """Whether the picture goes to stdout, and the command's last line to stderr."""
        return self.text == STDOUT

    def _pattern(self, count: int) -> Path:
        """The path for so many pictures, with its fields."""
        if self.text is None:
            default = Path(self.default)
            free = self.force or (count == 1 and not os.path.lexists(default))
            return default if free else default.with_stem(f"{default.stem}-{{n}}")
        is_folder = self.text.endswith(("/", os.sep)) or os.path.isdir(self.text)
        return Path(self.text) / IN_FOLDER if is_folder else Path(self.text)

    def check(self, count: int = 1, inputs: Sequence[Path] = ()) -> None:
        """Check, before anything is drawn, that `count` pictures can be written there.

        Raises:
            BadParameter: more than one picture for stdout, or stdout is a terminal.
            RequestError: a place that cannot be written, that holds a file, or from which a picture is read (`inputs`).
        """
        if self.is_stdout:
            if count > 1:
                raise _wrong(f"- takes one picture, not {count}")
            if sys.stdout.isatty():
                raise _wrong("stdout is a terminal; lead the picture into a file or a program")
            return
        pattern = self._pattern(count)
        find_format(pattern)
        folder = pattern.parent
        while _fields(str(folder)):
            folder = folder.parent
        files = [folder / _expand(pattern.name, PROBE)]
        if not _fields(str(pattern)):
            files = numbered(Path(_expand(str(pattern), {})), count)
        check_output(files[-1])
        for file in files:
            if _is_one_of(file, inputs):
                raise RequestError(f"{file}: it is read for this picture, and is never overwritten. Name another file")
            if self._is_taken(file):
                numbers = pattern.with_stem(f"{pattern.stem}-{{n}}")
                raise RequestError(
                    f"{file}: exists. Add --force to replace it, or name another file, such as {numbers}"
                )

    def _is_taken(self, file: Path) -> bool:
        """Whether a picture would replace what it must not. Whoever names a link wants what it leads to renewed."""
        return file.is_dir() or (file.is_file() and not file.is_symlink() and not self.force)

    def write(
        self,
        pictures: Sequence[Image.Image],
        values: Sequence[Values],
        metadata: Metadata | None = None,
        inputs: Sequence[Path] = (),
    ) -> list[Path]:
        """Write pictures, and return their files.

        A name that was taken meanwhile gets a number, so that no picture is lost.

        Raises:
            RequestError: a file cannot be written; the message says where the pictures are instead.
        """
        if self.is_stdout:
            with writing(sys.stdout):
                return save_images(pictures, sys.stdout.buffer, metadata)
        files: list[Path] = []
        for number, (picture, wanted) in enumerate(zip(pictures, self._names(values), strict=True), 1):
            file, more = wanted, 2
            while file in files or self._is_taken(file) or _is_one_of(file, inputs):
                file, more = wanted.with_stem(f"{wanted.stem}-{more}"), more + 1
            if file != wanted:
                logger.warning("%s: exists; the picture is written to %s", wanted, file)
            try:
                write_picture(picture, file, metadata, number, quality=self.quality)
            except RequestError as error:
                saved = _save_elsewhere(pictures[number - 1 :], file, metadata, number)
                raise RequestError(f"{error}. What was drawn is in {saved}" if saved else str(error)) from error
            files.append(file)
        return files

    def _names(self, values: Sequence[Values]) -> Iterator[Path]:
        """One name per picture, as they are asked for."""
        count = len(values)
        path = self._pattern(count)
        pattern = str(path)
        differs = "n" in _fields(pattern) or len({_expand(pattern, each) for each in values}) == count
        if not differs:
            pattern = str(path.with_stem(f"{path.stem}-{{picture}}"))
        number = 0
        for picture, each in enumerate(values, 1):
            folder = Path(_expand(str(path.parent), each))
            number = max(number, _last_number(folder, path.name)) + 1 if "n" in _fields(path.name) else 0
            yield Path(_expand(pattern, {**each, "n": number, "picture": picture}))


def _save_elsewhere(
    pictures: Sequence[Image.Image], wanted: Path, metadata: Metadata | None, first: int
) -> Path | None:
    """Save pictures that their place does not take in a new temporary folder, and return it; None if that fails, too.

    `first`: the number of the first one in its batch.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="latentrt-"))
        for number, picture in enumerate(pictures, first):
            write_picture(picture, folder / f"{wanted.stem}-{number}.png", metadata, number)
    except (OSError, RequestError):
        return None
    return folder


def field_values(request: Request) -> list[dict[str, Any]]:
    """The values of the fields, for each picture of a request."""
    seeds = request.seeds * request.count if len(request.seeds) == 1 else request.seeds
    shared = {name: getattr(request, name) for name in ("sampler", "steps", "width", "height")}
    return [{"seed": seed, **shared} for seed in seeds]


def _wrong(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="'-o'")


def _fields(text: str) -> list[str]:
    """The names of the fields in a text."""
    try:
        return [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise _wrong(f"{text}: {error}") from error


def _expand(text: str, values: Values) -> str:
    """A text with its fields filled in."""
    try:
        return text.format_map(values)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise _wrong(f"{text}: not a name with fields ({error})") from error


def _last_number(folder: Path, name: str) -> int:
    """The largest number that files of this name in the folder have; 0 if there is none."""
    parts = []
    for text, field, _, _ in string.Formatter().parse(name):
        parts.append(re.escape(text) + {None: "", "n": r"(\d+)"}.get(field, ".*?"))
    found = (re.fullmatch("".join(parts), file) for file in (os.listdir(folder) if folder.is_dir() else ()))
    return max((int(match[1]) for match in found if match), default=0)


def _is_one_of(file: Path, inputs: Sequence[Path]) -> bool:
    return any(file.exists() and other.exists() and os.path.samefile(file, other) for other in inputs)
