"""Files shared between processes: the user's cache folder, locks and atomic writes."""

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from latentrt.runtime.errors import BuildError, told_as

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def cache_folder() -> Path:
    """The user's cache folder, absolute: `$LATENTRT_HOME`, `$XDG_CACHE_HOME/latentrt` or `~/.cache/latentrt`."""
    if named := os.environ.get("LATENTRT_HOME"):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")).absolute() / "latentrt"


@contextmanager
def locked(file: Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Hold `file` as a lock between processes; the system releases it when its holder ends, for whatever reason.

    Raises:
        BuildError: another process holds it and `wait` is false; the message is `busy` and that process's id. Or the
            system refuses the file.
    """
    with told_as(BuildError, file, "used as a lock"):
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = file.open("a+", encoding="ascii")
    with opened as stream:
        if not _acquire(stream, wait):
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise BuildError(f"{busy} (process {holder}). Wait for it to end, or stop it")
        # On Windows, other processes could not read it from a locked file.
        if sys.platform != "win32":
            with told_as(BuildError, file, "used as a lock"):
                stream.truncate(0)
                stream.write(str(os.getpid()))
                stream.flush()
        yield


def _acquire(stream: IO[Any], wait: bool) -> bool:
    """Lock an open file until it is closed; False where another process holds it."""
    try:
        if sys.platform == "win32":
            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def write_atomically(file: Path, data: Any) -> None:
    """Write bytes such that the file is the old one or the new one at any moment, even if the power fails.

    Of a link, what it leads to is renewed. A file that is there keeps its permissions; to a device or a pipe the bytes
    are just written.

    Raises:
        OSError: names `file`; nothing is left beside it.
    """
    try:
        _replace(Path(os.path.realpath(file)), data)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error


def _replace(target: Path, data: Any) -> None:
    if target.exists() and not target.is_file():
        with target.open("wb") as stream:
            stream.write(memoryview(data))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}.new")
    try:
        with temporary.open("xb") as stream:
            stream.write(memoryview(data))
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
