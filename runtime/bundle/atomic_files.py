"""Reads, checks and writes a bundle's files; a kill at any moment leaves the old state or the new one."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile, rmtree
from typing import TypeVar

from pydantic import ValidationError

from latentrt.runtime.bundle.base import FORMAT, FileRecord, Record
from latentrt.runtime.bundle.disk import check_target
from latentrt.runtime.cache import write_atomically
from latentrt.runtime.errors import BundleError, RequestError, told_as

MANIFEST, BUILD = "manifest.json", "build.json"

KERNELS = "kernels"
"""Folder for the kernels that an engine compiles on the user's GPU, in a build's folder or the user's cache."""

RecordT = TypeVar("RecordT", bound=Record)


def read_record(file: Path, kind: type[RecordT]) -> RecordT:
    """Read a manifest or a build record; its format is checked before anything else.

    Raises:
        BundleError: not JSON, a newer format, or fields that are missing, unknown or of the wrong type.
    """
    remedy = "export the checkpoint again" if file.name == MANIFEST else "run build-engine again"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: not readable as a manifest ({type(error).__name__}: {error}); {remedy}") from error
    if not isinstance(values, dict) or "format" not in values:
        raise BundleError(f"{file}: not a manifest, it states no format; {remedy}")
    found = values["format"]
    if type(found) is not int or found != FORMAT:
        newer = "update latentrt, or " if isinstance(found, int) and found > FORMAT else ""
        raise BundleError(f"{file}: format {found!r}, this latentrt reads format {FORMAT}; {newer}{remedy}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{file}: field {where}: {first['msg']}. The file is damaged; {remedy}") from error
    except RequestError as error:
        raise BundleError(f"{file}: {error}. The file is damaged; {remedy}") from error


def write_record(file: Path, record: Record) -> None:
    """Write a manifest or a build record, atomically.

    Raises:
        BundleError: the system refuses it.
    """
    with told_as(BundleError, file, "written"):
        write_atomically(file, (record.model_dump_json(indent=2) + "\n").encode())


def check_sizes(folder: Path, files: Mapping[str, FileRecord], remedy: str) -> None:
    """Raise `BundleError` for the first file that lies outside the folder, is missing, or has another size."""
    for name, record in files.items():
        file = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise BundleError(f"{folder}: the manifest names {name!r}, which lies outside. {remedy}")
        with told_as(BundleError, file, "read"):
            size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise BundleError(f"{file}: missing. {remedy}")
        if size != record.size:
            raise BundleError(f"{file}: {size} bytes, the manifest says {record.size}. {remedy}")


def describe_file(file: Path) -> FileRecord:
    """Size and SHA-256 of a file.

    Raises:
        BundleError: it cannot be read.
    """
    with told_as(BundleError, file, "read"), file.open("rb") as stream:
        return FileRecord(size=file.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def bundle_target(target: Path) -> Path:
    """Check that a bundle can be written at `target`, before the work; returns the place, as `check_target` does.

    Raises:
        BundleError: it cannot be written, or what is there is not a bundle; replacing it would destroy it.
    """
    place = check_target(target)
    if place.exists() and not (place / MANIFEST).is_file() and not (place.is_dir() and not any(place.iterdir())):
        raise BundleError(f"{target}: exists and is not a bundle; it would be lost. Name another folder")
    return place


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling folder that replaces `target` when the block ends without an error.

    An error or a kill leaves what was at `target` untouched. What killed processes left beside it is removed. Where
    `target` is a link, the folder that it leads to is replaced.

    Raises:
        BundleError: as `bundle_target`, or the system refuses it.
    """
    target = bundle_target(target)
    temporary = target.with_name(f".{target.name}.new-{os.getpid()}")
    retired = target.with_name(f".{target.name}.old-{os.getpid()}")
    with told_as(BundleError, target, "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _tidy(target)
        temporary.mkdir()
    try:
        yield temporary
        with told_as(BundleError, target, "written"):
            if target.exists():
                target.rename(retired)
            temporary.rename(target)
    except BaseException:
        if retired.exists() and not target.exists():
            retired.rename(target)
        raise
    finally:
        rmtree(temporary, ignore_errors=True)
        rmtree(retired, ignore_errors=True)


def _tidy(target: Path) -> None:
    """Restore the old folder if a process was killed between the two renames; remove what else killed ones left."""
    for kind in ("old", "new"):
        for left in target.parent.glob(f".{target.name}.{kind}-*"):
            process = left.name.rpartition("-")[2]
            if process.isdigit() and not (process != str(os.getpid()) and _runs(int(process))):
                if kind == "old" and not target.exists():
                    left.rename(target)
                rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make a file available at a second place: hard-linked where both are on one disk, otherwise copied."""
    try:
        os.link(source, target)
    except OSError:
        copyfile(source, target)
