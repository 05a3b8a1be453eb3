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
]


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
