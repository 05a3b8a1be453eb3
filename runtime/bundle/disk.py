"""Where a bundle is written: whether it can be, before the work, and what a disk says during it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentrt.runtime.errors import BundleError, LatentRTError

SUFFIX = ".new-4194304"
"""The longest that is appended to a folder's name while it is written: a process's id."""


def check_target(target: Path) -> Path:
    """Check that a bundle can be written at `target`; returns the place itself where `target` is a link to one.

    Nothing is made or changed.

    Raises:
        BundleError: it cannot be: a link to nothing, a file where a folder is needed, a name that is too long, or a
            folder that may not be written.
    """
    try:
        refuse_dangling(target, target)
        # A link stays: what it leads to is replaced.
        place = target.resolve() if target.is_symlink() or target.name in ("", "..") else target.absolute()
        parent = existing_folder(place.parent)
        refuse_dangling(parent, target)
        longest = os.pathconf(parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        names = [*place.relative_to(parent).parts[:-1], f".{place.name}{SUFFIX}"]
    except (OSError, ValueError) as error:
        raise BundleError(f"{target}: no place for a bundle ({reason(error)}). Name another folder") from error
    if any(len(os.fsencode(name)) > longest for name in names):
        raise BundleError(f"{target}: the name is too long for this disk. Name a shorter one")
    if not parent.is_dir():
        raise BundleError(f"{target}: {parent} is a file, not a folder. Name another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BundleError(f"{target}: {parent} cannot be written: permission is missing, or its disk is read-only")
    return place


def refuse_dangling(link: Path, target: Path) -> None:
    """Raise `BundleError` if a path, at or above `target`, is a link to nothing."""
    if link.is_symlink() and not link.exists():
        where = "" if link == target else f"{link} is "
        raise BundleError(f"{target}: {where}a link to {os.readlink(link)}, where nothing is. Name a folder instead")


def existing_folder(path: Path) -> Path:
    """The path itself if it exists, else the nearest path above it that does; a link to nothing exists."""
    while not (path.exists() or path.is_symlink()) and path != path.parent:
        path = path.parent
    return path


def check_space(target: Path, needed: int, what: str, error: type[LatentRTError] = BundleError) -> None:
    """Raise `error` if the disk of `target` lacks room for `needed` bytes, the least that will be written there.

    `what` begins the message's second part: "the export".
    """
    free = shutil.disk_usage(existing_folder(target.absolute())).free
    if free < needed:
        raise error(
            f"{target}: {what} needs at least {size(needed)} there, and its disk has {size(free)} free. "
            "Make room, or name another place"
        )


def size(count: int) -> str:
    """Bytes for people to read."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def reason(error: Exception) -> str:
    """What went wrong, without Python's error number."""
    return str(getattr(error, "strerror", None) or error)


@contextmanager
def disk_errors(place: Path, error: type[LatentRTError]) -> Iterator[None]:
    """Turn errors of the disk within the block into `error`, with the name of the file, or else `place`."""
    try:
        yield
    except OSError as found:
        # libraries raise OSErrors of their own, without a number, whose text says all
        where = found.filename or place
        raise error(f"{where}: {reason(found)}. What was there before is untouched") from found
