"""Output of every command: progress and logs on stderr, a JSON line at the end of stdout."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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


def finish(**values: Any) -> None:
    """Print a command's result: one JSON object, the last line of stdout."""
    sys.stdout.write(json.dumps(values, default=str) + "\n")
    sys.stdout.flush()


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
