"""TensorRT's messages, forwarded to `logging`; errors are kept so that an exception can name the first cause."""

import functools
import logging
import re
from collections import deque
from types import ModuleType
from typing import Any

NOISE = re.compile(
    r"skipping tactic|tactic \S+ failed|insufficient memory on requested|requested amount of GPU"
    r"|make sure (?:in|out)put \S+ has int64 binding",
    re.IGNORECASE,
)
"""Messages that mean nothing: TensorRT reports kernels that it tries in vain as errors, and we check ports' dtypes."""

KEPT = 50


@functools.cache
def tensorrt_log(trt: ModuleType) -> Any:
    """The only logger of a TensorRT module in this process, as TensorRT keeps the first one that it is given.

    It forwards to the Python logger `latentrt.<module>`, with info and tactic noise as debug. `errors` holds the last
    messages of severity ERROR; clear it before each piece of work.
    """
    logger = logging.getLogger(f"latentrt.{trt.__name__}")
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.DEBUG,
    }

    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        """Called by TensorRT from any of its threads, so it must never raise."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=KEPT)

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity)
            if level is None:  # VERBOSE: hundreds of lines per layer
                return
            message = " ".join(msg.split())
            if NOISE.search(message):
                level = logging.DEBUG
            # The user sees an error as the exception that it causes, so it is not logged as an error as well.
            if level == logging.ERROR:
                self.errors.append(message)
                level = logging.DEBUG
            logger.log(level, "%s", message)

    return Log()


def first_error(log: Any, otherwise: str) -> str:
    """The first error that TensorRT reported since `log.errors` was last cleared."""
    return log.errors[0] if log.errors else otherwise
