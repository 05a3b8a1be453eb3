"""Every error latentrt raises on purpose.

    LatentRTError
    ├── RequestError       the request asks for what this bundle or build does not serve
    ├── CheckpointError    the checkpoint is incomplete, unsafe or of an unknown family, or has an invalid config
    ├── BundleError        the bundle is damaged, truncated or from another format
    ├── BuildError         an engine could not be built as asked
    │   └── PrecisionError    the network would run in another precision than the one asked for
    ├── StaleBuildError    an engine exists, but was built for something else
    ├── BackendError       a backend is unknown, not installed, or failed
    ├── ParityError        a component's outputs differ from torch by more than the tolerance
    ├── NumericsError      a tensor holds NaN or infinity
    └── BenchmarkError     a benchmark cannot be run or read, or one of its scenarios failed

A message reads: subject, what was received, what is allowed, what to do. The command line prints it without a traceback
and exits with 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "BackendError",
    "BenchmarkError",
    "BuildError",
    "BundleError",
    "CheckpointError",
    "LatentRTError",
    "NumericsError",
    "ParityError",
    "PrecisionError",
    "RequestError",
    "StaleBuildError",
    "shown",
    "told_as",
]

SHOWN_LETTERS = 120
"""How much of a value a message shows."""


def shown(value: object) -> str:
    """A value in a message: on one line, as Python writes it, and cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a foreign object may raise anything
        text = f"(a {type(value).__name__})"
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}…"


class LatentRTError(Exception):
    """Base of every error that latentrt raises on purpose."""


class RequestError(LatentRTError):
    """The request asks for what this bundle or build does not serve."""


class CheckpointError(LatentRTError):
    """The checkpoint is incomplete, unsafe or of an unknown family, or has an invalid config."""


class BundleError(LatentRTError):
    """The bundle is damaged, truncated or from another format."""


class BuildError(LatentRTError):
    """An engine could not be built as asked."""


class PrecisionError(BuildError):
    """The network would run in another precision than the one asked for."""


class StaleBuildError(LatentRTError):
    """An engine exists, but was built for something else."""


class BackendError(LatentRTError):
    """A backend is unknown, not installed, or failed."""


class ParityError(LatentRTError):
    """A component's outputs differ from torch by more than the tolerance."""


class NumericsError(LatentRTError):
    """A tensor holds NaN or infinity."""


class BenchmarkError(LatentRTError):
    """A benchmark cannot be run or read, or one of its scenarios failed."""


@contextmanager
def told_as(kind: type[LatentRTError], file: object, what: str) -> Iterator[None]:
    """Turn the system's errors about a file into one of ours: "FILE: cannot be `what` (No space left on device)"."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise kind(f"{file}: cannot be {what} ({reason})") from error
