"""A worker process: one JSON object per line comes in on stdin, one goes out on stdout.

    {"call": "load", "with": {...}}  ->  {"value": ...}  or  {"error": "...", "trace": "..."}

`python -m latentrt.benchmarks.workers.serve MODULE:CLASS`, or, where latentrt is not installed, this file by its path.
Whatever libraries print goes to stderr.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

PACKAGE = "latentrt.benchmarks"


def own_package() -> None:
    """Make `latentrt.benchmarks` importable from this file's place alone."""
    for name, path in (("latentrt", []), (PACKAGE, [str(Path(__file__).parents[1])])):
        module = ModuleType(name)
        module.__path__ = path
        sys.modules[name] = module


def serve(worker: Any, calls: TextIO, answers: TextIO) -> None:
    """Answer calls of the worker's methods until stdin ends."""
    for line in calls:
        message = json.loads(line)
        try:
            answer = {"value": getattr(worker, message["call"])(**message["with"])}
        except Exception as error:  # the other end decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main(kind: str) -> None:
    """Run one worker of `module:class`."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        module, name = kind.split(":")
        worker = getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)()
        serve(worker, sys.stdin, answers)


if __name__ == "__main__":
    if __spec__ is None:
        own_package()
        sys.path.pop(0)  # this folder's names must not hide installed packages
    main(sys.argv[1])
