"""A worker process: it reads calls from stdin and writes answers to stdout, one JSON object per line.

    {"call": "load", "with": {...}}  ->  {"value": ...}  or  {"error": "...", "trace": "..."}

Started by `python -m latentrt.benchmarks.workers.serve MODULE:CLASS` or, where latentrt is not installed, by the path
of this file. Whatever libraries print goes to stderr.
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
    """Make `latentrt.benchmarks` importable by the location of this file, without latentrt being installed."""
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
        except Exception as error:  # the calling process decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main(kind: str) -> None:
    """Run the worker `module:class`."""
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
