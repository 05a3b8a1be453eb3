"""Output of every command: progress and logs on stderr, a JSON line at the end of stdout."""

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from latentrt.runtime.errors import RequestError, told_as

LOG_WIDTH = 160


def console(stream: TextIO | None = None) -> Console:
    """A console on stderr, or on another stream; wide if that is no terminal, so that nothing is cut from a log."""
    stream = stream or sys.stderr
    width = None if stream.isatty() else LOG_WIDTH
    # Without emoji=False, rich would turn the middle of the range 64:100:128 into a symbol.
    return Console(file=stream, soft_wrap=True, highlight=False, emoji=False, width=width)


def configure_logging(verbose: bool) -> None:
    """Log to stderr; of other libraries, warnings only."""
    handler = RichHandler(console=console(), show_path=False, show_time=verbose, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("latentrt").setLevel(logging.DEBUG if verbose else logging.INFO)


def finish(stream: TextIO | None = None, /, **values: Any) -> None:
    """Print a command's result: one JSON object, the last line of stdout, or of another stream.

    Raises:
        RequestError: the stream takes no more.
    """
    stream = stream or sys.stdout
    with writing(stream):
        stream.write(json.dumps(_strict(values), default=str, allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    """A value without infinity and NaN, which JSON does not have: they become null."""
    if isinstance(value, Mapping):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def writing(stream: TextIO) -> Iterator[None]:
    """Flush a stream after the block; if it takes no more, that is an error of ours, and the stream is done with.

    Raises:
        RequestError: the stream takes no more.
    """
    try:
        with told_as(RequestError, getattr(stream, "name", "stdout"), "written"):
            yield
            stream.flush()
    except RequestError:
        _close(stream)
        raise


def _close(stream: TextIO) -> None:
    """Lead a stream into nothing, so that the end of the process does not fail over what it still holds."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[str, float, float], None]]:
    """A progress bar on stderr; call the function it yields with (description, done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console(), transient=True) as bar:
        task = bar.add_task("", total=1)

        def update(description: str, done: float, total: float) -> None:
            bar.update(task, description=description, completed=done, total=total)

        yield update
