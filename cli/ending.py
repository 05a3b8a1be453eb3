"""How every command ends: its exit code, and what is said of an error. Imports nothing that takes time."""

import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

FAILED = 1
"""Exit code after an error that latentrt raised on purpose, or that the system gave for a file; wrong usage gives 2."""

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""


def run_command(command: Callable[[], Any]) -> None:
    """Run a command; latentrt's own errors are one line on stderr and exit code 1, Ctrl-C is one line and 130."""
    try:
        try:
            command()
        except SystemExit as end:
            if end.code == STOPPED:  # typer turns Ctrl-C into this
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            logging.getLogger("latentrt").debug("what led to the error:", exc_info=error)
            _say(*sentence)
            sys.exit(FAILED)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would end this sentence in a traceback
        sys.stderr.write("stopped; nothing was left half done\n")
        sys.exit(STOPPED)


def _sentence(error: Exception) -> tuple[str, str] | None:
    """What is said of an error, its kind first; None for one that needs its traceback."""
    from latentrt.runtime.errors import LatentRTError

    if isinstance(error, LatentRTError):
        return type(error).__name__, str(error)
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError):
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return type(error).__name__, ": ".join([*files, error.strerror])
    return None


def _say(kind: str, message: str) -> None:
    from latentrt.cli.output import console

    console().print(f"[bold red]{kind}[/]: ", end="")
    console().print(message, markup=False)
