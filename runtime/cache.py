"""Files shared between processes: the user's cache folder, locks and atomic writes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from latentrt.runtime.errors import BuildError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def cache_folder() -> Path:
    """The user's cache folder: `$LATENTRT_HOME`, `$XDG_CACHE_HOME/latentrt` or `~/.cache/latentrt`."""
    named = os.environ.get("LATENTRT_HOME")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentrt"


@contextmanager
def locked(file: Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Hold `file` as a lock between processes; the system releases it when its holder ends, for whatever reason.

    Raises:
        BuildError: another process holds it and `wait` is false; the message is `busy` and that process's id.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="ascii") as stream:
        if not _acquire(stream, wait):
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise BuildError(f"{busy} (process {holder}). Wait for it to end, or stop it")
        # On Windows, other processes could not read it from a locked file.
        if sys.platform != "win32":
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
    """Write bytes such that the file is the old one or the new one at any moment, even if the power fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(memoryview(data))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
