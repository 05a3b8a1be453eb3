"""Runs the command line inside this process, as its console scripts would."""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from latentrt.cli.main import build_engine, main

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""typer draws in colours where GITHUB_ACTIONS or FORCE_COLOR is set, terminal or not."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a command left behind; `exit` is its exit code."""

    exit: int
    stdout: str
    stderr: str

    @property
    def result(self) -> Any:
        """The JSON object of stdout's last line."""
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def error(self) -> str:
        """stderr on one line: the console wraps it."""
        return " ".join(self.stderr.split())


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object, entry: Callable[[], None] = main) -> Run:
    """Run `latentrt ARGUMENTS`, or `build-engine ARGUMENTS`, and leave the process as it was."""
    name = "build-engine" if entry is build_engine else "latentrt"
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, _logging_kept():
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        patch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as caught:
            entry()
    stdout, stderr = (COLOURS.sub("", text) for text in capsys.readouterr())
    code = caught.value.code
    return Run(code if isinstance(code, int) else 0 if code is None else 1, stdout, stderr)


@contextmanager
def _logging_kept() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("latentrt")
    handlers, level, own_level = root.handlers[:], root.level, own.level
    root.handlers[:] = []  # `basicConfig(force=True)` closes those that it finds
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        own.setLevel(own_level)
